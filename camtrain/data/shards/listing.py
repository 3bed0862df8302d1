"""Shards as a data set like any other."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.data.boxes import BoxTable
from camtrain.data.listing import Listing, split_number
from camtrain.data.shards.fetch import Store, cache_folder, is_url
from camtrain.data.shards.index import INDEX, Shard, ShardIndex, load_index
from camtrain.errors import CamtrainFileNotFoundError


def shards_listing(
    root: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    cache_gb: float = 100.0,
) -> Listing:
    """The pictures of a folder that ``camtrain shards`` has written.

    Args:
        root: The folder, or its URL.
        cache: The folder that keeps fetched shards; None: one in the user's cache folder.
        cache_gb: The most that it may hold, in 10^9 bytes.

    Raises:
        CamtrainFileNotFoundError: There is no index in the folder.
        CamtrainValueError: The index is damaged.
    """
    folder = os.fspath(root)
    if not is_url(root) and not (Path(root).expanduser() / INDEX).is_file():
        raise CamtrainFileNotFoundError(
            f"{folder} holds no {INDEX}; point --data.root at a folder or URL that camtrain shards "
            "has written."
        )
    reader = Store(root, Path(), 0)
    content = reader.read_all(INDEX)
    index = load_index(content, reader.read_all, folder)
    place = cache_folder(cache, folder, content) if is_url(root) else Path()
    contents = ShardContents(Store(root, place, int(cache_gb * 1e9)), index)
    return Listing(
        root=Path(root) if is_url(root) else Path(root).expanduser().absolute(),
        paths=index.paths,
        labels=index.labels,
        splits=np.array([split_number(shard.split) for shard in index.shards], np.int8)[
            index.shard_of
        ],
        class_names=index.class_names,
        has_class_list=True,
        boxes=BoxTable(len(index.paths), index.box_rows.tolist(), index.boxes_xyxy.tolist()),
        masks=ShardMasks(contents, index.mask_places),
        contents=contents,
        groups=index.shard_of,
    )


class ShardContents:
    """The content of each picture's file: from a row to bytes.

    Args:
        store: Where the shards are.
        index: What they hold.
    """

    def __init__(self, store: Store, index: ShardIndex) -> None:
        self.store = store
        self._shards = index.shards
        self._shard_of = index.shard_of
        self._places = index.places

    def __call__(self, row: int) -> bytes:
        """The file at ``row``, byte for byte as it was."""
        return self.part(row, self._places)

    def part(self, row: int, places: NDArray[np.int64]) -> bytes:
        """The bytes at ``places[row]`` of the shard of a row."""
        shard: Shard = self._shards[self._shard_of[row]]
        start, count = places[row].tolist()
        return self.store.read(shard.file, start, count, size=shard.bytes)


class ShardMasks:
    """The mask of each picture: from a row to (H, W) uint8, or None.

    Args:
        contents: The shards.
        places: See ``ShardIndex.mask_places``.
    """

    def __init__(self, contents: ShardContents, places: NDArray[np.int64]) -> None:
        self._contents = contents
        self._places = places

    def __call__(self, row: int) -> Tensor | None:
        """The mask at ``row``."""
        if not self._places[row, 1]:
            return None
        data = np.frombuffer(self._contents.part(row, self._places), np.uint8)
        return torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
