"""What is exported: a network as a module of one input and a few outputs, computed in the graph."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.inference.export.layers import with_exportable_layers
from camtrain.maps import LSE_SHARPNESS, heatmaps, pool_maps, project, project_classes
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import Refine, check_refine, refine_maps, stage_vectors
from camtrain.model.stages import run_with_stages

ExportPrecision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class ExportOptions:
    """What an exported file takes and gives.

    Attributes:
        raw: Its input are uint8 pixels, (B, C, H, W), colours in the order RGB, and it normalizes
            them; else it is float32, normalized.
        top: It gives the maps of that many best classes, and their numbers; None for all K.
        heatmaps: It also gives heatmaps: the maps upsampled to the input and normalized (minmax);
            of refined maps where it gives those.
        refine: ``affinity``: it also gives ``refined_maps``; the network must refine its maps.
        precision: ``fp16``: backbone and neck compute in float16; pool, head and maps in float32.
    """

    raw: bool = False
    top: int | None = None
    heatmaps: bool = False
    refine: Refine = "none"
    precision: ExportPrecision = "fp32"

    def __post_init__(self) -> None:
        """Check every value once, at the door."""
        if self.top is not None and self.top < 1:
            raise CamtrainValueError(f"top must be at least 1, got {self.top}.")
        check_refine(self.refine)
        if self.precision not in get_args(ExportPrecision):
            raise CamtrainValueError(
                f"precision must be one of {', '.join(get_args(ExportPrecision))}, got "
                f"{self.precision!r}."
            )

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs in order."""
        extra = {
            "classes": self.top is not None,
            "refined_maps": self.refine != "none",
            "heatmaps": self.heatmaps,
        }
        return ("logits", "maps", *(name for name, is_given in extra.items() if is_given))

    def to_dict(self) -> dict[str, Any]:
        """The plain values, for the metadata of the file."""
        said = asdict(self)
        if self.refine == "none":
            del said["refine"]  # older readers do not know it
        return said


class ExportNet(nn.Module):
    """A CAM network as it is exported: ``images`` in, the tensors of ``output_names`` out.

    Its arithmetic is that of ``CAMNet.maps_of``, without autocast, which exporters cannot express.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: CAMNet, options: ExportOptions) -> None:
        """Copy the network; the one given stays as it is."""
        super().__init__()
        assert net.preprocessing is not None
        self.options = options
        self.preprocessing = net.preprocessing
        self.top = None if options.top is None else min(options.top, net.head.out_features)
        copied = with_exportable_layers(net).cpu()
        self.pool = copied.pool
        self.head = copied.head.float().requires_grad_(False)
        copied.requires_grad_(False)
        self.backbone, self.neck = copied.backbone, copied.neck
        self.stages = net.stages if options.refine != "none" else None
        if options.precision == "fp16":
            self.backbone.half()
            self.neck.half()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(net.preprocessing, name))[:, None, None]
            self.register_buffer(name, values, persistent=options.raw)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to the tensors of ``options.output_names``.

        Logits (B, K); maps (B, K, h, w) or of the top k; classes (B, k) int64 with ``top``;
        refined_maps (B, k, h, w); heatmaps (B, k, H, W) in [0, 1].
        """
        size = (images.shape[2], images.shape[3])
        if self.options.raw:
            images = self._normalized(images)
        if self.options.precision == "fp16":
            images = images.half()
        if self.stages is None:
            features, stages = self.backbone(images), list[Tensor]()
        else:
            features, stages = run_with_stages(self.backbone, self.stages, images)
        features = self.neck(features).float()
        logits = self._logits(features)
        outputs = [logits]
        if self.top is None:
            maps = project(features, self.head.weight)
            outputs.append(maps)
        else:
            classes = logits.topk(self.top).indices
            maps = project_classes(features, self.head.weight, classes)
            outputs += [maps, classes]
        if stages:
            vectors = stage_vectors(stages, (features.shape[2], features.shape[3]))
            maps = refine_maps(maps, vectors)
            outputs.append(maps)
        if self.options.heatmaps:
            outputs.append(heatmaps(maps, size=size))
        return tuple(outputs)

    def _logits(self, features: Tensor) -> Tensor:
        if self.pool in ("avg", "gmp"):
            return F.linear(pool_maps(features, self.pool), self.head.weight, self.head.bias)
        maps = project(features, self.head.weight)
        if self.pool == "max":
            return pool_maps(maps, self.pool) + self.head.bias
        # As `pool_maps`, whose math.log of the number of pixels would become a constant.
        scaled = LSE_SHARPNESS * maps
        peak = scaled.amax((-2, -1), keepdim=True)
        mean = (scaled - peak).exp().mean((-2, -1))
        return (mean.log() + peak[:, :, 0, 0]) / LSE_SHARPNESS + self.head.bias

    def _normalized(self, pixels: Tensor) -> Tensor:
        """As ``camtrain.data.normalize``, of which the branches on types are no matter here."""
        images = pixels.float() / 255
        if self.preprocessing.channel_order == "bgr":
            images = images.flip(1)
        return (images - self.mean) / self.std
