"""The trunk of a network, up to its cut, as a module that gives feature maps."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

from camtrain.errors import CamtrainValueError, first_line
from camtrain.model.cut import CUTS, NoGraphError, check_cut, default_cut, leaf_types
from camtrain.model.layout import Layout, find_layout
from camtrain.model.probe import Probe, drop_unused, probe, takes
from camtrain.preprocessing import Preprocessing


class Classifier(NamedTuple):
    """A network before it is cut, and what its source knows of it.

    Attributes:
        network: As its library builds it; the trunk for ``camtrain/...``.
        name: ``library/model``.
        in_chans: Channels of the images.
        preprocessing: The library's, with the size of images that the network is built for.
    """

    network: nn.Module
    name: str
    in_chans: int
    preprocessing: Preprocessing


def trunk_of(classifier: Classifier, cut: str | None) -> tuple[nn.Module, Probe]:
    """The backbone that a classifier becomes, which takes its network apart.

    Args:
        classifier: Any.
        cut: The layer after which it is cut off; None for the usual one.

    Returns:
        The backbone, and the record of a forward pass on images of the classifier's size.

    Raises:
        CamtrainValueError: There is no such layer, or no feature map there.
    """
    network, name, in_chans, preprocessing = classifier
    size_hw = preprocessing.size
    if cut is None and name.startswith("camtrain/"):
        trunk = nn.Sequential(OrderedDict(trunk=network))  # named like every backbone
        return trunk, probe(trunk, in_chans, size_hw)
    backbone = _backbone_of(classifier, cut)
    probed = probe(backbone, in_chans, size_hw)
    last = probed.layers[-1]
    is_timm = isinstance(backbone, TimmBackbone)
    if is_timm and isinstance(last.module, nn.MaxPool2d):
        backbone.set_submodule(last.name, nn.Identity())
        probed = probe(backbone, in_chans, size_hw)
    channels = getattr(network, "num_features", None)
    prefix = getattr(network, "num_prefix_tokens", None)
    backbone.layout = find_layout(probed.shape, size_hw, channels=channels, prefix=prefix)
    backbone.size_hw = size_hw
    if is_timm:  # a graph holds only the layers that it uses
        drop_unused(backbone, probed)
    features = backbone.layout.to_map(torch.empty(probed.shape, device="meta"), size_hw)
    return backbone, probed._replace(shape=tuple(features.shape))


def _backbone_of(classifier: Classifier, cut: str | None) -> Backbone:
    network, name, in_chans, preprocessing = classifier
    is_timm = name.startswith("timm/")
    if cut is None:
        if is_timm and name not in CUTS:
            return TimmBackbone(network)
        return GraphBackbone(network, CUTS.get(name) or default_cut(network))
    try:
        check_cut(network, cut, in_chans, preprocessing.size)
        return GraphBackbone(network, cut)
    except NoGraphError:
        if not is_timm:
            raise
        return TimmBlocks(network, cut)


class Backbone(nn.Module):
    """A network up to its cut; its names are kept under ``trunk.``.

    Attributes:
        trunk: The module that computes the features.
        cut: The layer it ends after.
        layout: How the features are stored.
        size_hw: (H, W) of the images it was built for, in pixels; some networks take no others.
        map_hw: The only (h, w) of the map that the classifier averages; None for any.
    """

    trunk: nn.Module

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut = cut
        self.layout = Layout()
        self.size_hw: tuple[int, int] | None = None
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
            raise self._wrong_size(image_hw, first_line(error)) from error
        if self.map_hw not in (None, tuple(features.shape[2:])) and not images.is_meta:
            reason = f"its head averages a window of {_x(self.map_hw)} pixels of the map"
            raise self._wrong_size(image_hw, f"{reason}, got {_x(features.shape[2:])}")
        return features

    def _fails_by_size(self, images: Tensor) -> bool:
        """Whether the size is the cause of a failure: images of the size it is built for work."""
        channels, image_hw = images.shape[1], (images.shape[2], images.shape[3])
        if images.is_meta or self.size_hw in (None, image_hw):
            return False
        assert self.size_hw is not None
        return takes(self, channels, self.size_hw) and not takes(self, channels, image_hw)

    def _wrong_size(self, image_hw: tuple[int, int], reason: str) -> CamtrainValueError:
        right = f"images of {_x(self.size_hw)} pixels" if self.size_hw else "images of another size"
        return CamtrainValueError(
            f"The network takes {right}, got {_x(image_hw)} ({reason}); set size accordingly."
        )

    def run(self, images: Tensor) -> object:
        """The features, as the network stores them."""
        raise NotImplementedError


class GraphBackbone(Backbone):
    """A network traced up to its cut."""

    def __init__(self, network: nn.Module, cut: str) -> None:
        super().__init__(cut)
        self.trunk = create_feature_extractor(
            network,
            {cut: "features"},
            tracer_kwargs={"leaf_modules": leaf_types(network)},
            suppress_diff_warning=True,
        )
        graphs = cast("tuple[fx.Graph, ...]", (self.trunk.train_graph, self.trunk.eval_graph))
        in_training, in_evaluation = (
            # Constants are numbered in the order of tracing.
            [(node.op, node.op == "get_attr" or str(node.target)) for node in graph.nodes]
            for graph in graphs
        )
        if in_training != in_evaluation:
            raise NoGraphError(
                f"The forward pass of {type(network).__name__} takes another way in training than "
                f"in evaluation before its layer {cut}, so that it cannot be cut there."
            )

    def run(self, images: Tensor) -> object:
        """The result of the layer at the cut."""
        # The trunk has a graph per mode and changes it in `train`, but Lightning restores modes by
        # setting `training`.
        graph = self.trunk.train_graph if self.trunk.training else self.trunk.eval_graph
        if not torch.compiler.is_compiling() and self.trunk.graph is not graph:
            self.trunk.graph = graph
        features: object = self.trunk(images)["features"]
        return features

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphBackbone:
        """A copy in the same modes: alone, the trunk would copy itself into training mode."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copies = dict(copied.named_modules())
        for name, module in self.named_modules():
            copies[name].training = module.training
        return copied


class TimmBackbone(Backbone):
    """A timm network up to the features that its head would pool."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__("forward_features")
        self.trunk = network

    def run(self, images: Tensor) -> object:
        """The result of ``forward_features``."""
        run = cast("Callable[[Tensor], object]", self.trunk.forward_features)
        return run(images)


class TimmBlocks(TimmBackbone):
    """A timm network up to one of the blocks that it lists, for those that cannot be traced."""

    def __init__(self, network: nn.Module, cut: str) -> None:
        """Find the block.

        Raises:
            CamtrainValueError: The network lists no such block; names those it lists.
        """
        super().__init__(network)
        listed: Any = getattr(network, "feature_info", ())
        self.blocks = {str(info["module"]): info for info in listed}
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
        run = cast("Callable[..., list[Tensor]]", self.trunk.forward_intermediates)
        features = run(images, indices=[self.index], intermediates_only=True, stop_early=True)[0]
        listed = self.blocks[self.cut]["num_chs"]
        if features.shape[1] != listed:
            raise CamtrainValueError(
                f"cut {self.cut} of {type(self.trunk).__name__} should give {listed} channels, got "
                f"{features.shape[1]}; choose another block, or leave cut out."
            )
        return features


def _x(size_hw: Sequence[int] | None) -> str:
    return "x".join(map(str, size_hw or ()))
