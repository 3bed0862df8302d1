"""Weights out of a bundle of this project: trunk, neck and head go on where they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from camtrain.errors import CamtrainValueError
from camtrain.header import Description
from camtrain.model.camnet import CAMNet
from camtrain.model.weights import Weights, load_part

# Settings on which the weights of the trunk, and those of the neck, depend.
_TRUNK = ("backbone", "cut", "in_chans", "backbone_args")
_NECK = ("neck", "neck_kernel", "neck_groups", "neck_norm")


def default_from_bundle(
    description: Description,
    cut: str | None,
    stride: int | None,
    backbone_args: dict[str, Any] | None,
) -> tuple[str | None, int | None, dict[str, Any]]:
    """``cut``, ``stride`` and ``backbone_args``; those of the bundle where they are None."""
    stored = architecture_of(description)
    return (
        stored["cut"] if cut is None else cut,
        stored["stride"] if stride is None else stride,
        # As JSON would bring them back: without tuples.
        json.loads(json.dumps(backbone_args or stored["backbone_args"])),
    )


def check_same_trunk(recipe: Mapping[str, Any], weights: Weights) -> None:
    """Refuse weights of another trunk.

    Raises:
        CamtrainValueError: Settings differ; says which, and the values to give.
    """
    stored = architecture_of(weights.description)
    different = [name for name in _TRUNK if recipe[name] != stored[name]]
    if different:
        changes = [f"{name} was {stored[name]!r}, got {recipe[name]!r}" for name in different]
        options = " ".join(f"--model.{name} {_as_option(stored[name])}" for name in different)
        raise CamtrainValueError(
            f"{weights.source} holds weights of another backbone: {'; '.join(changes)}. Give "
            f"{options}, or other weights."
        )


def keeps_head(recipe: Mapping[str, Any], description: Description, *, keeps_classes: bool) -> bool:
    """Whether the bundle's head goes on too: for as many classes, on the same features.

    After a neck only if it is to tell the same classes apart.

    Args:
        recipe: Of the network to build.
        description: Of the bundle.
        keeps_classes: Nobody has asked for other classes.
    """
    stored = architecture_of(description)
    is_same = all(recipe[name] == stored[name] for name in ("num_classes", *_NECK))
    return is_same and (keeps_classes or not recipe["neck"])


def load_bundle_into(net: CAMNet, weights: Weights, *, with_head: bool) -> None:
    """Copy trunk, neck if it is the same, and head into a network, in place.

    Args:
        net: Of the same trunk.
        weights: Of a bundle.
        with_head: See ``keeps_head``.

    Raises:
        CamtrainValueError: Tensors are missing or of another shape.
    """
    assert net.recipe is not None
    stored = architecture_of(weights.description)
    parts = ["backbone"]
    if all(net.recipe[name] == stored[name] for name in _NECK):
        parts.append("neck")
    if with_head:
        parts.append("head")
    for part in parts:
        load_part(net, part, weights.tensors, source=weights.source)
    assert weights.description is not None
    net.preprocessing = weights.description.preprocessing


def architecture_of(description: Description | None) -> Mapping[str, Any]:
    """The arguments of ``create_model`` in the description of a bundle, which always has them."""
    assert description is not None
    assert description.architecture is not None
    return description.architecture


def _as_option(value: object) -> str:
    return value if isinstance(value, str) else f"'{json.dumps(value)}'"
