"""A teacher is a trained network whose refined maps are targets for the maps of another network.

As in Wei et al., CVPR 2017 (arXiv 1703.08448), a network learns from them to cover more of the
object, with image labels only. Here maps are compared by their correlation, since a heatmap does
not depend on the scale and the offset of its map.
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
from camtrain.training.cache.store import backbone_parts, hash_of_tensors

_FLAT = 1e-2  # the norm below which a map counts as constant; that of a trained one is about 100


def map_disagreement(maps: Tensor, targets: Tensor) -> Tensor:
    """1 - r for each picture, where r is Pearson's correlation over the places of its two maps.

    Args:
        maps: (B, h, w), class maps. For nearly constant maps r goes to 0, so that its gradient does
            not explode.
        targets: (B, h', w'), resized bilinearly if they have another size. For a constant target r
            and its gradient are 0.

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
    """A trained network, from whose refined maps another network learns.

    Args:
        path: A bundle or a checkpoint of this project.
        backbone: What builds the student, if that is a network of the user; the teacher may be too.

    Attributes:
        net: The network. If it was saved without a refinement, its maps are refined by affinity.
        hash: SHA-256 of its weights.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: The file cannot be read, or the maps cannot be refined.
    """

    def __init__(self, path: str | Path, backbone: object = None) -> None:
        self.path = Path(path)
        try:
            bundle = read_network(path)
        except CamtrainValueError:
            if backbone is None:
                raise
            bundle = read_network(path, backbone=backbone)
        self.net: CAMNet = bundle.net.requires_grad_(False)
        if self.net.refine == "none":
            self.net.set_refine("affinity")
        self.hash = hash_of_tensors(self.net)

    def check(self, net: CAMNet) -> None:
        """Check that the network to be taught has the same classes and the same normalization.

        Raises:
            CamtrainValueError: Classes, channels, means or deviations differ.
        """
        for name, required, actual in (
            ("classes", list(net.display_names), list(self.net.display_names)),
            ("normalization", _normalization(net), _normalization(self.net)),
        ):
            if required is not None and actual != required:
                raise CamtrainValueError(
                    f"teacher {self.path} must have the {name} of the network it teaches, "
                    f"{required}, got {actual}; train it on the same data."
                )

    def has_backbone_of(self, net: CAMNet) -> bool:
        """Whether both networks compute the same features: same architecture, same weights."""
        all_parts = [backbone_parts(self.net), backbone_parts(net)]
        for parts in all_parts:  # the origin of the head does not matter
            parts["architecture"].pop("own_head", None)
        return all_parts[0] == all_parts[1]

    def compare(
        self, net: CAMNet, images: Tensor, labels: Tensor, *, is_cached: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute the logits of a network, and how far its maps are from those of the teacher.

        Args:
            net: The network that learns.
            images: (B, C, H, W), or the packed output of the backbone that both share.
            labels: (B,), int64.
            is_cached: Whether ``images`` is the output of the backbone.

        Returns:
            The logits (B, K) of ``net``, and the mean of ``map_disagreement``, ().
        """
        if is_cached:
            backbone_output = BackboneOutput.unpacked(images.float(), self.net.vector_channels)
            features = net.neck(backbone_output.features)
        else:
            with torch.no_grad():
                backbone_output = self.net.backbone_output(images)
            features = net.features(images)
        output = net.maps_of(features, classes=labels)
        targets = self.maps(backbone_output, labels)
        return output.logits, map_disagreement(output.maps[:, 0], targets).mean()

    @torch.no_grad()
    def maps(self, backbone_output: BackboneOutput, labels: Tensor) -> Tensor:
        """The teacher's refined maps (B, h, w) of the true classes."""
        backbone_output = BackboneOutput(backbone_output.features.float(), backbone_output.vectors)
        with torch.autocast(labels.device.type, enabled=False):
            neck_output = self.net.apply_neck(backbone_output)
            return self.net.display_maps(neck_output, classes=labels).maps[:, 0]

    def to(self, device: torch.device) -> Teacher:
        """Move the network to a device."""
        if self.net.head.weight.device != device:
            self.net.to(device)
        return self


def check_teacher_settings(hparams: Mapping[str, Any]) -> None:
    """Check that the settings of ``CAMModule`` suit its teacher, if it has one.

    A teacher needs one true class per picture, and a network that is trained step by step.

    Raises:
        CamtrainValueError: A setting excludes the teacher, or its weight is not above 0.
    """
    if hparams["teacher"] is None:
        return
    if hparams["teacher_weight"] <= 0:
        raise CamtrainValueError(
            f"teacher_weight must be above 0, got {hparams['teacher_weight']}."
        )
    required = {"mixup": 0, "cutmix": 0, "head_solver": "sgd", "compile": False}
    for name, value in {**required, "task": "multiclass"}.items():
        if hparams[name] != value:
            raise CamtrainValueError(
                "teacher compares the maps of one true class of each picture, step by step, got "
                f"{name} {hparams[name]}; leave one of them out."
            )


def _normalization(net: CAMNet) -> object:
    """Means, deviations and channel order; None if the network has no preprocessing."""
    preprocessing = net.preprocessing
    return preprocessing and (preprocessing.mean, preprocessing.std, preprocessing.channel_order)
