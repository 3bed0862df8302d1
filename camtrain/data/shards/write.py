"""``camtrain shards`` writes a data set as a few large tar files."""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from camtrain.arguments import VerbParser, announce
from camtrain.data.exclude import absolute_data_folder, make_sources_without, name_in, read_exclude
from camtrain.data.lists import PathList
from camtrain.data.shards.read import INDEX, Shard, ShardIndex, import_webdataset
from camtrain.data.source import Source, SourcePicture, Split
from camtrain.data.sources import add_source_arguments, naming_arguments_of, source_options
from camtrain.errors import CamtrainValueError
from camtrain.files import check_writable, locked, writing
from camtrain.labels import classes_of

_UNFINISHED = ".unfinished"  # lies in the folder until the index is written


def write_shards(
    sources: Mapping[Split, Source],
    folder: Path,
    *,
    root: str | None = None,
    shard_mb: float = 200.0,
    seed: int = 0,
) -> Iterator[int]:
    """Write the pictures of a data set as shards, and finally their index.

    A sample is the file of its picture, byte for byte (a picture without a file becomes a PNG),
    a JSON file with ``path``, ``labels``, ``classes`` and ``boxes_xyxy``, and ``mask.png`` where it
    has a mask. Training pictures are shuffled first, so that every shard holds a mixture of them.
    Every picture is decoded once, to be sure that it is not damaged. After an error, everything
    that was written is deleted.

    Args:
        sources: All splits.
        folder: A new or empty folder, or what a killed process has left, which is written anew.
        root: The data folder; pictures in it are named relative to it.
        shard_mb: Approximate size of a shard, in 10^6 bytes.
        seed: Seed for the order of the training pictures.

    Yields:
        The number of pictures written so far.

    Raises:
        CamtrainValueError: The folder is not empty, the size is not positive, or a picture cannot
            be read.
        CamtrainError: The webdataset library is not installed, or the disk is full.
    """
    if shard_mb <= 0:
        raise CamtrainValueError(f"shard_mb must be above 0, got {shard_mb}.")
    is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_used and not (folder / _UNFINISHED).is_file():
        raise CamtrainValueError(f"{folder} must be a new or empty folder; choose another one.")
    writer, data_folder = import_webdataset("writer"), absolute_data_folder(root)
    paths: list[str] = []
    labels: list[object] = []
    boxes: list[np.ndarray] = []
    first_rows: dict[Split, int] = {}
    files = filter(os.path.isfile, (path for source in sources.values() for path in source.paths))
    with _writing(folder), writing(folder, needed=sum(map(os.path.getsize, files))):
        for split, source in sources.items():
            first_rows[split] = len(paths)
            order = torch.arange(len(source))
            if split == "train":
                order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
            with writer.ShardWriter(
                f"{str(folder).replace('%', '%%')}/{split}-%06d.tar",
                maxcount=10**9,
                maxsize=shard_mb * 1e6,
                verbose=0,
                encoder=False,
                mtime=0,  # the same pictures make the same shards
            ) as shard_writer:
                for number, index in enumerate(order.tolist()):
                    picture = source.read(index)
                    name = name_in(data_folder, picture.path)
                    shard_writer.write(_sample(number, picture, name, source.class_names))
                    paths.append(name)
                    labels.append(np.asarray(picture.label))
                    boxes.append(picture.boxes_xyxy.numpy())
                    yield len(paths)
        shards, places, mask_places = _find_places(folder, first_rows, len(paths))
        labels_array = np.array(labels)
        ShardIndex(
            class_names=next(iter(sources.values())).class_names,
            shards=shards,
            labels=labels_array.astype(bool if labels_array.ndim == 2 else np.int64),
            paths=PathList.of(paths),
            places=places,
            mask_places=mask_places,
            box_rows=np.repeat(np.arange(len(boxes)), list(map(len, boxes))),
            boxes_xyxy=np.concatenate(boxes).reshape(-1, 4),
        ).save(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make a folder; after an error, delete what was written, and also the folder if it is new.

    A file marks the folder until all is written, so that the remains of a killed process are known.
    """
    is_new = not folder.exists()
    check_writable(folder, "--to")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _UNFINISHED
    marker.touch()
    message = f"Another process writes shards to {folder}; wait for its end, or choose another."
    with locked(marker, message):
        _delete_shards(folder)
        try:
            yield
        except BaseException:
            _delete_shards(folder)
            marker.unlink()
            if is_new:
                folder.rmdir()
            raise
        marker.unlink()


def _delete_shards(folder: Path) -> None:
    for pattern in ("*.tar", "samples-*.npz", INDEX, ".index-*"):
        for file in folder.glob(pattern):
            file.unlink()


def _find_places(
    folder: Path, first_rows: Mapping[Split, int], count: int
) -> tuple[tuple[Shard, ...], np.ndarray, np.ndarray]:
    """Read from the shards in a folder where the files of each sample lie.

    Args:
        folder: It holds the shards. The name of a sample is its number within its split.
        first_rows: The row of the first sample of each split.
        count: N, the number of rows.

    Returns:
        The shards, and ``places`` and ``mask_places`` of ``ShardIndex``, (N, 2) each.
    """
    shards = []
    places, mask_places = np.zeros((2, count, 2), np.int64)
    for split, first in first_rows.items():
        for path in sorted(folder.glob(f"{split}-*.tar")):
            samples = 0
            with tarfile.open(path) as tar:
                for member in tar:
                    number, _, suffix = member.name.partition(".")
                    if suffix == "json":
                        samples += 1
                        continue
                    array = mask_places if suffix == "mask.png" else places
                    array[first + int(number)] = member.offset_data, member.size
            shards.append(Shard(path.name, split, samples, path.stat().st_size))
    return tuple(shards), places, mask_places


def _sample(
    number: int, picture: SourcePicture, name: str, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """The files of a sample by suffix, and its name as ``__key__``, for webdataset."""
    path = Path(picture.path)
    if path.is_file():
        suffix, content = path.suffix.lower().removeprefix("."), path.read_bytes()
    else:
        suffix, content = "png", _png(picture.image)
    labels = classes_of(picture.label)
    truth = {
        "path": name,
        "labels": labels,
        "classes": [class_names[label] for label in labels],
        "boxes_xyxy": picture.boxes_xyxy.tolist(),
    }
    sample = {
        "__key__": f"{number:09d}",
        suffix or "image": content,
        "json": json.dumps(truth).encode(),
    }
    return sample if picture.mask is None else {**sample, "mask.png": _png(picture.mask[None])}


def _png(image: Tensor) -> bytes:
    """The PNG file of (C, H, W) uint8 with one or three channels."""
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def main(args: Sequence[str]) -> None:
    """``camtrain shards [PATH] --to FOLDER [--source NAME] ...``."""
    settings = _parser().parse_args(args[1:])
    with naming_arguments_of(args[0]), announce(f"Reading the folders of {settings.path}"):
        exclude = read_exclude(settings.exclude) if settings.exclude else []
        _, sources = make_sources_without(settings.source, source_options(settings), exclude)
    total = sum(map(len, sources.values()))
    folder = Path(settings.to).expanduser()
    written = write_shards(
        sources, folder, root=settings.path, shard_mb=settings.shard_mb, seed=settings.seed
    )
    for _ in track(written, f"Writing {total} pictures", total=total, console=Console(stderr=True)):
        pass
    shards = sorted(folder.glob("*.tar"))
    size = sum(shard.stat().st_size for shard in shards) / 1e6
    print(
        f"{total} pictures in {len(shards)} shards of {folder}, {size:.1f} MB; read them with "
        f"--data.source shards --data.root {folder}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser(
        prog="camtrain shards",
        description="Write a data set as WebDataset shards, to be trained on from this disk or "
        "from a URL. Pictures keep their bytes; labels, boxes and masks go with them.",
        epilog="Example: camtrain shards photos --to photos_shards",
    )
    add_source_arguments(parser)
    add = parser.add_argument_group("what is written").add_argument
    add("--to", required=True, metavar="FOLDER", help="where to: a new or empty folder")
    text = "of a shard, in 10^6 bytes (default 200)"
    add("--shard_mb", type=float, default=200.0, metavar="SIZE", help=text)
    add("--exclude", metavar="FILE", help="pictures to leave out, one path per line")
    return parser
