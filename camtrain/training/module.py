"""The Lightning side of a CAM network: loss, optimizer, metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from camtrain.data import Batch, seed_of
from camtrain.errors import CamtrainValueError
from camtrain.header import DEFAULT_THRESHOLD, METADATA_KEY, checkpoint_description
from camtrain.labels import Task
from camtrain.maps import PoolName
from camtrain.model.create import NormName, create_model, from_recipe
from camtrain.model.refine import BackboneOutput, Refine
from camtrain.training.evaluate.box_scores import on_whole_pictures
from camtrain.training.evaluate.epoch_sums import EpochMean, EpochSum, restore_sums, sums_of
from camtrain.training.evaluate.evaluator import Evaluation, without_repeats
from camtrain.training.evaluate.mosaics import mosaic_scores
from camtrain.training.learn.averaging import ExponentialAverage
from camtrain.training.learn.freezing import Freezing, wrap_again
from camtrain.training.learn.learning_rate import FoundLearningRate
from camtrain.training.learn.losses import (
    ClassWeights,
    FiniteLoss,
    balanced_weights,
    check_class_weights,
)
from camtrain.training.learn.mixing import Mixing
from camtrain.training.learn.multilabel import loss_of
from camtrain.training.learn.optimizer import Optimization, configure, make_schedule
from camtrain.training.learn.solvers import HeadSolver
from camtrain.training.learn.solving import check_solver, resting_optimizer, solve
from camtrain.training.learn.teacher import Teacher, check_teaching
from camtrain.training.run.resume import check_same_network


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
        is_trying_rates: Whether ``find_lr`` is at work.
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
        freeze_until: str | None = None,
        unfreeze_at_epoch: int | None = None,
        head_solver: HeadSolver = "sgd",
        optimizer: str = "adamw",
        opt_args: dict[str, Any] | None = None,
        lr: float = 1e-3,
        find_lr: bool = False,
        backbone_lr_ratio: float = 1.0,
        layer_decay: float = 1.0,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        schedule: str = "warmup_cosine",
        schedule_args: dict[str, Any] | None = None,
        warmup_epochs: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        ema_decay: float | None = None,
        teacher: str | Path | None = None,
        teacher_weight: float = 1.0,
        refine: Refine = "none",
        refine_layers: Sequence[str] | None = None,
        channels_last: bool = True,
        compile: bool = False,
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
            freeze_until: Leave only its layers up to this one as they are; named like a cut.
            unfreeze_at_epoch: Epochs after which the frozen layers are trained too; None: never.
            head_solver: ``sgd``: training by steps. ``logistic``, ``svm``: scikit-learn solves the
                head on the kept features of a frozen backbone, in one epoch; an ``svm``'s scores
                are no probabilities.
            optimizer: ``sgd`` (with momentum), ``adamw``, or any other of timm's, such as ``lamb``.
            opt_args: Its further arguments, such as ``{"betas": [0.9, 0.99]}``.
            lr: Learning rate after the warm-up.
            find_lr: Find the learning rate by trying, before the training; ``lr`` is not used.
            backbone_lr_ratio: The backbone's learning rate is this times that of neck and head.
            layer_decay: Each layer of the backbone has this times the rate of the one after it.
            weight_decay: Of weights, not of biases and norms.
            momentum: Only for optimizers that have one.
            schedule: ``warmup_cosine`` falls to 0 along a cosine; or timm's ``cosine``, ``tanh``,
                ``poly``, ``wsd``, ``rsqrt``, ``step``, ``multistep``, ``constant``, ``none``.
            schedule_args: Arguments of timm's schedule, in epochs, or in steps where ``epochs`` in
                their name is ``steps``: ``{"decay_steps": 40000, "decay_rate": 0.1}``.
            warmup_epochs: Epochs, or parts of one, over which the learning rate rises linearly.
            label_smoothing: Part of the target that is shared by all classes, in [0, 1).
            class_weights: Of the training's loss, one per class; ``balanced``: every class counts
                as much.
            mixup: Mix pairs of pictures, with shares of Beta(alpha, alpha); 0: off, 0.2 is usual.
            cutmix: Paste rectangles of other pictures, likewise; 1 is usual.
            ema_decay: Evaluate and keep an exponential moving average of the weights, with this
                decay per step, such as 0.999; None: the weights themselves.
            teacher: Bundle or checkpoint of a trained network of the same classes, from whose
                refined maps this one learns where to look.
            teacher_weight: Of what its maps differ by, beside a weight of 1 for the labels.
            refine: What heatmaps and boxes are made of: ``none``, class maps; ``affinity``, class
                maps spread to what looks alike; measured, logged and shipped so, not trained on.
            refine_layers: Layers whose features tell what looks alike; None: three blocks near 5/8,
                6/8 and 7/8 of the backbone.
            channels_last: Keep pictures and weights with the channels last, usually faster.
            compile: Train through ``torch.compile``; evaluation runs as shipped.
        """
        super().__init__()
        # Checkpoints hold plain values.
        weights = str(weights) if isinstance(weights, Path) else weights
        teacher = str(teacher) if isinstance(teacher, Path) else teacher
        neck = list(neck)
        self.save_hyperparameters()
        self._optimization()  # which checks them
        _check_loss(label_smoothing, ema_decay)
        if teacher is not None:
            mixed = {"mixup": mixup, "cutmix": cutmix}
            others = {**mixed, "head_solver": head_solver, "compile": compile}
            check_teaching(task, teacher_weight, others)
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
        ).to(memory_format=self._memory_format)
        self.net.set_refine(refine, refine_layers)
        check_class_weights(class_weights, self.net.head.out_features)
        self.evaluations = nn.ModuleDict(
            {split: Evaluation(self.net.head.out_features, task) for split in ("val", "test")}
        )
        self.train_loss = EpochMean()
        self.train_damaged = EpochSum()
        self.map_threshold = DEFAULT_THRESHOLD
        self.is_calibrated = False
        self.reports: dict[str, dict[str, Any]] = {}
        self._seed = 0
        self._freezing = self._freeze()
        self._mixing = Mixing(self.net.head.out_features, task, mixup=mixup, cutmix=cutmix)
        self._class_weights: Tensor | None = None
        self._losses = FiniteLoss()
        self._teacher: Teacher | None = None
        self._teacher_hash: str | None = None
        self.is_trying_rates = False
        if find_lr and head_solver != "sgd":
            raise CamtrainValueError(
                f"head_solver {head_solver} takes no steps and has no rate to find; leave find_lr "
                "out."
            )
        check_solver(head_solver, self.net, self._freezing.stays and freeze_backbone)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.hparams["channels_last"] else torch.contiguous_format

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        logits: Tensor = self.net(images.contiguous(memory_format=self._memory_format))
        return logits

    def train(self, mode: bool = True) -> CAMModule:
        """Change the mode of everything that is not frozen."""
        super().train(mode)
        self._freezing.keep_in_eval()
        return self

    def on_validation_model_train(self) -> None:
        """Go on training after a validation, what is frozen excepted."""
        # Lightning would set `training`, but a traced trunk changes its graph in `train`.
        self.train()

    def _freeze(self) -> Freezing:
        names = ("freeze_backbone", "freeze_until", "unfreeze_at_epoch")
        return Freezing(self.net, **{name: self.hparams[name] for name in names})

    def on_train_start(self) -> None:
        """Freeze what is frozen in this epoch, which may be in the middle of a resumed one."""
        self._freeze_for_epoch()
        if self.train_damaged.update_called:  # it may go on with its validation, without a step
            self._log_so_far()
        solver = self.hparams["head_solver"]
        if solver != "sgd":
            weights = self._class_weights
            solve(self.trainer, self.net, solver, None if weights is None else weights.tolist())

    def on_train_epoch_start(self) -> None:
        """Unfreeze when it is time, and sum anew; not called when an epoch goes on."""
        self._freeze_for_epoch()
        self.train_loss.reset()
        self.train_damaged.reset()

    def _freeze_for_epoch(self) -> None:
        if self._freezing.apply(self.current_epoch):
            self.train()
            wrap_again(self.trainer.strategy)

    def setup(self, stage: str) -> None:
        """Take class names and preprocessing from the data, if it knows them."""
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise CamtrainValueError(
                f"Maps and logits are computed in float32, got precision {self.trainer.precision}; "
                "choose bf16-mixed or 16-mixed."
            )
        self._seed = torch.initial_seed()
        self._take_from_data()
        if stage != "fit":
            return
        if self.teacher is not None:
            self.teacher.check(self.net)
        self._class_weights = self._weights_of_classes()
        if self.hparams["head_solver"] != "sgd":
            self.trainer.fit_loop.max_epochs = 1  # further ones would change nothing
        if self._freezing.part.modules:
            # It is meant to be: what is frozen stays in evaluation mode.
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        if self.hparams["compile"]:
            self.net.compile()

    @property
    def teacher(self) -> Teacher | None:
        """From whom it learns where to look; read when a training first asks for it."""
        if self._teacher is None and self.hparams["teacher"] is not None:
            self._teacher = Teacher(self.hparams["teacher"])
            self._teacher_hash = self._teacher.hash
        return None if self._teacher is None else self._teacher.to(self.device)

    def teardown(self, stage: str) -> None:
        """Let the teacher go."""
        self._teacher = None

    def configure_callbacks(self) -> list[Callback]:
        """What Lightning has as callbacks: the average of the weights, the learning rate finder."""
        callbacks: list[Callback] = []
        if self.hparams["ema_decay"] is not None:
            callbacks.append(ExponentialAverage(self.hparams["ema_decay"]))
        if self.hparams["find_lr"]:
            callbacks.append(FoundLearningRate())
        return callbacks

    def _weights_of_classes(self) -> Tensor | None:
        weights = self.hparams["class_weights"]
        if weights != "balanced":
            return None if weights is None else torch.tensor(weights, dtype=torch.float32)
        datasets = getattr(getattr(self.trainer, "datamodule", None), "datasets", {})
        labels = getattr(datasets.get("train"), "labels", None)
        if labels is None:
            raise CamtrainValueError(
                "class_weights=balanced needs the labels of all training pictures, which only a "
                "CAMDataModule tells; give a list with a number for each class."
            )
        return balanced_weights(torch.as_tensor(labels), self.net.head.out_features, self.net.task)

    def _take_from_data(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is not None:
            self.net.name_classes(names)
        self.net.preprocessing = getattr(data, "preprocessing", None) or self.net.preprocessing

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The loss of one batch; its randomness depends on seed, epoch and step alone."""
        seed = seed_of(self._seed, self.current_epoch, batch_idx, self.global_rank)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch's own would note it for GPUs to come
        else:
            torch.manual_seed(seed)
        damaged = len(batch.damaged) if isinstance(batch, Batch) else 0
        if damaged and len(batch[1]) < 2:  # BatchNorm cannot train on one picture
            loss = self._nothing_learned()
            self.train_loss.update(loss, 0)
        else:
            batch = self._mixed(batch)
            loss = self._loss_of(batch)
            self._losses.see(loss, batch, batch_idx)
            self.train_loss.update(loss, len(batch[1]))
        self.train_damaged.update(damaged)
        self._log_so_far()
        return loss

    def _nothing_learned(self) -> Tensor:
        """A loss whose gradients are 0, so that processes with more pictures need not wait."""
        return torch.stack([p.sum() * 0.0 for p in self.parameters() if p.requires_grad]).sum()

    def _log_so_far(self) -> None:
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/damaged", self.train_damaged, on_step=False, on_epoch=True)

    def _mixed(self, batch: Sequence[Any]) -> Sequence[Any]:
        """A batch after mixup or cutmix, which make its labels shares of the classes."""
        if not self._mixing:
            return batch
        images, labels = self._mixing(batch[0], batch[1])
        if isinstance(batch, Batch):
            return batch._replace(images=images, labels=labels)
        return [images, labels, *batch[2:]]

    def _loss_of(self, batch: Sequence[Any]) -> Tensor:
        """What a batch of the training is to be better at."""
        teacher = self.teacher
        if teacher is None:
            return self._loss(self._logits(batch), batch[1])
        images = batch[0].contiguous(memory_format=self._memory_format)
        logits, differing = teacher.teach(
            self.net, images, batch[1], are_kept=isinstance(batch, Batch) and batch.is_cached
        )
        weight: float = self.hparams["teacher_weight"]
        return self._loss(logits, batch[1]) + weight * differing

    def _logits(self, batch: Sequence[Any]) -> Tensor:
        """Logits (B, K) of a batch of the training."""
        if isinstance(batch, Batch) and batch.is_cached:  # a frozen backbone has done its part
            features = batch.images.float().contiguous(memory_format=self._memory_format)
            return self.net.classify(self.net.neck(features))
        logits: Tensor = self(batch[0])
        return logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss that is trained on, unlike that of the evaluation."""
        weights = self._class_weights
        if weights is not None:
            weights = self._class_weights = weights.to(logits.device)
        return loss_of(
            logits,
            labels,
            self.net.task,
            are_mixed=bool(self._mixing),
            label_smoothing=self.hparams["label_smoothing"],
            class_weights=weights,
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop rather than take a step that no loss justifies."""
        if self.is_trying_rates:  # some of them are meant to be too high
            self._losses.forget()
            return
        rates = [group["lr"] for group in optimizer.param_groups]
        self._losses.check(step=self.global_step, epoch=self.current_epoch, lr=max(rates))

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
        """Measure a batch; returns it, its features, its logits and, if boxes count, its maps."""
        batch = without_repeats(self.trainer, split, batch, batch_idx)
        images, labels = batch[0], batch[1]
        maps = None
        with torch.autocast(images.device.type, enabled=False):
            images = images.float().contiguous(memory_format=self._memory_format)
            is_cached = isinstance(batch, Batch) and batch.is_cached
            backbone_output = (
                BackboneOutput.unpacked(images, self.net.vector_channels)
                if is_cached
                else self.net.backbone_output(images)
            )
            backbone_output = self.net.apply_neck(backbone_output)
            if labels.ndim > 1 and self.net.task == "multilabel":
                logits = self.net.classify(backbone_output.features)
            else:
                output = self.net.display_maps(backbone_output, classes=labels)
                logits, maps = output.logits, output.maps[:, 0]
        evaluation = self._evaluation(split)
        seen = {"batch": batch, "features": backbone_output.packed(), "logits": logits}
        if maps is not None:
            evaluation.update_statistics(maps, batch, self.net.preprocessing)
        if not isinstance(batch, Batch) or maps is None:
            evaluation.update(logits, None, labels)
            return seen
        whole = on_whole_pictures(maps, self.net.preprocessing, batch)
        evaluation.update(logits, whole, labels, batch)
        return {**seen, "maps": whole}

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
        """Optimizer and schedule; see ``camtrain.training.learn.optimizer``."""
        if self.hparams["head_solver"] != "sgd":
            return resting_optimizer(self.net.head)
        steps, steps_per_epoch = self._steps()
        return configure(
            self.net, self._optimization(), steps=steps, steps_per_epoch=steps_per_epoch
        )

    def make_schedule(self, optimizer: Optimizer) -> Any:  # noqa: ANN401 - torch's and timm's differ
        """The learning rate of every step of this training."""
        steps, steps_per_epoch = self._steps()
        return make_schedule(
            optimizer, self._optimization(), steps=steps, steps_per_epoch=steps_per_epoch
        )

    def _steps(self) -> tuple[float, float]:
        """Of the optimizer: in the whole training, and in an epoch."""
        trainer = self.trainer
        if math.isinf(trainer.num_training_batches):  # Lightning has not counted them yet
            trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches
        if not math.isinf(batches):
            batches = math.ceil(batches / trainer.accumulate_grad_batches)
        return trainer.estimated_stepping_batches, batches

    def _optimization(self) -> Optimization:
        return Optimization(**{f.name: self.hparams[f.name] for f in fields(Optimization)})

    def lr_scheduler_step(self, scheduler: object, metric: object) -> None:
        """Set the rate of the next step; timm's schedules want its number."""
        if isinstance(scheduler, LRScheduler):
            super().lr_scheduler_step(scheduler, metric)
        else:
            cast("Any", scheduler).step_update(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint whole: loading it needs neither weights file nor data."""
        num_classes = self.net.head.out_features
        checkpoint["hyper_parameters"].update(weights=None, num_classes=num_classes)
        description = replace(
            self.net.description, threshold=self.map_threshold, is_calibrated=self.is_calibrated
        )
        checkpoint[METADATA_KEY] = {
            **description.to_dict(),
            "teacher": self._teacher_hash,
            "seed": self._seed,
            "train_sums": cast(
                "Tensor", self.all_gather(sums_of(self.train_loss, self.train_damaged))
            )
            .reshape(-1, 3)  # a row for each process
            .tolist(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what ``on_save_checkpoint`` kept; building it again could need weights long gone."""
        metadata, stored = checkpoint[METADATA_KEY], checkpoint_description(checkpoint)
        if self._is_resuming():
            check_same_network(
                {
                    "network": stored.architecture,
                    "classes": list(stored.class_names or ()),
                    "refinement": stored.refinement,
                    "weights of the teacher": metadata.get("teacher"),
                },
                {
                    "network": self.net.recipe,
                    "classes": list(self.net.class_names or ()),
                    "refinement": self.net.description.refinement,
                    "weights of the teacher": self.teacher.hash if self.teacher else None,
                },
            )
        if self.net.recipe != stored.architecture:
            assert stored.architecture is not None
            net = from_recipe(stored.architecture)
            self.net = net.to(self.device).to(memory_format=self._memory_format)
            self._freezing = self._freeze()
        self.net.restore(stored)
        self.map_threshold = stored.threshold
        self.is_calibrated = stored.calibrated_threshold is not None
        self._seed = metadata["seed"]
        if self._is_resuming():
            if self.hparams["find_lr"]:
                self.hparams["lr"] = checkpoint["hyper_parameters"]["lr"]  # found already
            sums = metadata.get("train_sums", [])
            if len(sums) == self.trainer.world_size:
                restore_sums(self.train_loss, self.train_damaged, sums[self.global_rank])
        if self._trainer is not None:  # what the pictures go through now, not what they did then
            self._take_from_data()

    def _is_resuming(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING


def _check_loss(label_smoothing: float, ema_decay: float | None) -> None:
    if not 0 <= label_smoothing < 1:
        raise CamtrainValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise CamtrainValueError(
            f"ema_decay must lie between 0 and 1, such as 0.999, or be None, got {ema_decay}."
        )
