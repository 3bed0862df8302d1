"""The pictures that an export is checked on: real ones where there are any."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.data import IMAGE_SUFFIXES, Source, SourceOptions, make_sources, read_image
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError
from camtrain.header import read_checkpoint_content
from camtrain.model.camnet import CAMNet

MOST_PICTURES = 8


class Pictures(NamedTuple):
    """Pictures to check an export on.

    Attributes:
        images: (C, H, W) uint8 each.
        origin: What they are, in words.
        source: The labelled pictures that they are among, where they are labelled.
    """

    images: list[Tensor]
    origin: str
    source: Source | None = None


def pictures_of(net: CAMNet, *, folder: Path | None = None, checkpoint: Path) -> Pictures:
    """At most 8 pictures: of a folder, else of the data of a checkpoint, else random ones.

    Args:
        net: Its class names are those of the labels.
        folder: Of pictures, labelled (``CLASS/*`` or ``{val,test}/CLASS/*``) or not.
        checkpoint: A ``.ckpt`` names the data it was trained on; a bundle names none.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist or holds no pictures.
    """
    if folder is not None:
        with suppress(CamtrainError):  # other folders of pictures will do as well
            return _labelled("folder", {"root": str(folder)}, net)
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise CamtrainFileNotFoundError(
                f"--images must name a folder of pictures ({' '.join(IMAGE_SUFFIXES)}), got "
                f"{folder.absolute()}."
            )
        chosen = [files[place] for place in _spread(len(files))]
        return Pictures([read_image(file) for file in chosen], f"pictures of {folder}")
    if checkpoint.suffix == ".ckpt":
        content = read_checkpoint_content(checkpoint)
        data = content.get("datamodule_hyper_parameters", {})
        with suppress(CamtrainError, OSError):  # the data may be gone by now
            return _labelled(str(data.get("source")), data, net)
    return Pictures(random_pictures(net), "random pictures")


def random_pictures(net: CAMNet) -> list[Tensor]:
    """Smooth coloured noise, uint8, four pictures of different sizes with H != W."""
    assert net.preprocessing is not None
    height, width = net.preprocessing.size
    channels = len(net.preprocessing.mean)
    generator = torch.Generator().manual_seed(0)
    sizes_hw = [(height + 40 * n, width + 16 + 24 * n) for n in range(4)]
    coarse = torch.rand(4, channels, 6, 9, generator=generator)
    smooth = [
        F.interpolate(one[None], size=size_hw, mode="bicubic")[0]
        for one, size_hw in zip(coarse, sizes_hw, strict=True)
    ]
    return [(one.clamp(0, 1) * 255).round().byte() for one in smooth]


def _labelled(name: str, settings: dict[str, Any], net: CAMNet) -> Pictures:
    """Of the val split, else of test, else of train."""
    known = {field.name for field in fields(SourceOptions)}
    given = {key: value for key, value in settings.items() if key in known}
    options = SourceOptions(**{**given, "class_names": net.display_names})
    sources = make_sources(name, options)
    split, source = next((s, sources[s]) for s in ("val", "test", "train") if s in sources)
    images = [source.read(index).image for index in _spread(len(source))]
    place = settings.get("root") or f"the source {name}"
    return Pictures(images, f"pictures of {place}, {split}", source)


def _spread(count: int) -> list[int]:
    """At most 8 of so many places, evenly spaced."""
    chosen = min(count, MOST_PICTURES)
    return [place * count // chosen for place in range(chosen)]
