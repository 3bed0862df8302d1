"""A second stage that learns where to look from the first: its refined maps are soft targets.

Only the labels of pictures are used: what is learned is what the trained first stage and the
similarities of its features say about the true class. As in Wei et al., CVPR 2017 (arXiv
1703.08448), a network learns from another one's maps to cover more of the thing; ours are compared
by their correlation, since a heatmap does not change with the scale and the offset of its map.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.inference.bundle import read_network
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import BackboneOutput
from camtrain.training.cache.key import backbone_parts, hash_of_tensors

_FLAT = 1e-2  # the norm below which a map counts as constant; a trained one has some hundred


def map_disagreement(maps: Tensor, targets: Tensor) -> Tensor:
    """1 - r, r being Pearson's correlation over the places of a map.

    Args:
        maps: (B, h, w), class maps. Of nearly constant ones r goes to 0, so that its gradient does
            not explode.
        targets: (B, h', w'), resized bilinearly where they have another size. A constant one says
            nothing: r is 0, and so is its gradient.

    Returns:
        (B,), in [0, 2].

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0, 2.0]]])
        >>> targets = torch.tensor([[[5.0, 7.0, 9.0]], [[2.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]]])
        >>> map_disagreement(maps.expand(3, 1, 3), targets).round(decimals=4).tolist()
        [0.0, 2.0, 1.0]
    """
    size = (maps.shape[1], maps.shape[2])
    targets = F.interpolate(targets[:, None], size=size, mode="bilinear", align_corners=False)
    first, second = (t.flatten(1) - t.flatten(1).mean(1, keepdim=True) for t in (maps, targets))
    return 1 - F.cosine_similarity(first, F.normalize(second, dim=1), dim=1, eps=_FLAT)


class Teacher:
    """A trained network whose refined maps are learned from.

    Args:
        path: A bundle or a checkpoint of this project.

    Attributes:
        net: The network; it refines its maps as it was shipped, or by affinity.
        hash: SHA-256 of its weights.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: It cannot be read, or its maps cannot be refined.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.net: CAMNet = read_network(path).net.requires_grad_(False)
        if self.net.refine == "none":
            self.net.set_refine("affinity")
        self.hash = hash_of_tensors(self.net)

    def check(self, net: CAMNet) -> None:
        """Refuse to teach a network of other classes or another normalization.

        Raises:
            CamtrainValueError: Classes, channels, means or deviations differ.
        """
        for name, own, other in (
            ("classes", list(self.net.display_names), list(net.display_names)),
            ("normalization", _normalization(self.net), _normalization(net)),
        ):
            if own != other and other is not None:
                raise CamtrainValueError(
                    f"teacher {self.path} must have the {name} of the network it teaches, {other}, "
                    f"got {own}; train it on the same data."
                )

    def has_backbone_of(self, net: CAMNet) -> bool:
        """Whether both make the same features: built in the same way, of the same weights."""
        own, other = backbone_parts(self.net), backbone_parts(net)
        for parts in (own, other):  # how the head came about does not matter
            parts["architecture"].pop("own_head", None)
        return own == other

    def teach(
        self, net: CAMNet, images: Tensor, labels: Tensor, *, is_cached: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute the logits of a network, and compare its maps with those of the teacher.

        Args:
            net: The network that learns.
            images: (B, C, H, W), or the packed output of the backbone that both have.
            labels: (B,), int64.
            is_cached: Whether ``images`` is the output of the backbone.

        Returns:
            The logits (B, K) of ``net``, and the mean of ``map_disagreement``, ().
        """
        if is_cached:
            backbone_output = BackboneOutput.unpacked(images.float(), self.net.vector_channels)
            features = net.neck(backbone_output.features)
        else:
            backbone_output, features = self.backbone_output(images), net.features(images)
        output = net.maps_of(features, classes=labels)
        disagreement = map_disagreement(
            output.maps[:, 0], self.maps(backbone_output, labels)
        ).mean()
        return output.logits, disagreement

    @torch.no_grad()
    def maps(self, backbone_output: BackboneOutput, labels: Tensor) -> Tensor:
        """The teacher's refined maps (B, h, w) of the true classes."""
        backbone_output = BackboneOutput(backbone_output.features.float(), backbone_output.vectors)
        with torch.autocast(labels.device.type, enabled=False):
            neck_output = self.net.apply_neck(backbone_output)
            return self.net.display_maps(neck_output, classes=labels).maps[:, 0]

    @torch.no_grad()
    def backbone_output(self, images: Tensor) -> BackboneOutput:
        """The output of the teacher's backbone for images (B, C, H, W)."""
        return self.net.backbone_output(images)

    def to(self, device: torch.device) -> Teacher:
        """Move the network to a device."""
        if self.net.head.weight.device != device:
            self.net.to(device)
        return self


def check_teaching(hparams: Mapping[str, Any]) -> None:
    """Refuse settings of ``CAMModule`` that leave no map of one true class to compare.

    Raises:
        CamtrainValueError: There is a teacher, and such a setting or no positive weight.
    """
    if hparams["teacher"] is None:
        return
    if hparams["teacher_weight"] <= 0:
        raise CamtrainValueError(
            f"teacher_weight must be above 0, got {hparams['teacher_weight']}."
        )
    defaults: dict[str, object] = {
        **{"mixup": 0, "cutmix": 0, "head_solver": "sgd", "compile": False},
        "task": "multiclass",
    }
    changed = [name for name, default in defaults.items() if hparams[name] != default]
    if changed:
        raise CamtrainValueError(
            "teacher compares the maps of one true class of each picture, step by step, got "
            f"{changed[0]} {hparams[changed[0]]}; leave one of them out."
        )


def _normalization(net: CAMNet) -> object:
    preprocessing = net.preprocessing
    return preprocessing and (preprocessing.mean, preprocessing.std, preprocessing.channel_order)
