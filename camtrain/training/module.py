"""The Lightning side of a CAM network: its settings, its training step and its hooks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from camtrain.data import Batch, seed_of
from camtrain.errors import CamtrainValueError
from camtrain.header import METADATA_KEY, checkpoint_description
from camtrain.labels import Task
from camtrain.maps import PoolName
from camtrain.model.create import NormName, create_model, from_recipe
from camtrain.model.refine import Refine
from camtrain.training.evaluate.evaluator import Evaluator
from camtrain.training.learn.callbacks import ExponentialAverage, FoundLearningRate, check_ema_decay
from camtrain.training.learn.freezing import Freezing
from camtrain.training.learn.losses import ClassWeights, NonFiniteLossGuard, TrainingLoss, zero_loss
from camtrain.training.learn.optimizer import Optimization, configure, count_steps
from camtrain.training.learn.solvers import HeadSolver, check_solver, no_op_optimizer, solve
from camtrain.training.learn.teacher import Teacher, check_teaching
from camtrain.training.run.resume import check_same_network, fixed_parts

# Arguments of `create_model` that are passed on as they are.
_ARCHITECTURE = (
    *("cut", "stride", "neck", "neck_kernel", "neck_groups", "neck_norm"),
    *("pool", "dropout", "task", "in_chans", "backbone_args"),
)


class CAMModule(LightningModule):
    """Trains a CAM network; takes batches of (images, labels, ...) from any LightningDataModule.

    Labels are class numbers, (B,), and for ``task="multilabel"`` also multi-hot, (B, K).

    With batches of ``CAMDataModule`` it also measures localization wherever the pictures have
    boxes; not where labels are multi-hot, since no box says of which class it is. Evaluation
    computes in float32 whatever the precision of the training, as the shipped network does.

    Attributes:
        net: The ``CAMNet``.
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
        weights = str(weights) if isinstance(weights, Path) else weights
        teacher = str(teacher) if isinstance(teacher, Path) else teacher
        neck = list(neck)  # checkpoints hold plain values
        self.save_hyperparameters()
        Optimization.of(self.hparams)  # which checks them
        check_ema_decay(ema_decay)
        TrainingLoss.check_smoothing(label_smoothing)  # before weights are fetched
        check_teaching(self.hparams)
        architecture = {name: self.hparams[name] for name in _ARCHITECTURE}
        net = create_model(backbone, num_classes, weights=weights, **architecture)
        self.net = net.to(memory_format=self._memory_format)
        self.net.set_refine(refine, refine_layers)
        names = ("label_smoothing", "class_weights", "mixup", "cutmix")
        loss_options = {name: self.hparams[name] for name in names}
        self._loss = TrainingLoss(self.net.head.out_features, task, **loss_options)
        self.evaluator = Evaluator(self.net, self._memory_format)
        self._seed = 0
        self._freezing = Freezing(self.net, self.hparams)
        self._loss_guard = NonFiniteLossGuard()
        self._teacher: Teacher | None = None
        self._teacher_hash: str | None = None
        self.is_trying_rates = False  # whether `find_lr` is at work
        check_solver(self.net, self.hparams, is_frozen=self._freezing.stays and freeze_backbone)

    @property
    def map_threshold(self) -> float:
        """Where the boxes of the last validation were best; 0.2 before one had boxes."""
        return self.evaluator.map_threshold

    @property
    def is_calibrated(self) -> bool:
        """Whether a validation had boxes."""
        return self.evaluator.is_calibrated

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """Thresholds and curves of the splits that ``validate`` and ``test`` measured."""
        return self.evaluator.reports

    @property
    def teacher(self) -> Teacher | None:
        """The network whose maps are learned from; its file is read on first use."""
        if self._teacher is None and self.hparams["teacher"] is not None:
            self._teacher = Teacher(self.hparams["teacher"])
            self._teacher_hash = self._teacher.hash
        return None if self._teacher is None else self._teacher.to(self.device)

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
        """Return to training mode after a validation."""
        # Lightning would set `training`, but a traced trunk changes its graph in `train`.
        self.train()

    def setup(self, stage: str) -> None:
        """Take class names and preprocessing from the data, and prepare the training."""
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise CamtrainValueError(
                f"Maps and logits are computed in float32, got precision {self.trainer.precision}; "
                "choose bf16-mixed or 16-mixed."
            )
        self.evaluator.check_is_callback(self)
        self._seed = torch.initial_seed()
        self._take_from_data()
        if stage != "fit":
            return
        if self.teacher is not None:
            self.teacher.check(self.net)
        datasets = getattr(getattr(self.trainer, "datamodule", None), "datasets", {})
        self._loss.set_labels(getattr(datasets.get("train"), "labels", None))
        if self.hparams["head_solver"] != "sgd":
            self.trainer.fit_loop.max_epochs = 1  # further ones would change nothing
        if self._freezing.part.modules:  # they are meant to stay in evaluation mode
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        if self.hparams["compile"]:
            self.net.compile()

    def _take_from_data(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is not None:
            self.net.name_classes(names)
        self.net.preprocessing = getattr(data, "preprocessing", None) or self.net.preprocessing

    def teardown(self, stage: str) -> None:
        """Free the teacher's memory."""
        self._teacher = None

    def configure_callbacks(self) -> list[Callback]:
        """The parts of the module that are callbacks too, and those that are asked for."""
        parts: list[Callback] = [self._freezing, self.evaluator, self._loss_guard]
        # A trainer that is used again has them; Lightning would announce that it replaces them.
        attached: list[Callback] = cast("Any", self.trainer).callbacks
        callbacks = [part for part in parts if part not in attached]
        if self.hparams["ema_decay"] is not None:
            callbacks.append(ExponentialAverage(self.hparams["ema_decay"]))
        if self.hparams["find_lr"]:
            callbacks.append(FoundLearningRate())
        return callbacks

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule; see ``camtrain.training.learn.optimizer``."""
        if self.hparams["head_solver"] != "sgd":
            return no_op_optimizer(self.net.head)
        return configure(self.net, Optimization.of(self.hparams), **count_steps(self.trainer))

    def lr_scheduler_step(self, scheduler: object, metric: object) -> None:
        """Set the rate of the next step; timm's schedules need the number of the step."""
        if isinstance(scheduler, LRScheduler):
            super().lr_scheduler_step(scheduler, metric)
        else:
            cast("Any", scheduler).step_update(self.global_step)

    def on_train_start(self) -> None:
        """Solve the head, if a solver is asked for."""
        if self.hparams["head_solver"] != "sgd":
            solve(self.trainer, self.net, self.hparams["head_solver"], self._loss.class_weights)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The loss of one batch; its randomness depends on seed, epoch and step alone."""
        seed = seed_of(self._seed, self.current_epoch, batch_idx, self.global_rank)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch's own would note it for GPUs to come
        else:
            torch.manual_seed(seed)
        damaged, pictures = len(batch.damaged) if isinstance(batch, Batch) else 0, len(batch[1])
        if damaged and pictures < 2:  # BatchNorm cannot train on one picture
            loss, pictures = zero_loss(self), 0
        else:
            batch = self._loss.mix(batch)
            loss = self._loss_of(batch)
        self.evaluator.log_step(self, loss, pictures, damaged)
        return loss

    def _loss_of(self, batch: Sequence[Any]) -> Tensor:
        """The loss of labels and, with a teacher, of maps."""
        is_cached = isinstance(batch, Batch) and batch.is_cached
        images = batch[0].contiguous(memory_format=self._memory_format)
        teacher, weight = self.teacher, cast("float", self.hparams["teacher_weight"])
        if teacher is not None:
            logits, disagreement = teacher.teach(self.net, images, batch[1], is_cached=is_cached)
            return self._loss(logits, batch[1]) + weight * disagreement
        logits = self.net.classify(self.net.neck(images.float())) if is_cached else self(images)
        return self._loss(logits, batch[1])

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch of the validation split; see ``Evaluator.evaluate``."""
        return self.evaluator.evaluate(self.trainer, self.net, "val", batch, batch_idx)

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch of the test split; see ``Evaluator.evaluate``."""
        return self.evaluator.evaluate(self.trainer, self.net, "test", batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint whole: loading it needs neither weights file nor data."""
        num_classes = self.net.head.out_features
        checkpoint["hyper_parameters"].update(weights=None, num_classes=num_classes)
        sums = cast("Tensor", self.all_gather(self.evaluator.sums()))
        checkpoint[METADATA_KEY] = {
            **self.evaluator.description_of(self.net).to_dict(),
            "teacher": self._teacher_hash,
            "seed": self._seed,
            "train_sums": sums.reshape(-1, 3).tolist(),  # a row for each process
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the network from the checkpoint alone, or check that a training may continue."""
        metadata, stored = checkpoint[METADATA_KEY], checkpoint_description(checkpoint)
        is_resuming = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if is_resuming:
            teacher = self.teacher.hash if self.teacher else None
            current = fixed_parts(self.net.description, teacher)
            check_same_network(fixed_parts(stored, metadata.get("teacher")), current)
        if self.net.recipe != stored.architecture:
            net = from_recipe(cast("dict[str, Any]", stored.architecture))
            self.net = net.to(self.device).to(memory_format=self._memory_format)
            self._freezing = Freezing(self.net, self.hparams)
        self.net.restore(stored)
        self.evaluator.restore_threshold(stored)
        self._seed = metadata["seed"]
        sums = metadata.get("train_sums", [])
        if is_resuming and len(sums) == self.trainer.world_size:
            self.evaluator.restore_sums(sums[self.global_rank])
        if self._trainer is not None:  # the pictures go through these settings now
            self._take_from_data()
