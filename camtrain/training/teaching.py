"""A second stage that learns where to look from the first: its refined maps are soft targets.

Only the labels of pictures are used: what is learned is what the trained first stage and the
similarities of its features say about the true class. As in Wei et al., CVPR 2017 (arXiv
1703.08448), a network learns from another one's maps to cover more of the thing; ours are compared
by their correlation, since a heatmap does not change with the scale and the offset of its map.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.inference.bundle import read_bundle, read_checkpoint
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import Evidence
from camtrain.training.cache.key import hash_of_tensors


def map_disagreement(maps: Tensor, targets: Tensor) -> Tensor:
    """1 - r, r being Pearson's correlation over the places of a map.

    Args:
        maps: (B, h, w), class maps.
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
    return 1 - F.cosine_similarity(first, second, dim=1)


class Teacher:
    """A trained network whose refined maps are learned from.

    Args:
        path: A bundle or a checkpoint of this project.

    Attributes:
        net: The network; it refines its maps as it was shipped, or by affinity.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: It cannot be read, or its maps cannot be refined.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        read = read_checkpoint if path.suffix == ".ckpt" else read_bundle
        self.path = path
        self.net: CAMNet = read(path).net.requires_grad_(False)
        if self.net.refine == "none":
            self.net.set_refine("affinity")

    def check(self, net: CAMNet) -> None:
        """Refuse to teach another thing than was learned.

        Raises:
            CamtrainValueError: Classes, channels, means or deviations differ.
        """
        for name, own, other in (
            ("classes", _classes(self.net), _classes(net)),
            ("normalization", _normalization(self.net), _normalization(net)),
        ):
            if own != other:
                raise CamtrainValueError(
                    f"teacher {self.path} must have the {name} of the network it teaches, {other}, "
                    f"got {own}; train it on the same data."
                )

    def has_backbone(self, backbone: nn.Module) -> bool:
        """Whether this is its own backbone too, bit for bit, as where both are frozen."""
        return hash_of_tensors(self.net.backbone) == hash_of_tensors(backbone)

    @torch.no_grad()
    def maps(self, evidence: Evidence, labels: Tensor) -> Tensor:
        """Its refined maps (B, h, w) of the true classes, of what its backbone made of pictures."""
        evidence = Evidence(evidence.features.float(), evidence.vectors)
        with torch.autocast(labels.device.type, enabled=False):
            return self.net.shown_of(self.net.after_backbone(evidence), classes=labels).maps[:, 0]

    @torch.no_grad()
    def evidence(self, images: Tensor) -> Evidence:
        """What its backbone makes of pictures (B, C, H, W)."""
        return self.net.evidence(images)

    def to(self, device: torch.device) -> Teacher:
        """Move it."""
        self.net.to(device)
        return self


def check_teaching(task: str, weight: float, others: Mapping[str, object]) -> None:
    """Refuse what cannot be taught.

    Args:
        task: Of the network.
        weight: Of the maps in the loss.
        others: Settings that leave no map of one true class to compare, by name.

    Raises:
        CamtrainValueError: It cannot be.
    """
    if weight <= 0:
        raise CamtrainValueError(f"teacher_weight must be above 0, got {weight}.")
    given = [f"{name} {value}" for name, value in others.items() if value not in (0, "sgd")]
    if task == "multilabel":
        given.append("task multilabel")
    if given:
        raise CamtrainValueError(
            "teacher compares the maps of one true class of each picture, step by step, got "
            f"{given[0]}; leave one of them out."
        )


def _classes(net: CAMNet) -> object:
    return list(net.class_names) if net.class_names else net.head.out_features


def _normalization(net: CAMNet) -> object:
    found = net.preprocessing
    return found and (found.mean, found.std, found.channel_order)
