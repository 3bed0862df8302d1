"""The Lightning side of a CAM network: loss, optimizer, metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from camtrain.data import Batch, seed_of
from camtrain.errors import CamtrainValueError
from camtrain.inference.bundle import DEFAULT_THRESHOLD
from camtrain.model.cam import PoolName
from camtrain.model.camnet import Task
from camtrain.model.create import NormName, create_model, from_recipe
from camtrain.preprocessing import Preprocessing
from camtrain.training.box_scores import on_whole_pictures
from camtrain.training.cache import FeatureBatch
from camtrain.training.distributed import without_repeats
from camtrain.training.evaluation import Evaluation
from camtrain.training.freezing import freeze, keep_in_eval
from camtrain.training.mosaics import mosaic_scores
from camtrain.training.multilabel import loss_of
from camtrain.training.solvers import HeadSolver
from camtrain.training.solving import check_solver, resting_optimizer, solve


class CAMModule(LightningModule):
    """Trains a CAM network; takes batches of (images, labels, ...) from any LightningDataModule.

    Labels are class numbers, (B,), and for ``task="multilabel"`` also multi-hot, (B, K).

    With batches of ``CAMDataModule`` it also measures localization wherever the pictures have
    boxes; not where labels are multi-hot, since no box says of which class it is. Evaluation
    computes in float32 whatever the precision of the training, as the shipped network does.

    Attributes:
        net: The ``CAMNet``.
        map_threshold: Where the boxes of the last validation were best; 0.2 before one had boxes.
        is_calibrated: Whether one had.
        reports: Thresholds and curves of the splits that ``validate`` and ``test`` measured.
    """

    def __init__(
        self,
        backbone: str = "torchvision/vgg16",
        num_classes: int | None = None,
        *,
        weights: str | Path | None = "DEFAULT",
        cut: str | None = None,
        stride: int | None = None,
        neck: Sequence[int] = (1024,),
        neck_kernel: int = 3,
        neck_groups: int = 1,
        neck_norm: NormName | None = None,
        pool: PoolName = "avg",
        dropout: float = 0.0,
        task: Task = "multiclass",
        in_chans: int = 3,
        backbone_args: dict[str, Any] | None = None,
        freeze_backbone: bool = False,
        head_solver: HeadSolver = "sgd",
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        warmup_epochs: float = 1.0,
    ) -> None:
        """Build the network and remember the settings.

        Args:
            backbone: Network to convert: ``torchvision/...``, ``timm/...`` or ``camtrain/...``.
            num_classes: Number of classes; None means those of the weights.
            weights: ``DEFAULT`` or another name the library publishes, a file, or None (random).
            cut: Layer after which the network is cut off.
            stride: Pixels of the image per pixel of the map, smaller than the backbone's own.
            neck: Output channels of each added convolution; empty for none. Its defaults mean the
                authors' own neck where the backbone is one of the paper's networks.
            neck_kernel: Their kernel size, odd.
            neck_groups: Their groups.
            neck_norm: ``batch``, or None for a bias instead.
            pool: How a class map becomes its logit: ``avg``, ``max``, ``lse`` or ``gmp``.
            dropout: Probability, before the head; 0 means the authors' own likewise.
            task: ``multiclass``: softmax and cross-entropy; ``multilabel``: a sigmoid and binary
                cross-entropy for each class.
            in_chans: Channels of the images.
            backbone_args: Further arguments of the library's builder.
            freeze_backbone: Leave the backbone as it is, parameters and BatchNorm statistics.
            head_solver: ``sgd``: training by steps. ``logistic``, ``svm``: scikit-learn solves the
                head on the kept features of a frozen backbone, in one epoch; an ``svm``'s scores
                are no probabilities.
            optimizer: ``sgd`` or ``adamw``.
            lr: Learning rate after the warm-up; it falls to 0 along a cosine.
            weight_decay: Of weights, not of biases and norms.
            momentum: Only for ``sgd``.
            warmup_epochs: Epochs, or parts of one, over which the learning rate rises linearly.
        """
        super().__init__()
        if optimizer not in ("sgd", "adamw"):
            raise CamtrainValueError(f"optimizer must be sgd or adamw, got {optimizer!r}.")
        if lr <= 0 or weight_decay < 0 or warmup_epochs < 0:
            raise CamtrainValueError(
                "lr must be above 0, weight_decay and warmup_epochs at least 0, "
                f"got {lr}, {weight_decay}, {warmup_epochs}."
            )
        # Checkpoints hold plain values.
        weights = str(weights) if isinstance(weights, Path) else weights
        neck = list(neck)
        self.save_hyperparameters()
        self.net = create_model(
            backbone,
            num_classes,
            weights=weights,
            cut=cut,
            stride=stride,
            neck=neck,
            neck_kernel=neck_kernel,
            neck_groups=neck_groups,
            neck_norm=neck_norm,
            pool=pool,
            dropout=dropout,
            task=task,
            in_chans=in_chans,
            backbone_args=backbone_args,
        ).to(memory_format=torch.channels_last)
        self.evaluations = nn.ModuleDict(
            {split: Evaluation(self.net.head.out_features, task) for split in ("val", "test")}
        )
        self.map_threshold = DEFAULT_THRESHOLD
        self.is_calibrated = False
        self.reports: dict[str, dict[str, Any]] = {}
        self._seed = 0
        if freeze_backbone:
            freeze(self.net.backbone)
        check_solver(head_solver, self.net, freeze_backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        logits: Tensor = self.net(images.contiguous(memory_format=torch.channels_last))
        return logits

    def train(self, mode: bool = True) -> CAMModule:
        """Change the mode of everything that is not frozen."""
        super().train(mode)
        keep_in_eval(self.net.backbone, self.hparams["freeze_backbone"])
        return self

    def setup(self, stage: str) -> None:
        """Take class names and preprocessing from the data, if it knows them."""
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise CamtrainValueError(
                f"Maps and logits are computed in float32, got precision {self.trainer.precision}; "
                "choose bf16-mixed or 16-mixed."
            )
        self._seed = torch.initial_seed()
        self._take_from_data()
        if stage == "fit" and self.hparams["head_solver"] != "sgd":
            self.trainer.fit_loop.max_epochs = 1  # further ones would change nothing
        if self.hparams["freeze_backbone"]:
            # It is meant to be: a frozen backbone stays in evaluation mode.
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")

    def _take_from_data(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is not None:
            self.net.name_classes(names)
        self.net.preprocessing = getattr(data, "preprocessing", None) or self.net.preprocessing

    def on_train_start(self) -> None:
        """Solve the head, if that is the way to train it."""
        solver = self.hparams["head_solver"]
        if solver != "sgd":
            solve(self.trainer, self.net, solver)

    def _logits(self, batch: Sequence[Any]) -> Tensor:
        """Logits (B, K) of a batch's images, or of the features that a frozen backbone has made."""
        if isinstance(batch, FeatureBatch):
            features = batch.images.float().contiguous(memory_format=torch.channels_last)
            return self.net.classify(self.net.neck(features))
        return self.forward(batch[0])

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The loss of one batch; its randomness depends on seed, epoch and step alone."""
        step = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(seed_of(*step))
        images, labels = batch[0], batch[1]
        loss = loss_of(self._logits(batch), labels, self.net.task)
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images)
        )
        return loss

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch of the validation split; see ``_evaluate``."""
        return self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch of the test split; see ``_evaluate``."""
        return self._evaluate("test", batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Forget the epoch before."""
        # Not at its end: what `validate` makes in inference mode, a later `fit` cannot add to.
        self._evaluation("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forget an earlier test."""
        self._evaluation("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Log what the validation split gave."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log what the test split gave."""
        self._log_evaluation("test")

    def _evaluate(self, split: str, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Measure a batch; returns what was measured: its ``batch`` and ``maps``, if it has any."""
        batch = without_repeats(self.trainer, split, batch, batch_idx)
        images, labels = batch[0], batch[1]
        maps = None
        with torch.autocast(images.device.type, enabled=False):
            images = images.float().contiguous(memory_format=torch.channels_last)
            if labels.ndim > 1 and self.net.task == "multilabel":
                logits = self._logits(batch)
            else:
                if isinstance(batch, FeatureBatch):
                    output = self.net.maps_of(self.net.neck(images), classes=labels)
                else:
                    output = self.net.class_maps(images, classes=labels)
                logits, maps = output.logits, output.maps[:, 0]
        if not isinstance(batch, Batch) or maps is None:
            self._evaluation(split).update(logits, None, labels)
            return {}
        whole = on_whole_pictures(maps, self.net.preprocessing, batch)
        self._evaluation(split).update(logits, whole, labels, batch)
        return {"batch": batch, "maps": whole}

    def _log_evaluation(self, split: str) -> None:
        evaluation = self._evaluation(split)
        if split == "val":
            found = evaluation.boxes.calibrated_threshold()
            if found is not None:
                self.map_threshold, self.is_calibrated = found, True
        calibrated = self.map_threshold if self.is_calibrated else None
        scores = evaluation.compute(calibrated if split == "test" else None)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.reports[split] = evaluation.boxes.report(calibrated)
            scores |= mosaic_scores(self.net, self.trainer, split, self.device)
        shown = ("loss", "acc1", "map", "max_box_acc")
        for name, value in scores.items():
            self.log(f"{split}/{name}", value, prog_bar=name in shown)

    def _evaluation(self, split: str) -> Evaluation:
        evaluation = self.evaluations[split]
        assert isinstance(evaluation, Evaluation)
        return evaluation

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD or AdamW with linear warm-up and cosine decay, step by step."""
        hparams = self.hparams
        if hparams["head_solver"] != "sgd":
            return resting_optimizer(self.net.head)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": hparams["weight_decay"]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if hparams["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(groups, lr=hparams["lr"], momentum=hparams["momentum"])
        else:
            optimizer = torch.optim.AdamW(groups, lr=hparams["lr"])
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise CamtrainValueError(
                "The learning rate falls to 0 at the end of the training, and this one has no end; "
                "give --trainer.max_epochs or --trainer.max_steps."
            )
        epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        warmup = min(int(total), round(hparams["warmup_epochs"] * epoch))
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint whole: loading it needs neither weights file nor data."""
        net = self.net
        checkpoint["hyper_parameters"].update(weights=None, num_classes=net.head.out_features)
        checkpoint["camtrain"] = {
            "architecture": net.recipe,
            "class_names": list(net.class_names) if net.class_names else None,
            "preprocessing": net.preprocessing.to_dict() if net.preprocessing else None,
            "map_threshold": self.map_threshold,
            "is_calibrated": self.is_calibrated,
            "seed": self._seed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what ``on_save_checkpoint`` kept; building it again could need weights long gone."""
        own = checkpoint["camtrain"]
        recipe = {"task": "multiclass", **own["architecture"]}  # see `from_recipe`
        if self._is_resuming():
            self._check_same("network", self.net.recipe, recipe)
            self._check_same("classes", list(self.net.class_names or ()), own["class_names"] or [])
        if self.net.recipe != recipe:
            self.net = from_recipe(recipe).to(self.device).to(memory_format=torch.channels_last)
            if self.hparams["freeze_backbone"]:
                freeze(self.net.backbone)
        if own["class_names"] is not None:
            self.net.name_classes(own["class_names"])
        if own["preprocessing"] is not None:
            self.net.preprocessing = Preprocessing.from_dict(own["preprocessing"])
        self.map_threshold = own["map_threshold"]
        self.is_calibrated = own.get("is_calibrated", self.map_threshold != DEFAULT_THRESHOLD)
        self._seed = own["seed"]
        if self._trainer is not None:  # what the pictures go through now, not what they did then
            self._take_from_data()

    def _is_resuming(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    def _check_same(self, what: str, now: object, then: object) -> None:
        if now != then:
            raise CamtrainValueError(
                f"A training is continued with the {what} it began with, {then}, got {now}; give "
                "the same settings, or start a new run with --model.weights."
            )


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the learning rate: rises linearly to 1, then falls to 0 along a half cosine.

    Example:
        >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))
