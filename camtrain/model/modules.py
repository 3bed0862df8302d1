"""Networks of the user: a module, a class or a function that builds one, or its import path."""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from camtrain.errors import CamtrainTypeError, CamtrainValueError, first_line, one_line
from camtrain.model.cut import trace
from camtrain.model.probe import first_conv, is_leaf, takes

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[\w<>]+)+")
_USUAL_HW = (224, 224)


@dataclass(frozen=True)
class UserNetwork:
    """A network that only the user's code can build.

    Attributes:
        path: The import path of its class, or of the function that builds it.
        source: The module itself, or the class or function.
    """

    path: str
    source: nn.Module | Callable[..., nn.Module]

    def build(self, arguments: Mapping[str, Any], in_chans: int = 3) -> nn.Module:
        """The network as a copy that may be changed; its floating point numbers are float32.

        Args:
            arguments: Of the class or function.
            in_chans: Channels of the images, for layers that take their shapes from the images.

        Raises:
            CamtrainTypeError: What is built is not a ``torch.nn.Module``.
            CamtrainValueError: The arguments do not fit, or it is a kind of network that cannot be
                cut.
        """
        if isinstance(self.source, nn.Module):
            if arguments:
                raise CamtrainValueError(
                    f"backbone_args must be empty for a module, which is built already, got "
                    f"{dict(arguments)}; give the class {self.path} with them."
                )
            network: object = copy_of(self.source)
        else:
            try:
                network = self.source(**arguments)
            except TypeError as error:
                raise CamtrainValueError(
                    f"backbone_args do not fit {self.path} ({first_line(error)}), got "
                    f"{dict(arguments)}."
                ) from error
        if not isinstance(network, nn.Module):
            raise CamtrainTypeError(
                f"backbone must build a torch.nn.Module, {self.path} gives a "
                f"{type(network).__name__}."
            )
        network = unwrap(network)
        _refuse_uncuttable(network)
        if any(map(is_lazy, network.parameters())):
            with torch.no_grad():
                network(torch.zeros(1, in_chans, *_USUAL_HW))
        return network.float()


def user_network(backbone: object) -> UserNetwork | None:
    """What the user gives as a backbone; None where it is a library's name or nothing.

    Raises:
        CamtrainTypeError: It is neither a name nor a module, a class or a function.
        CamtrainValueError: It is an import path at which nothing can be found.
    """
    if backbone is None:
        return None
    if isinstance(backbone, str):
        if not is_import_path(backbone) or _is_timm_name(backbone):
            return None
        return UserNetwork(backbone, _import(backbone))
    if not isinstance(backbone, nn.Module) and not callable(backbone):
        raise CamtrainTypeError(
            "backbone must be the name of a network, a torch.nn.Module, or a class or function "
            f"that builds one, got {type(backbone).__name__}."
        )
    return UserNetwork(import_path_of(backbone), backbone)


def name_of(backbone: object) -> str:
    """The name or import path of what is given as a backbone."""
    if isinstance(backbone, str):
        return backbone
    description: Any = getattr(backbone, "description", None)  # of a CAM network
    return str(description.architecture["backbone"] if description else import_path_of(backbone))


def check_user(recipe: Mapping[str, Any] | None, user: UserNetwork | None) -> None:
    """Check that the user hands in a network where a recipe needs one, and only there.

    Raises:
        CamtrainValueError: The message says what to hand in.
    """
    name = (recipe or {}).get("backbone", "")
    if user is None and is_import_path(name):
        raise CamtrainValueError(
            f"This network is your own, {name}, and no file can build it; hand in its class, or a "
            f"function or module, as the argument backbone (in the shell --backbone {name})."
        )
    if user is not None and not is_import_path(name):
        raise CamtrainValueError(
            f"backbone is for networks of your own, and this one is {name}; leave it out."
        )


def is_import_path(name: object) -> bool:
    """Whether a name may be the import path of a class or function: it has dots, and no slash.

    Example:
        >>> is_import_path("mypackage.nets.MyNet"), is_import_path("torchvision/vgg16")
        (True, False)
    """
    return isinstance(name, str) and _IMPORT_PATH.fullmatch(name) is not None


def import_path_of(source: object) -> str:
    """Where the class of a module, or a class or function, can be imported from."""
    if isinstance(source, partial):
        source = source.func
    if isinstance(source, nn.Module):
        source = unwrap(source)
    kind: Any = source if hasattr(source, "__qualname__") else type(source)
    return f"{kind.__module__}.{kind.__qualname__}"


def unwrap(network: nn.Module) -> nn.Module:
    """A network without what wraps it for training: parallel copies, a compiler."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):  # torch.compile's
            network = inner
        else:
            return network


def copy_of(network: nn.Module) -> nn.Module:
    """A copy to cut, without what wraps the network for training.

    Raises:
        CamtrainValueError: It cannot be copied.
    """
    network = unwrap(network)
    lazy = next((name for name, p in network.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise CamtrainValueError(
            f"The layer {lazy.rpartition('.')[0]} of {type(network).__name__} has no shape before "
            "it has seen a picture; run the network once on pictures of the right size, or give "
            "its class or a function that builds it."
        )
    # Pruning computes weights from others; they hold gradients and cannot be copied as they are.
    computed = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(network, dict[int, Any](computed))
    except (RuntimeError, TypeError) as error:
        raise CamtrainValueError(
            f"{type(network).__name__} cannot be copied ({first_line(error)}); run it "
            "once under torch.no_grad(), so that it holds no results with gradients."
        ) from error


def set_in_chans(network: nn.Module, in_chans: int) -> int:
    """Let a network take images of other channels, by timm's rule: sum or repeat its weights.

    Returns:
        The channels that it takes from now on; 3 leaves it as it is.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        raise CamtrainValueError(
            f"{type(network).__name__} has no convolution (torch.nn.Conv2d), so that it makes no "
            "feature map; give a network of convolutions."
        )
    conv: Any = network.get_submodule(first_conv(network))
    channels: int = conv.in_channels
    if channels != 3 and takes(network, 3, _USUAL_HW):
        channels = 3  # pixels are rearranged before the first convolution
    if in_chans in (3, channels):
        return channels
    from timm.models import adapt_input_conv

    conv.weight = nn.Parameter(adapt_input_conv(in_chans, conv.weight.detach()))
    conv.in_channels = in_chans
    return in_chans


def output_classes(network: nn.Module) -> int | None:
    """The classes of a classifier: the outputs of its last layer; None where that is unknown."""
    try:
        operations = trace(network)
        node = operations.output()
    except CamtrainValueError:
        return None
    while node.all_input_nodes and not operations.is_layer(node, nn.Linear, nn.Conv2d):
        node = operations.before(node)
    layer: Any = operations.module(node)
    return None if layer is None else len(layer.weight)


def recipe_of(source: object, num_classes: int, in_chans: int, **changes: object) -> dict[str, Any]:
    """The recipe of a network that only the user's code can build, see ``CAMNet.recipe``."""
    recipe = {"backbone": import_path_of(source), "num_classes": num_classes, "cut": None}
    recipe |= {"stride": None, "neck": [], "neck_kernel": 3, "neck_groups": 1, "neck_norm": None}
    recipe |= {"pool": "avg", "dropout": 0.0, "task": "multiclass", "in_chans": in_chans}
    return {**recipe, "backbone_args": {}, "own_head": False, **changes}


def reinitialize(network: nn.Module) -> None:
    """Draw new weights for every layer, as it draws them when it is built.

    Raises:
        CamtrainValueError: A layer with weights does not say how.
    """
    for name, module in network.named_modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise CamtrainValueError(
                f"weights=None cannot draw new weights for {name or 'the network itself'}, since "
                f"{type(module).__name__} has no reset_parameters; give the class instead of a "
                "module, or leave weights out to keep its weights."
            )


def _refuse_uncuttable(network: nn.Module) -> None:
    """Refuse networks that cannot be traced, without float weights, and with several inputs."""
    name = type(network).__name__
    modules = list(network.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise CamtrainValueError(
            f"{name} is scripted, so that it cannot be cut; give the module that was scripted."
        )
    if any("quantized" in type(module).__module__ for module in modules if is_leaf(module)):
        raise CamtrainValueError(
            f"{name} is quantized, so that it has no float weights to train; give the network that "
            "was quantized."
        )
    first, *further = inspect.signature(network.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [p.name for p in further if p.default is p.empty and p.kind in kinds]
    if needed:
        raise CamtrainValueError(
            f"{name}.forward takes {', '.join(needed)} beside {first.name}; wrap it in a module "
            "whose forward takes images alone."
        )


def _is_timm_name(name: str) -> bool:
    """Whether a name with a dot is a network of timm with a tag, such as ``resnet50.a1_in1k``."""
    if importlib.util.find_spec(name.partition(".")[0]) is not None:
        return False
    import timm

    return bool(timm.is_model(name))


def _import(path: str) -> Any:  # noqa: ANN401
    """The class or function of an import path; the current folder is searched last."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
    value: object = None
    parts = path.split(".")
    for place, part in enumerate(parts):
        name = ".".join(parts[: place + 1])
        if hasattr(value, part):
            value = getattr(value, part)
            continue
        try:
            if value is not None and not isinstance(value, ModuleType):
                raise ModuleNotFoundError(name=name)
            value = importlib.import_module(name)
        except Exception as error:  # importing runs the user's code
            if not isinstance(error, ModuleNotFoundError) or error.name not in (name, None):
                raise CamtrainValueError(
                    f"backbone {path}: {name} cannot be imported ({one_line(error)})."
                ) from error
            folders = getattr(value, "__path__", [] if value else None)
            modules = [m.name for m in pkgutil.iter_modules(folders)]
            nearest = difflib.get_close_matches(part, [*dir(value), *modules] if value else modules)
            where = f"{'.'.join(parts[:place])} has no" if value else "There is no module"
            hint = f"; the nearest is {nearest[0]}" if nearest else ""
            raise CamtrainValueError(f"backbone {path}: {where} {part}{hint}.") from None
    if not callable(value):
        raise CamtrainTypeError(
            f"backbone must name a class or function that builds a network, {path} is a "
            f"{type(value).__name__}."
        )
    return value
