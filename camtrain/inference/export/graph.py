"""The graph of a network: one input, a few outputs, images of any size where the network can."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from camtrain.errors import CamtrainValueError, one_line
from camtrain.inference.export.layers import with_exportable_layers
from camtrain.inference.exported import ExportOptions, quiet_exporter
from camtrain.maps import heatmaps
from camtrain.model.camnet import CAMNet
from camtrain.model.probe import Layout, takes

_BATCH = 2  # of the images that the graph is traced with; 1 would become a constant


class ExportNet(nn.Module):
    """A network as it is exported: ``images`` in, the tensors of ``output_names`` out.

    Logits and maps are computed by ``CAMNet`` itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: CAMNet, options: ExportOptions) -> None:
        """Copy the network, which itself stays as it is."""
        super().__init__()
        assert net.preprocessing is not None
        self.options = options
        self.takes_bgr = net.preprocessing.channel_order == "bgr"
        self.net = with_exportable_layers(net).cpu().requires_grad_(False)
        self.net.dropout = nn.Dropout(0.0)
        self.net.head.float()
        if options.precision == "fp16":
            self.net.backbone.half()
            self.net.neck.half()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(net.preprocessing, name))[:, None, None]
            self.register_buffer(name, values, persistent=options.raw)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to the tensors of ``options.output_names``.

        Logits (B, K); maps (B, K, h, w) or of the top k; classes (B, k) int64 with ``top``;
        refined_maps (B, k, h, w); heatmaps (B, k, H, W) in [0, 1].
        """
        size = (images.shape[2], images.shape[3])
        if self.options.raw:  # as `camtrain.data.normalize`
            images = images.float() / 255
            images = ((images.flip(1) if self.takes_bgr else images) - self.mean) / self.std
        if self.options.precision == "fp16":
            images = images.half()
        is_refined = self.options.has_refined_maps
        compute = self.net.refined_maps if is_refined else self.net.class_maps
        logits, maps, classes, *refined = compute(images, top=self.options.top)
        outputs = [logits, maps, *([] if self.options.top is None else [classes]), *refined]
        if self.options.heatmaps:
            outputs.append(heatmaps(refined[0] if refined else maps, size=size))
        return tuple(outputs)


def export_program(
    net: CAMNet, options: ExportOptions
) -> tuple[ExportedProgram, tuple[int, int] | None]:
    """The graph of a network, of torch's own operators, and the only (H, W) of its images.

    Its batch is free, and so are height and width where they can be; then (H, W) is None. Networks
    of fixed input size keep their size, and so do those that ``torch.export`` cannot trace with
    free sizes.

    Raises:
        CamtrainValueError: ``torch.export`` cannot trace the network.
    """
    assert net.preprocessing is not None
    module = ExportNet(net, options).eval()
    sizes_hw = check_sizes(net)
    if len(sizes_hw) > 1:
        with suppress(Exception):  # each network fails in its own way
            return _export(module, sizes_hw[0], is_free=True), None
    input_hw = net.preprocessing.size
    try:
        return _export(module, input_hw, is_free=False), input_hw
    except Exception as error:
        raise CamtrainValueError(
            f"torch.export cannot read this network ({one_line(error)}); export it to safetensors."
        ) from error


def check_sizes(net: CAMNet) -> list[tuple[int, int]]:
    """Two sizes (H, W), in pixels, with H != W, or the network's size where it takes no others.

    They are near the network's size, and odd where the network takes odd sizes.
    """
    assert net.preprocessing is not None
    height, width = net.preprocessing.size
    channels = len(net.preprocessing.mean)
    candidates = [
        (height, width - width // 8 + 1 - width % 2),
        (height + height // 8 + 1 - height % 2, width),
        (height, width + 32),
        (height + 64, width),
    ]
    # The grid of a row of tokens is found by a square root, which would become a constant.
    layout = getattr(net.backbone, "layout", Layout())
    is_fixed = getattr(net.backbone, "map_hw", None) is not None or layout.order in ("nlc", "ncl")
    accepted = [size for size in candidates if not is_fixed and takes(net, channels, size)]
    return accepted[:2] if len(accepted) > 1 else [(height, width)]


def _export(module: ExportNet, size: tuple[int, int], *, is_free: bool) -> ExportedProgram:
    """The graph, traced with images of this size (H, W), which is free in it or stays."""
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO} if is_free else {0: Dim.AUTO}
    shape = (_BATCH, len(module.mean), *size)
    generator = torch.Generator().manual_seed(0)
    if module.options.raw:
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    else:
        images = torch.randn(shape, generator=generator)
    with torch.no_grad(), quiet_exporter():
        exported = torch.export.export(
            module, (images,), dynamic_shapes={"images": free}, strict=False
        )
    [traced] = [node.meta["val"].shape for node in exported.graph.nodes if node.name == "images"]
    became_constant = [axis for axis in free if isinstance(traced[axis], int)]
    if became_constant:
        raise CamtrainValueError(f"axes {became_constant} of its input became constants")
    for part in exported.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:  # without the lines and paths of the source code
                node.meta = {name: value for name, value in node.meta.items() if name == "val"}
    return exported
