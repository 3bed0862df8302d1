"""The graph of a network, for images of any size where the network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from camtrain.errors import CamtrainValueError
from camtrain.inference.export.extra import quiet_exporter
from camtrain.inference.export.graph import ExportNet, ExportOptions
from camtrain.model.camnet import CAMNet
from camtrain.model.layout import Layout
from camtrain.model.probe import takes

_BATCH = 2  # of the images that the graph is read from; 1 would become a constant


@dataclass(frozen=True)
class Program:
    """A network as a graph of torch's own operators.

    Attributes:
        exported: What ``torch.export`` made of it.
        options: What it takes and gives.
        input_hw: (H, W) of the only images it takes, in pixels; None for any size.
    """

    exported: ExportedProgram
    options: ExportOptions
    input_hw: tuple[int, int] | None


def export_program(net: CAMNet, options: ExportOptions) -> Program:
    """The graph of a network; its batch is free, and so are height and width where they can be.

    Networks of fixed input size keep theirs, and so does one that ``torch.export`` cannot read with
    free sizes.

    Raises:
        CamtrainValueError: ``torch.export`` cannot read the network.
    """
    assert net.preprocessing is not None
    module = ExportNet(net, options).eval()
    sizes_hw = check_sizes(net)
    own_hw = (net.preprocessing.size[0], net.preprocessing.size[1])
    if len(sizes_hw) > 1:
        exported = _try_export(module, net, sizes_hw[0], is_free=True)
        if isinstance(exported, ExportedProgram):
            return Program(exported, options, None)
    exported = _try_export(module, net, own_hw, is_free=False)
    if isinstance(exported, Exception):
        reason = " ".join(str(exported).split())
        raise CamtrainValueError(
            f"torch.export cannot read this network ({reason:.300}); export it to safetensors."
        ) from exported
    return Program(exported, options, own_hw)


def check_sizes(net: CAMNet) -> list[tuple[int, int]]:
    """Two sizes (H, W) with H != W that the network takes; its own alone where it takes no others.

    Odd ones where it takes such, near its own, in pixels.
    """
    assert net.preprocessing is not None
    height, width = net.preprocessing.size
    channels = len(net.preprocessing.mean)
    tried = [
        (height, width - width // 8 + 1 - width % 2),
        (height + height // 8 + 1 - height % 2, width),
        (height, width + 32),
        (height + 64, width),
    ]
    # The grid of a row of tokens is found by a square root, which would become a constant.
    layout = getattr(net.backbone, "layout", Layout())
    is_fixed = getattr(net.backbone, "map_hw", None) is not None or layout.order in ("nlc", "ncl")
    found = [size for size in tried if not is_fixed and takes(net, channels, size)]
    return found[:2] if len(found) > 1 else [(height, width)]


def example_images(net: CAMNet, options: ExportOptions, size: Sequence[int], batch: int) -> Tensor:
    """Random input of an exported network, (batch, C, H, W): uint8, or float32 about normalized."""
    assert net.preprocessing is not None
    shape = (batch, len(net.preprocessing.mean), *size)
    generator = torch.Generator().manual_seed(0)
    if options.raw:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _try_export(
    module: ExportNet, net: CAMNet, size: tuple[int, int], *, is_free: bool
) -> ExportedProgram | Exception:
    """The graph, or why there is none: each network fails in its own way."""
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO} if is_free else {0: Dim.AUTO}
    images = example_images(net, module.options, size, _BATCH)
    try:
        with torch.no_grad(), quiet_exporter():
            exported = torch.export.export(
                module, (images,), dynamic_shapes={"images": free}, strict=False
            )
    except Exception as error:
        return error
    [shape] = [node.meta["val"].shape for node in exported.graph.nodes if node.name == "images"]
    became_constant = [axis for axis in free if isinstance(shape[axis], int)]
    if became_constant:
        return CamtrainValueError(f"axes {became_constant} of its input became constants")
    for part in exported.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:  # else files would name the lines of source, with paths
                node.meta = {name: value for name, value in node.meta.items() if name == "val"}
    return exported
