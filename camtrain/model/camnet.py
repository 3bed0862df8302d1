"""The CAM network: backbone, neck, pool, head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.header import Description
from camtrain.labels import Task, check_task, class_scores
from camtrain.maps import CAMOutput, PoolName, check_classes, pool_maps, project, project_classes
from camtrain.model.foreground import ForegroundHead
from camtrain.model.images import checked_images, run_backbone, without_autocast
from camtrain.model.modules import recipe_of
from camtrain.model.refine import (
    BackboneOutput,
    Refine,
    RefinedOutput,
    check_refine,
    hashed_channels,
    positive_maps,
    refine_maps,
    stage_vectors,
)
from camtrain.model.stages import Stages, find_stages, run_with_stages
from camtrain.preprocessing import Preprocessing


class CAMNet(nn.Module):
    """A classifier whose linear head, applied before the pooling, gives a map per class.

    ``pool(maps) + head.bias == logits`` for every class, whatever the size of the images. The one
    exception is ``pool="gmp"``, which pools features before the head, as the paper's GMP does.

    Attributes:
        backbone: (B, in_chans, H, W) to a feature map, the trunk of a known network up to its cut.
        neck: The convolutions that the conversion adds; identity without any.
        head: The linear classifier, weight (K, C), bias (K).
        pool: How a class map becomes its logit: ``avg``, ``max``, ``lse`` or ``gmp``.
        task: ``multiclass``: one class per picture, softmax; ``multilabel``: any number, sigmoid.
        class_names: K names, or None.
        preprocessing: What must be done to pictures before the network sees them; None if unknown.
        recipe: The arguments that build this architecture again; None for one built by hand.
        refine: What heatmaps are made of: ``none``, the class maps; ``affinity``, the refined maps.
        stages: The layers by which refinement compares places, and which the foreground head reads;
            None where there is neither.
        foreground: The head that learns where a thing is, whatever its class; None without one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Linear,
        *,
        neck: nn.Module | None = None,
        pool: PoolName = "avg",
        dropout: float = 0.0,
        task: Task = "multiclass",
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Identity() if neck is None else neck
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.pool: PoolName = pool
        self.task: Task = check_task(task)
        self.preprocessing = preprocessing
        self.recipe = recipe
        self.refine: Refine = "none"
        self.stages: Stages | None = None
        self.foreground: ForegroundHead | None = None
        self.class_names: tuple[str, ...] | None = None
        if class_names is not None:
            self.name_classes(class_names)

    def name_classes(self, class_names: Sequence[str]) -> None:
        """Give the K classes their names.

        Raises:
            CamtrainValueError: The number of names is not K.
        """
        if len(class_names) != self.head.out_features:
            raise CamtrainValueError(
                f"class_names must hold one name for each of the {self.head.out_features} classes, "
                f"got {len(class_names)}."
            )
        self.class_names = tuple(class_names)

    @property
    def display_names(self) -> tuple[str, ...]:
        """The class names; the numbers of the classes where they have no names."""
        return self.class_names or tuple(map(str, range(self.head.out_features)))

    @property
    def description(self) -> Description:
        """What the network knows of itself beside its tensors, with the default threshold."""
        recipe = self.recipe
        if recipe is None:  # built by hand
            convs = (m for m in self.backbone.modules() if isinstance(m, nn.Conv2d))
            in_chans = next((conv.in_channels for conv in convs), 3)
            changes = {"pool": self.pool, "dropout": self.dropout.p, "is_whole": True}
            recipe = recipe_of(self.backbone, self.head.out_features, in_chans, **changes)
        foreground = {} if self.foreground is None else {"foreground": True}
        return Description(
            architecture={**recipe, "task": self.task, **foreground},
            class_names=self.class_names,
            preprocessing=self.preprocessing,
            task=self.task,
            refine=self.refine,
            refine_layers=self.stages.layers if self.stages else (),
        )

    def restore(self, description: Description) -> None:
        """Take class names, preprocessing and refinement from a stored description.

        Raises:
            CamtrainValueError: They do not fit the network.
        """
        if description.class_names is not None:
            self.name_classes(description.class_names)
        if description.preprocessing is not None:
            self.preprocessing = description.preprocessing
        if description.refinement != self.description.refinement:
            self.set_refine(check_refine(description.refine), description.refine_layers or None)

    def set_refine(self, refine: Refine, layers: Sequence[str] | None = None) -> CAMNet:
        """Choose what heatmaps are made of: class maps, or class maps refined by affinity.

        Weights, logits and class maps stay as they are. Scores, pictures, bundles and exported
        files of this network use the refined maps.

        Args:
            refine: ``none`` or ``affinity``, see ``camtrain.model.refine``.
            layers: Layers of the backbone, named as ``cut`` is, by whose features places are
                compared; None for three blocks that end near 5/8, 6/8 and 7/8 of the way.

        Returns:
            The network itself.

        Raises:
            CamtrainValueError: ``refine`` is unknown, layers are given although nothing is refined,
                the backbone has no such layer, or none that gives a map.
            CamtrainTypeError: ``layers`` is no list.
        """
        if check_refine(refine) == "none" and self.foreground is None:
            if layers is not None:
                raise CamtrainValueError(
                    f"refine_layers is for refine=affinity and for foreground, got {list(layers)} "
                    "with neither."
                )
            self.refine, self.stages = refine, None
            return self
        if self.foreground is None or layers is not None:
            stages = self._stages_of(layers)
            if self.foreground is not None and stages != self.stages:
                self.foreground = self.foreground.of_other(stages.channels)
            self.stages = stages
        self.refine = refine
        return self

    def add_foreground(self) -> CAMNet:
        """Add a new foreground head, if there is none, and return the network itself.

        Logits and class maps stay as they are. Heatmaps are made of the positive class maps times
        the foreground, which affinity refinement then spreads. Training teaches the head, see
        ``camtrain.model.foreground``. Raises CamtrainValueError without layers to read.
        """
        if self.foreground is not None:
            return self
        self.stages = self.stages or self._stages_of(None)
        self.foreground = ForegroundHead(self.stages.channels).train(self.training)
        self.foreground.to(self.head.weight.device)
        if self.recipe is not None:
            self.recipe = {**self.recipe, "foreground": True}
        return self

    def _stages_of(self, layers: Sequence[str] | None) -> Stages:
        if isinstance(layers, str):
            raise CamtrainTypeError(f"refine_layers must be a list of names, got {layers!r}.")
        preprocessing = self.preprocessing or Preprocessing()  # 224x224, three channels
        size_hw = getattr(self.backbone, "size_hw", None) or preprocessing.size
        in_chans = self.recipe["in_chans"] if self.recipe else len(preprocessing.mean)
        return find_stages(self.backbone, in_chans, size_hw, layers)

    def features(self, images: Tensor) -> Tensor:
        """The feature map that the class maps are made of, (B, C, h, w)."""
        images = checked_images(self, images)
        features: Tensor = self.neck(run_backbone(self.backbone, self.backbone, images))
        return features

    def backbone_output(self, images: Tensor) -> BackboneOutput:
        """Features of the backbone, and vectors of its stages if its maps are made with them."""
        images = checked_images(self, images)
        if self.stages is None:
            features: Tensor = run_backbone(self.backbone, self.backbone, images)
            return BackboneOutput(features, features[:, :0])
        run = partial(run_with_stages, self.backbone, self.stages)
        features, stages = run_backbone(self.backbone, run, images)
        with without_autocast(features):
            vectors = stage_vectors(stages, (features.shape[2], features.shape[3]))
        return BackboneOutput(features, vectors)

    def apply_neck(self, backbone_output: BackboneOutput) -> BackboneOutput:
        """The backbone's output after the neck, for ``display_maps``."""
        return BackboneOutput(self.neck(backbone_output.features), backbone_output.vectors)

    @property
    def vector_channels(self) -> int:
        """The number of channels S of the vectors of ``backbone_output``."""
        return sum(map(hashed_channels, self.stages.channels)) if self.stages else 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K), float32, of images (B, in_chans, H, W)."""
        return self.classify(self.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K) of a feature map (B, C, h, w): pool and head, in float32, autocast off."""
        with without_autocast(features):
            # The head is cast too, for a network that was cast as a whole: `net.bfloat16()`.
            features, weight = features.float(), self.head.weight.float()
            bias = self.head.bias.float()
            if self.pool in ("avg", "gmp"):
                # The mean commutes with the head, so pooling the features first is the same and
                # cheaper: no map is made.
                return F.linear(self.dropout(pool_maps(features, self.pool)), weight, bias)
            return pool_maps(project(self.dropout(features), weight), self.pool) + bias

    def scores(self, logits: Tensor) -> Tensor:
        """Scores in [0, 1] of logits (B, K): softmax, or sigmoid where the task is multi-label."""
        return class_scores(logits, self.task)

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """Logits and class maps of one forward pass.

        Args:
            images: (B, in_chans, H, W).
            top: Maps of the ``top`` best classes of each image, best first; min(top, K) of them.
            classes: (B,) or (B, k), int64: maps of these classes. By default all K, in order.

        Returns:
            logits (B, K), maps (B, k, h, w), classes (B, k).

        Raises:
            CamtrainValueError: Both ``top`` and ``classes`` are given, ``top`` is below 1, or
                ``classes`` does not fit the batch or the K classes.
            CamtrainTypeError: ``classes`` is not a tensor of integers.
        """
        self._check_request(images.shape[0], top, classes)
        return self.maps_of(self.features(images), top=top, classes=classes)

    def display_maps(
        self,
        images: Tensor | BackboneOutput,
        *,
        top: int | None = None,
        classes: Tensor | None = None,
    ) -> CAMOutput:
        """Logits and the maps that heatmaps and boxes are made of.

        These are refined maps if this network refines its maps, else its class maps; both in the
        foreground, if it has a foreground head. ``images`` may also be the result of
        ``apply_neck``; then the arguments are not validated. Everything else is as in
        ``class_maps``.
        """
        if isinstance(images, Tensor):
            self._check_request(images.shape[0], top, classes)
            images = self.apply_neck(self.backbone_output(images))
        output = self.maps_of(images.features, top=top, classes=classes)
        return output if self.stages is None else self._refine_output(output, images)

    def refined_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> RefinedOutput:
        """As ``class_maps``, with refined maps (B, k, h, w) beside the class maps.

        Raises:
            CamtrainValueError: The network refines nothing, see ``set_refine``; or as
                ``class_maps``.
            CamtrainTypeError: As ``class_maps``.
        """
        self._check_request(images.shape[0], top, classes)
        if self.stages is None:
            raise CamtrainValueError(
                "This network has no refined maps; call net.set_refine('affinity') first."
            )
        neck_output = self.apply_neck(self.backbone_output(images))
        output = self.maps_of(neck_output.features, top=top, classes=classes)
        return RefinedOutput(*output, self._refine_output(output, neck_output).maps)

    def foreground_maps(self, images: Tensor | BackboneOutput) -> Tensor:
        """Where the pictures show a thing, whatever its class: (B, 1, h, w), in (0, 1), float32.

        Raises:
            CamtrainValueError: The network has no foreground head, see ``add_foreground``.
        """
        if self.foreground is None:
            raise CamtrainValueError(
                "This network has no foreground head; call net.add_foreground() and train it."
            )
        output = self.backbone_output(images) if isinstance(images, Tensor) else images
        with without_autocast(output.vectors):
            return self.foreground(output.vectors)

    def _refine_output(self, output: CAMOutput, neck_output: BackboneOutput) -> CAMOutput:
        with without_autocast(output.maps):
            maps = output.maps
            if self.foreground is not None:
                maps = positive_maps(maps) * self.foreground_maps(neck_output)
            if self.refine == "affinity":
                maps = refine_maps(maps, neck_output.vectors)
            return output._replace(maps=maps)

    def maps_of(
        self, features: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """``class_maps`` of features (B, C, h, w) of the neck; arguments are not validated."""
        logits = self.classify(features)
        with without_autocast(features):
            features, weight = features.float(), self.head.weight.float()
            if top is None and classes is None:
                all_classes = torch.arange(self.head.out_features, device=features.device)
                return CAMOutput(logits, project(features, weight), all_classes.expand_as(logits))
            if classes is None:
                assert top is not None
                classes = logits.topk(min(top, self.head.out_features)).indices
            classes = classes if classes.ndim == 2 else classes[:, None]
            classes = classes.to(features.device, torch.int64)
            return CAMOutput(logits, project_classes(features, weight, classes), classes)

    def _check_request(self, batch: int, top: int | None, classes: Tensor | None) -> None:
        if top is not None and classes is not None:
            raise CamtrainValueError("top and classes exclude each other; give one of them.")
        if top is not None and top < 1:
            raise CamtrainValueError(f"top must be at least 1, got {top}.")
        if classes is not None:
            check_classes(classes, batch, self.head.out_features)
