"""The arguments of ``create_model``: which of them no network can be built with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args

from camtrain.errors import CamtrainTypeError, CamtrainValueError, check_choice
from camtrain.labels import check_task
from camtrain.maps import PoolName
from camtrain.model.camnet import CAMNet

NormName = Literal["batch"]

# The arguments beside backbone, classes and weights.
ARCHITECTURE = (
    *("cut", "stride", "neck", "neck_kernel", "neck_groups", "neck_norm"),
    *("pool", "dropout", "task", "foreground", "in_chans", "backbone_args"),
)


def check_arguments(recipe: dict[str, Any]) -> None:
    """Refuse arguments that no network can be built with; one built by hand has none."""
    if recipe.get("is_whole"):
        return
    check_task(recipe["task"])
    check_choice("pool", recipe["pool"], get_args(PoolName))
    neck, kernel, groups = recipe["neck"], recipe["neck_kernel"], recipe["neck_groups"]
    is_list = isinstance(neck, Sequence) and not isinstance(neck, str)
    types = {
        "num_classes": (type(recipe["num_classes"]) in (int, NoneType), "an integer or None"),
        "stride": (type(recipe["stride"]) in (int, NoneType), "an integer or None"),
        "neck": (is_list and all(isinstance(out, int) for out in neck), "a list of channel counts"),
        "neck_kernel": (isinstance(kernel, int), "an integer"),
        "neck_groups": (isinstance(groups, int), "an integer"),
        "dropout": (isinstance(recipe["dropout"], (int, float)), "a number"),
        "foreground": (isinstance(recipe.get("foreground", False), bool), "true or false"),
    }
    for name, (is_right, expected) in types.items():
        if not is_right:
            raise CamtrainTypeError(f"{name} must be {expected}, got {recipe.get(name)!r}.")
    values = {
        "neck": (
            groups >= 1 and all(out >= 1 and out % groups == 0 for out in neck),
            f"hold channel counts that neck_groups={groups} divides",
        ),
        "neck_kernel": (kernel >= 1 and kernel % 2, "be odd, so that the map keeps its size"),
        "neck_norm": (recipe["neck_norm"] in (None, *get_args(NormName)), "be batch or None"),
        "dropout": (0 <= recipe["dropout"] < 1, "lie in [0, 1)"),
    }
    for name, (is_right, expected) in values.items():
        if not is_right:
            raise CamtrainValueError(f"{name} must {expected}, got {recipe[name]!r}.")


def check_unchanged(
    net: CAMNet, arguments: Mapping[str, Any], builder: Callable[..., CAMNet]
) -> None:
    """Refuse arguments of ``create_model`` that would change a network that is built already."""
    usual = {name: p.default for name, p in inspect.signature(builder).parameters.items()}
    usual |= {"backbone": arguments["backbone"], "neck": [*usual["neck"]], "backbone_args": {}}
    as_it_is = net.description.architecture or {}
    for name, value in arguments.items():
        if value not in (usual[name], as_it_is.get(name)):
            raise CamtrainValueError(
                f"{name}={value!r} comes too late for a CAM network, which is used as it is; leave "
                "it out."
            )
