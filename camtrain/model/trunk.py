"""The trunk of a network, up to its cut, as a module that gives feature maps."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import DualGraphModule

from camtrain.errors import CamtrainValueError, first_line
from camtrain.model.cut import (
    CUTS,
    NoGraphError,
    Operations,
    check_cut,
    cut_before_head,
    default_cut,
    graph_until,
    trace,
)
from camtrain.model.modules import is_import_path
from camtrain.model.probe import Layout, Probe, drop_unused, find_layout, probe, takes
from camtrain.preprocessing import Preprocessing

_CONSTANT = "_tensor_constant"


class Classifier(NamedTuple):
    """A network before it is cut, and what its source knows of it."""

    network: nn.Module  # as its library builds it; the trunk for `camtrain/...`
    name: str  # library/model, or an import path
    in_chans: int
    preprocessing: Preprocessing | None  # None for a network of the user

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W) of the images that it is built for, as far as that is known."""
        return (self.preprocessing or Preprocessing()).size


def trunk_of(classifier: Classifier, cut: str | None) -> tuple[nn.Module, Probe]:
    """The backbone of a classifier, which is taken apart, and the record of a forward pass.

    It ends after the layer ``cut``, or after the usual one with None.

    Raises:
        CamtrainValueError: There is no such layer, or no feature map there.
    """
    network, name, in_chans, _ = classifier
    size_hw = classifier.size_hw
    if cut is None and name.startswith("camtrain/"):
        trunk = nn.Sequential(OrderedDict(trunk=network))  # named like every backbone
        return trunk, probe(trunk, in_chans, size_hw)
    backbone = _backbone_of(classifier, cut)
    record = probe(backbone, in_chans, size_hw)
    last = record.layers[-1]
    if isinstance(backbone, TimmBackbone) and isinstance(last.module, nn.MaxPool2d):
        backbone.set_submodule(last.name, nn.Identity())
        record = probe(backbone, in_chans, size_hw)
    channels = getattr(network, "num_features", None)
    prefix = getattr(network, "num_prefix_tokens", None)
    backbone.layout = find_layout(record.shape, size_hw, channels=channels, prefix=prefix)
    backbone.size_hw = size_hw
    if not isinstance(backbone, GraphBackbone):  # a graph holds only the layers that it uses
        drop_unused(backbone, record)
    features = backbone.layout.to_map(torch.empty(record.shape, device="meta"), size_hw)
    return backbone, record._replace(shape=tuple(features.shape))


def _backbone_of(classifier: Classifier, cut: str | None) -> Backbone:
    """The backbone by a graph, by timm's ``forward_features``, or by its listed blocks."""
    network, name, in_chans, _ = classifier
    if is_import_path(name):
        return _backbone_of_user(classifier, cut)
    is_timm = name.startswith("timm/")
    if cut is None:
        if is_timm and name not in CUTS:
            return TimmBackbone(network)
        operations = trace(network)
        return GraphBackbone(operations, CUTS.get(name) or default_cut(operations))
    try:
        operations = trace(network)
        check_cut(operations, cut, in_chans, classifier.size_hw)
        return GraphBackbone(operations, cut)
    except NoGraphError:
        if not is_timm:
            raise
        return TimmBlocks(network, cut)


def _backbone_of_user(classifier: Classifier, cut: str | None) -> Backbone:
    """The backbone by a graph; else by ``forward_features``, or by the result of a submodule."""
    network, in_chans, size_hw = classifier.network, classifier.in_chans, classifier.size_hw
    try:
        operations = trace(network, keeps_buffers=True)
        if cut is None:
            cut = cut_before_head(operations, in_chans, size_hw)
        check_cut(operations, cut, in_chans, size_hw)
        return GraphBackbone(operations, cut)
    except NoGraphError as error:
        if cut is None and hasattr(network, "forward_features"):
            return TimmBackbone(network)
        names = [name for name, _ in network.named_modules() if name]
        if cut is not None and cut in names:
            return ModuleBackbone(network, cut)
        children = ", ".join(name for name, _ in network.named_children())
        raise CamtrainValueError(
            f"{str(error).rpartition(';')[0]}; name the submodule that gives its last feature map "
            f"with cut=, such as one of {children}, or give the network a forward_features."
        ) from error


class Backbone(nn.Module):
    """A network up to its cut; its names are kept under ``trunk.``."""

    trunk: Any  # the module that computes the features

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut = cut  # the layer it ends after
        self.layout = Layout()  # how the features are stored
        # (H, W) in pixels of the images it was built for; some networks take no others.
        self.size_hw: tuple[int, int] | None = None
        # The only (h, w) of the map that the classifier averages; None for any.
        self.map_hw: tuple[int, int] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, C, h, w).

        Raises:
            CamtrainValueError: The network does not take images of this size.
        """
        return self.features_by(self.run, images)

    def features_by(self, run: Callable[[Tensor], object], images: Tensor) -> Tensor:
        """``forward`` with another function ``run`` that gives the features as they are stored."""
        if images.ndim != 4:
            raise CamtrainValueError(
                f"images must be (B, in_chans, H, W), got {tuple(images.shape)}; add a missing "
                "batch axis with images[None]."
            )
        image_hw = (images.shape[2], images.shape[3])
        try:
            features = self.layout.to_map(run(images), image_hw)
        except Exception as error:
            if torch.compiler.is_compiling() or not self._fails_by_size(images):
                raise
            raise self._not_whole(images) or self._wrong_size(
                image_hw, first_line(error)
            ) from error
        if self.map_hw not in (None, tuple(features.shape[2:])) and not images.is_meta:
            reason = f"its head averages a window of {_as_text(self.map_hw)} pixels of the map"
            raise self._wrong_size(image_hw, f"{reason}, got {_as_text(features.shape[2:])}")
        return features

    def _fails_by_size(self, images: Tensor) -> bool:
        """Whether images fail that would not at the size the network is built for."""
        channels, image_hw = images.shape[1], (images.shape[2], images.shape[3])
        if images.is_meta or self.size_hw is None or self.size_hw == image_hw:
            return False
        return takes(self, channels, self.size_hw) and not takes(self, channels, image_hw)

    def _not_whole(self, images: Tensor) -> CamtrainValueError | None:
        """The error for a network that takes any number of whole patches, else None."""
        patch_hw = getattr(getattr(self.trunk, "patch_embed", None), "patch_size", None)
        if not isinstance(patch_hw, tuple):
            return None
        sides = tuple(zip(images.shape[2:], patch_hw, strict=True))
        height, width = (max(1, round(side / patch)) * patch for side, patch in sides)
        sizes = ((height, width), (height + patch_hw[0], width))  # one of them is not its own
        if not all(takes(self, images.shape[1], size_hw) for size_hw in sizes):
            return None
        return CamtrainValueError(
            f"The network takes images that its patches of {_as_text(patch_hw)} pixels divide, got "
            f"{_as_text(images.shape[2:])}; set size to {_as_text((height, width))}, for example."
        )

    def _wrong_size(self, image_hw: tuple[int, int], reason: str) -> CamtrainValueError:
        right = (
            f"images of {_as_text(self.size_hw)} pixels"
            if self.size_hw
            else "images of another size"
        )
        return CamtrainValueError(
            f"The network takes {right}, got {_as_text(image_hw)} ({reason}); set size accordingly."
        )

    def run(self, images: Tensor) -> object:
        """The features, as the network stores them."""
        raise NotImplementedError


class GraphBackbone(Backbone):
    """A network traced up to its cut."""

    def __init__(self, operations: Operations, cut: str) -> None:
        super().__init__(cut)
        network, graph = operations.network, graph_until(operations, cut)
        name = type(network).__name__
        if not operations.asks_for_mode:
            self.trunk = fx.GraphModule(network, graph, name)
            self._keep_constants_out()
            return
        keeps_buffers = operations.keeps_buffers
        in_training = graph_until(trace(network, training=True, keeps_buffers=keeps_buffers), cut)
        calls, calls_in_training = (
            # Constants are numbered in the order of tracing.
            [(node.op, node.op == "get_attr" or str(node.target)) for node in mode.nodes]
            for mode in (graph, in_training)
        )
        if calls != calls_in_training:
            raise NoGraphError(
                f"The forward pass of {name} takes another way in training than in evaluation "
                f"before its layer {cut}, so that it cannot be cut there."
            )
        self.trunk = DualGraphModule(network, in_training, graph, name).train(network.training)
        self._keep_constants_out()

    def _keep_constants_out(self) -> None:
        """Keep constants, which tracing makes and numbers, out of the state that files hold."""
        constants = {name for name in self.trunk._buffers if name.startswith(_CONSTANT)}
        self.trunk._non_persistent_buffers_set |= constants

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *options: Any) -> None:
        for name in [name for name in state if name.startswith(f"{prefix}trunk.{_CONSTANT}")]:
            del state[name]  # of a file of an earlier version
        super()._load_from_state_dict(state, prefix, *options)

    @property
    def graph(self) -> fx.Graph:
        """The operations of the trunk in evaluation mode."""
        trunk = self.trunk
        graph: fx.Graph = trunk.eval_graph if isinstance(trunk, DualGraphModule) else trunk.graph
        return graph

    def run(self, images: Tensor) -> object:
        """The result of the layer at the cut."""
        trunk = self.trunk
        # A trunk with a graph per mode changes it in `train`, but Lightning restores modes by
        # setting `training`.
        if isinstance(trunk, DualGraphModule) and not torch.compiler.is_compiling():
            graph = trunk.train_graph if trunk.training else trunk.eval_graph
            if trunk.graph is not graph:
                trunk.graph = graph
        return trunk(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphBackbone:
        """A copy in the same modes: alone, the trunk would copy itself into training mode."""
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copies = dict(clone.named_modules())
        for name, module in self.named_modules():
            copies[name].training = module.training
        clone._keep_constants_out()
        return clone


class _Reached(Exception):
    """Ends a forward pass; holds the result of a submodule."""


class ModuleBackbone(Backbone):
    """A network up to a submodule, for those that cannot be traced: its forward pass ends there."""

    def __init__(self, network: nn.Module, cut: str) -> None:
        super().__init__(cut)
        self.trunk = network

    def run(self, images: Tensor) -> object:
        """The result of the submodule in its first call."""

        def leave(_module: nn.Module, _inputs: object, result: object) -> None:
            raise _Reached(result)

        handle = self.trunk.get_submodule(self.cut).register_forward_hook(leave)
        try:
            self.trunk(images)
        except _Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise CamtrainValueError(
            f"cut {self.cut} of {type(self.trunk).__name__} is not reached by its forward pass; "
            "choose another submodule."
        )


class TimmBackbone(Backbone):
    """A timm network up to the features that its head would pool."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__("forward_features")
        self.trunk = network

    def run(self, images: Tensor) -> object:
        """The result of ``forward_features``."""
        return self.trunk.forward_features(images)


class TimmBlocks(TimmBackbone):
    """A timm network up to one of the blocks that it lists, for those that cannot be traced."""

    def __init__(self, network: nn.Module, cut: str) -> None:
        """Find the block; raise CamtrainValueError with those listed if there is none."""
        super().__init__(network)
        self.blocks = dict(listed_blocks(network))
        if cut not in self.blocks or not hasattr(network, "forward_intermediates"):
            blocks = ", ".join(
                f"{name} (stride {info['reduction']})" for name, info in self.blocks.items()
            )
            raise CamtrainValueError(
                f"cut must be None or one of the blocks of {type(network).__name__}, whose forward "
                f"pass cannot be read as a graph, got {cut!r}. Its blocks are: {blocks}."
            )
        self.cut = cut
        self.index = list(self.blocks).index(cut)

    def run(self, images: Tensor) -> object:
        """The result of the block, as a map."""
        [features] = self.trunk.forward_intermediates(
            images, indices=[self.index], intermediates_only=True, stop_early=True
        )
        expected = self.blocks[self.cut]["num_chs"]
        if features.shape[1] != expected:
            raise CamtrainValueError(
                f"cut {self.cut} of {type(self.trunk).__name__} should give {expected} channels, "
                f"got {features.shape[1]}; choose another block, or leave cut out."
            )
        return features


def listed_blocks(network: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """The blocks that a timm network lists, with channels ``num_chs`` and stride ``reduction``.

    A network of several branches may list a name more than once.
    """
    infos: Any = getattr(network, "feature_info", ())
    return [(str(info["module"]), info) for info in infos]


def _as_text(size_hw: Sequence[int] | None) -> str:
    return "x".join(map(str, size_hw or ()))
