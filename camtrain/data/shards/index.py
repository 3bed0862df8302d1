"""What every shard of a data set holds, and where: the index, and the pictures it lists."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtrain.data.boxes import BoxTable
from camtrain.data.paths import PathList
from camtrain.data.shards.fetch import Store, cache_folder, is_url
from camtrain.data.source import Labels, Listing, Split, split_number
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError, one_line
from camtrain.files import write_text

INDEX = "index.json"
_FORMAT = 1


class Shard(NamedTuple):
    """One tar file.

    Attributes:
        file: Its name in the folder of the index.
        split: Train, val or test: a shard has samples of one split.
        samples: How many.
        bytes: The size of the file.
    """

    file: str
    split: Split
    samples: int
    bytes: int


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """N samples, in the order of the shards and, within each, of the tar file.

    Attributes:
        class_names: K names.
        shards: The tar files.
        labels: (N,) int64, or multi-hot, (N, K) bool.
        paths: Of the pictures before, relative to their data folder.
        places: (N, 2) int64, first byte and number of bytes of each picture in its shard.
        mask_places: (N, 2) int64, likewise of its mask; 0 bytes: none.
        box_rows: (M,) int64, the sample of each box.
        boxes_xyxy: (M, 4) int64, half-open.
    """

    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    labels: Labels
    paths: PathList
    places: NDArray[np.int64]
    mask_places: NDArray[np.int64]
    box_rows: NDArray[np.int64]
    boxes_xyxy: NDArray[np.int64]

    @property
    def shard_of(self) -> NDArray[np.int64]:
        """(N,), the place of each sample's shard in ``shards``."""
        return np.repeat(np.arange(len(self.shards)), [shard.samples for shard in self.shards])

    def save(self, folder: Path) -> None:
        """Write ``index.json``, for people and programs, and the file of arrays that it names."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            labels=self.labels,
            path_bytes=np.frombuffer(self.paths.buffer, np.uint8),
            path_ends=self.paths.ends,
            places=self.places,
            mask_places=self.mask_places,
            box_rows=self.box_rows,
            boxes_xyxy=self.boxes_xyxy,
        )
        # Named after the content, so that an index never meets arrays of another one.
        name = f"samples-{hashlib.sha256(buffer.getvalue()).hexdigest()[:12]}.npz"
        (folder / name).write_bytes(buffer.getvalue())
        content = {
            "camtrain_shards": _FORMAT,
            "class_names": self.class_names,
            "arrays": name,
            "shards": [shard._asdict() for shard in self.shards],
        }
        write_text(folder / INDEX, json.dumps(content, indent=1))


def load_index(content: bytes, read: Callable[[str], bytes], place: str) -> ShardIndex:
    """The index of a folder of shards.

    Args:
        content: Of ``index.json``.
        read: The content of another file of the folder, by its name.
        place: The folder, for messages.
    """
    try:
        stated = json.loads(content)
        version = stated["camtrain_shards"]
        if version > _FORMAT:
            raise CamtrainValueError(
                f"The shards of {place} have format {version}, and this version of camtrain reads "
                f"up to {_FORMAT}; update camtrain."
            )
        shards = tuple(Shard(**shard) for shard in stated["shards"])
        with np.load(io.BytesIO(read(stated["arrays"])), allow_pickle=False) as arrays:
            paths = PathList.ending_at(arrays["path_bytes"].tobytes(), arrays["path_ends"])
            names = ("labels", "places", "mask_places", "box_rows", "boxes_xyxy")
            index = ShardIndex(
                class_names=tuple(stated["class_names"]),
                shards=shards,
                paths=paths,
                **{name: arrays[name] for name in names},
            )
    except CamtrainError:
        raise
    except Exception as error:  # what a damaged file makes json and numpy raise cannot be known
        raise CamtrainValueError(
            f"{INDEX} of {place} cannot be read ({one_line(error)}); write the "
            "shards again with camtrain shards."
        ) from error
    if not len(paths) == len(index.places) == sum(shard.samples for shard in shards):
        raise CamtrainValueError(
            f"{INDEX} of {place} counts {sum(shard.samples for shard in shards)} samples and lists "
            f"{len(paths)}; write the shards again with camtrain shards."
        )
    if any("/" in shard.file or shard.split not in get_args(Split) for shard in shards):
        raise CamtrainValueError(f"{INDEX} of {place} names files that are no shards beside it.")
    return index


def shards_listing(
    root: str | os.PathLike[str],
    *,
    shards_cache: str | os.PathLike[str] | None = None,
    shards_cache_gb: float = 100.0,
) -> Listing:
    """The pictures of a folder that ``camtrain shards`` has written.

    Args:
        root: The folder, or its URL.
        shards_cache: The folder that keeps fetched shards; None: one in the user's cache folder.
        shards_cache_gb: The most that it may hold, in 10^9 bytes.
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
    place = cache_folder(shards_cache, folder, content) if is_url(root) else Path()
    contents = ShardContents(Store(root, place, int(shards_cache_gb * 1e9)), index)
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
