"""Weights out of a bundle of this project: trunk, neck and head go on where they fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing

# The format is that of `camtrain.inference.bundle`, which may not be imported here.
_METADATA_KEY = "camtrain"
_NEWEST_FORMAT = 1

# Settings on which the weights of the trunk, and those of the neck, depend.
_TRUNK = ("backbone", "cut", "in_chans", "backbone_args")
_NECK = ("neck", "neck_kernel", "neck_groups", "neck_norm")


@dataclass(frozen=True)
class OwnWeights:
    """What a bundle says about its weights.

    Attributes:
        source: Its path.
        recipe: The arguments of ``create_model`` that built its network.
        class_names: K names, or None.
        preprocessing: What was done to the pictures it was trained on.
    """

    source: str
    recipe: dict[str, Any]
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing


def read_own(path: Path) -> OwnWeights | None:
    """The description of a bundle; None for any other file.

    Raises:
        CamtrainValueError: It is damaged, or of a newer format.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except SafetensorError:
        return None  # reading its tensors will say so
    if text is None:
        return None
    try:
        metadata = json.loads(text)
        newest = int(metadata["format_version"])
        names, recipe = metadata["class_names"], dict(metadata["architecture"])
        _ = [recipe[name] for name in (*_TRUNK, *_NECK, "num_classes", "stride")]  # are all there
        own = OwnWeights(
            source=str(path),
            recipe=recipe,
            class_names=None if names is None else tuple(names),
            preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
        )
    except Exception as error:  # what damaged values make the readers raise cannot be known
        raise CamtrainValueError(
            f"{path} has unreadable camtrain metadata ({type(error).__name__}: {error}); take it "
            "from its source again."
        ) from error
    if newest > _NEWEST_FORMAT:
        raise CamtrainValueError(
            f"{path} has bundle format version {newest}, this camtrain reads up to "
            f"{_NEWEST_FORMAT}; install a newer camtrain."
        )
    return own


def unsaid_from_own(
    own: OwnWeights, cut: str | None, stride: int | None, backbone_args: dict[str, Any] | None
) -> tuple[str | None, int | None, dict[str, Any]]:
    """``cut``, ``stride`` and ``backbone_args``, the bundle's where nothing was said."""
    said = own.recipe
    return (
        said["cut"] if cut is None else cut,
        said["stride"] if stride is None else stride,
        # As JSON would bring them back: without tuples.
        json.loads(json.dumps(backbone_args or said["backbone_args"])),
    )


def check_same_trunk(recipe: dict[str, Any], own: OwnWeights) -> None:
    """Refuse weights of another trunk.

    Raises:
        CamtrainValueError: Settings differ; says which, and the values to give.
    """
    other = [name for name in _TRUNK if recipe[name] != own.recipe[name]]
    if other:
        told = [f"{name} was {own.recipe[name]!r}, got {recipe[name]!r}" for name in other]
        give = " ".join(f"--model.{name} {_as_option(own.recipe[name])}" for name in other)
        raise CamtrainValueError(
            f"{own.source} holds weights of another backbone: {'; '.join(told)}. Give {give}, or "
            "other weights."
        )


def keeps_head(recipe: dict[str, Any], own: OwnWeights, *, keeps_classes: bool) -> bool:
    """Whether the bundle's head goes on too: for as many classes, on the same features.

    After a neck only if it is to tell the same classes apart.

    Args:
        recipe: Of the network to build.
        own: The bundle.
        keeps_classes: Nobody has asked for other classes.
    """
    same = all(recipe[name] == own.recipe[name] for name in ("num_classes", *_NECK))
    return same and (keeps_classes or not recipe["neck"])


def fill_from_own(
    net: CAMNet, tensors: dict[str, Tensor], own: OwnWeights, *, with_head: bool
) -> None:
    """Copy trunk, neck if it is the same, and head into a network, in place.

    Args:
        net: Of the same trunk.
        tensors: Of the bundle, by their names in it.
        own: The bundle.
        with_head: See ``keeps_head``.

    Raises:
        CamtrainValueError: Tensors are missing or of another shape.
    """
    assert net.recipe is not None
    from camtrain.model.weights import load_part  # which imports this module

    parts = ["backbone"]
    if all(net.recipe[name] == own.recipe[name] for name in _NECK):
        parts.append("neck")
    if with_head:
        parts.append("head")
    for part in parts:
        load_part(net, part, tensors, source=own.source)
    net.preprocessing = own.preprocessing


def _as_option(value: object) -> str:
    return value if isinstance(value, str) else f"'{json.dumps(value)}'"
