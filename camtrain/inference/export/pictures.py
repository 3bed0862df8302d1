"""The pictures that an export is checked on: real ones where there are any."""

from __future__ import annotations

from collections.abc import Mapping
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

_MOST_PICTURES = 8


class Pictures(NamedTuple):
    """Pictures to check an export on.

    Attributes:
        images: (C, H, W) uint8 each.
        origin: Where they come from, in words.
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
        with suppress(CamtrainError):  # a folder without labels will do as well
            return _labelled("folder", {"root": str(folder)}, net)
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise CamtrainFileNotFoundError(
                f"--images must name a folder of pictures ({' '.join(IMAGE_SUFFIXES)}), got "
                f"{folder.absolute()}."
            )
        images = [read_image(files[index]) for index in spread(len(files), _MOST_PICTURES)]
        return Pictures(images, f"pictures of {folder}")
    if checkpoint.suffix == ".ckpt":
        content = read_checkpoint_content(checkpoint)
        settings = content.get("datamodule_hyper_parameters", {})
        with suppress(CamtrainError, OSError):  # the data may be gone by now
            return _labelled(str(settings.get("source")), settings, net)
    return Pictures(random_pictures(net), "random pictures")


def random_pictures(net: CAMNet) -> list[Tensor]:
    """Smooth coloured noise, uint8, four pictures of different sizes with H != W."""
    assert net.preprocessing is not None
    height, width = net.preprocessing.size
    channels = len(net.preprocessing.mean)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, channels, 6, 9, generator=generator)
    smooth = [
        F.interpolate(noise[None], size=(height + 40 * n, width + 16 + 24 * n), mode="bicubic")[0]
        for n, noise in enumerate(coarse)
    ]
    return [(noise.clamp(0, 1) * 255).round().byte() for noise in smooth]


def spread(count: int, most: int) -> list[int]:
    """The indices of at most ``most`` of ``count`` items, evenly spaced."""
    chosen = min(count, most)
    return [place * count // chosen for place in range(chosen)]


def _labelled(name: str, settings: Mapping[str, Any], net: CAMNet) -> Pictures:
    """Pictures of the val split, else of test, else of train."""
    known = {field.name for field in fields(SourceOptions)}
    options = SourceOptions(
        **{key: value for key, value in settings.items() if key in known - {"class_names"}},
        class_names=net.display_names,
    )
    sources = make_sources(name, options)
    split, source = next((s, sources[s]) for s in ("val", "test", "train") if s in sources)
    images = [source.read(index).image for index in spread(len(source), _MOST_PICTURES)]
    place = settings.get("root") or f"the source {name}"
    return Pictures(images, f"pictures of {place}, {split}", source)
