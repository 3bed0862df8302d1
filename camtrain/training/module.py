"""The Lightning side of a CAM network: its settings, its training step and its hooks."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from camtrain.data import Batch, seed_of
from camtrain.header import METADATA_KEY, checkpoint_description, read_checkpoint_content
from camtrain.labels import Task, as_pair
from camtrain.maps import PoolName
from camtrain.model.arguments import ARCHITECTURE, NormName
from camtrain.model.camnet import CAMNet
from camtrain.model.create import create_model, from_recipe
from camtrain.model.limits import as_large_as
from camtrain.model.modules import check_user, name_of, user_network
from camtrain.model.refine import Refine
from camtrain.preprocessing import Preprocessing
from camtrain.training.evaluate.evaluator import Evaluator
from camtrain.training.learn.callbacks import ExponentialAverage, FoundLearningRate, StepScores
from camtrain.training.learn.facts import DataFacts, complete_settings, plain_preprocessing
from camtrain.training.learn.freezing import Freezing
from camtrain.training.learn.losses import ClassWeights, FiniteLossGuard, TrainingLoss, check_loss
from camtrain.training.learn.objective import check_objective, loss_of_batch
from camtrain.training.learn.optimizer import check_optimization, configure, count_steps
from camtrain.training.learn.solvers import HeadSolver, check_solver, solve
from camtrain.training.learn.teacher import Teacher, check_teacher_settings
from camtrain.training.lightnings import refuse_mixed_packages
from camtrain.training.run.progress import count_from_one
from camtrain.training.run.resume import check_same_network

# All that `CAMModule.configure_callbacks` may return.
_PARTS = (Freezing, Evaluator, FiniteLossGuard, StepScores, ExponentialAverage, FoundLearningRate)


class CAMModule(LightningModule):
    """Trains a CAM network; takes batches of (images, labels, ...) from any LightningDataModule.

    Labels are class numbers, (B,), and for ``task="multilabel"`` also multi-hot, (B, K). A batch
    may be a dictionary too, see ``camtrain.labels.as_pair``. ``net`` is the ``CAMNet``.

    With batches of ``CAMDataModule`` it also measures localization wherever the pictures have
    boxes; not where labels are multi-hot, since no box says of which class it is. Evaluation
    computes in float32 whatever the precision of the training, as the shipped network does.
    """

    def __init__(
        self,
        backbone: str | Any = "torchvision/vgg16",  # noqa: ANN401 - also what builds a network
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
        foreground: bool = False,
        in_chans: int = 3,
        backbone_args: dict[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | dict[str, Any] | None = None,
        freeze_backbone: bool = False,
        freeze_head: bool = False,
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
            backbone: ``torchvision/...``, ``timm/...``, ``camtrain/...``; of a hub or a folder:
                ``timm/hf-hub:ORG/NAME[@REVISION]``, ``timm/local-dir:PATH``; or the import path of
                your network, in a script also its class, a module, or a ``CAMNet``.
            num_classes: Number of classes; None means ``class_names``, or those of the weights.
            weights: ``DEFAULT`` or another name the library publishes; a file, also a bundle such
                as ``runs/NAME/model.safetensors``, which keeps its head for the same classes; or
                None (random).
            cut: Layer after which the backbone is cut off; None: its last with a feature map.
            stride: Pixels of the image per pixel of the map, if smaller than the backbone's own.
            neck: Output channels of each added convolution; empty for none. For the paper's
                networks the default means the authors' neck.
            neck_kernel: Kernel size of the neck's convolutions, odd.
            neck_groups: Number of groups of the neck's convolutions.
            neck_norm: ``batch`` gives the neck BatchNorm layers; None: biases instead.
            pool: How a class map becomes its logit: ``avg``, ``max``, ``lse`` or ``gmp``.
            dropout: Its probability before the head; 0 means the authors' in the paper's networks.
            task: ``multiclass``: softmax; ``multilabel``: sigmoid and cross-entropy of each class.
            foreground: Learn where things are, and show maps there only; for few classes.
            in_chans: Number of channels of the images: 3 for colour, 1 for grey.
            backbone_args: Further arguments of the library for building the backbone.
            class_names: Names of the classes, where the data has no ``class_names``.
            preprocessing: How pictures are prepared, where the data does not say it: a
                ``camtrain.Preprocessing`` or its values, such as ``{"size": [128, 128]}``.
            freeze_backbone: Leave parameters and BatchNorm statistics of the backbone unchanged.
            freeze_head: Leave neck and trained head unchanged too: only the foreground is learned.
            freeze_until: Leave only its layers up to this one unchanged; named like a cut.
            unfreeze_at_epoch: Epochs after which the frozen layers are trained too; None: never.
            head_solver: ``sgd``: training by steps. ``logistic``, ``svm``: scikit-learn solves the
                head on the cached features of a frozen backbone, in one epoch; an ``svm``'s scores
                are no probabilities.
            optimizer: ``sgd`` (with momentum), ``adamw``, or any other of timm's, such as ``lamb``.
            opt_args: Further arguments of the optimizer, such as ``{"betas": [0.9, 0.99]}``.
            lr: Learning rate after the warm-up.
            find_lr: Find the learning rate by trials before the training; ``lr`` is not used.
            backbone_lr_ratio: The backbone's learning rate is this times that of neck and head.
            layer_decay: Each layer of the backbone has this times the rate of the one after it.
            weight_decay: Decay of weights, but not of biases and norms.
            momentum: Momentum of optimizers that have one.
            schedule: ``warmup_cosine`` falls to 0 along a cosine; or timm's ``cosine``, ``tanh``,
                ``poly``, ``wsd``, ``rsqrt``, ``step``, ``multistep``, ``constant``, ``none``.
            schedule_args: Arguments of timm's schedule, in epochs, or in steps if their names say
                ``steps`` for ``epochs``: ``{"decay_steps": 40000, "decay_rate": 0.1}``.
            warmup_epochs: Epochs, also fractions, over which the learning rate rises linearly.
            label_smoothing: Part of the target that is shared by all classes, in [0, 1).
            class_weights: Weights of the classes in the loss; ``balanced``: the same influence.
            mixup: Mix pairs of pictures, with shares of Beta(alpha, alpha); 0: off, 0.2 is usual.
            cutmix: Paste rectangles of other pictures, with the same shares; 1 is usual.
            ema_decay: Evaluate and store an exponential moving average of the weights, with this
                decay per step, such as 0.999; None: the weights themselves.
            teacher: File of a trained network of the same classes, from whose refined maps this
                one learns where to look.
            teacher_weight: Weight of the loss of the maps; that of the labels is 1.
            refine: The maps that heatmaps and boxes are made of, except in the loss: ``none``:
                class maps; ``affinity``: class maps spread to places that look alike.
            refine_layers: Layers that say which places look alike, and that foreground reads; None:
                three blocks near 5/8, 6/8 and 7/8 of the backbone.
            channels_last: Store pictures and weights with the channels last, usually faster.
            compile: Train through ``torch.compile``; evaluation does not.
        """
        super().__init__()
        refuse_mixed_packages()
        weights, teacher = (str(f) if isinstance(f, Path) else f for f in (weights, teacher))
        given, backbone, neck = backbone, name_of(backbone), list(neck)  # files hold plain values
        class_names = None if class_names is None else list(class_names)
        preprocessing = plain_preprocessing(preprocessing)
        self.save_hyperparameters()
        check_optimization(self.hparams)  # these checks come before weights are fetched
        check_loss(self.hparams)
        check_teacher_settings(self.hparams)
        architecture = {name: self.hparams[name] for name in ARCHITECTURE}
        num_classes = len(class_names) if num_classes is None and class_names else num_classes
        self._user = user_network(given)
        net = create_model(given, num_classes, weights=weights, **architecture)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self._memory_format)
        self._facts = DataFacts(self.hparams)
        self.follow_data(None)
        self.net.set_refine(refine, refine_layers)
        names = ("label_smoothing", "class_weights", "mixup", "cutmix")
        loss_options = {name: self.hparams[name] for name in names}
        self._loss = TrainingLoss(net.head.out_features, net.task, **loss_options)
        self.evaluator = Evaluator(self.net, self._memory_format)
        self._seed = 0
        self._freezing = Freezing(self.net, self.hparams)
        self._loss_guard = FiniteLossGuard()
        self._teacher: Teacher | None = None
        self._teacher_hash: str | None = None
        self.is_trying_rates = False  # whether `find_lr` is at work
        check_solver(self.net, self.hparams)
        check_objective(self.net, self.hparams, is_built=isinstance(given, CAMNet))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **settings: Any) -> CAMModule:  # type: ignore[override]  # noqa: ANN401
        """As Lightning's; a network of yours is handed in, since no file may import anything."""
        hparams = read_checkpoint_content(Path(checkpoint_path), mmap=True)["hyper_parameters"]
        if "backbone" not in settings:
            check_user(hparams, None)
        return super().load_from_checkpoint(checkpoint_path, **settings)

    # What the last validations and tests measured, see `Evaluator`.
    map_threshold = property(attrgetter("evaluator.map_threshold"))
    is_calibrated = property(attrgetter("evaluator.is_calibrated"))
    reports = property(attrgetter("evaluator.reports"))

    @property
    def teacher(self) -> Teacher | None:
        """The network from whose maps this one learns; its file is read on first use."""
        if self._teacher is None and self.hparams["teacher"] is not None:
            source = self._user.source if self._user else None
            self._teacher = Teacher(self.hparams["teacher"], source)
            self._teacher_hash = self._teacher.hash
        return None if self._teacher is None else self._teacher.to(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        return cast("Tensor", self.net(images.contiguous(memory_format=self._memory_format)))

    def train(self, mode: bool = True) -> CAMModule:
        """Change the mode of all modules that are not frozen."""
        super().train(mode)
        self._freezing.keep_in_eval()
        return self

    def on_validation_model_train(self) -> None:
        """Call ``train``, which changes the graph of a traced trunk; Lightning only sets a flag."""
        self.train()

    def setup(self, stage: str) -> None:
        """Take class names and preprocessing from the data, and prepare the training."""
        self.evaluator.check_trainer(self)
        self._seed = torch.initial_seed()
        self.follow_data(getattr(self.trainer, "datamodule", None))
        if stage != "fit":
            return
        self._facts.announce(self.trainer)
        if self.teacher is not None:
            self.teacher.check(self.net)
        self._loss.balance(getattr(self.trainer, "datamodule", None))
        if self.hparams["head_solver"] != "sgd":
            self.trainer.fit_loop.max_epochs = 1  # further ones would change nothing
        if self.hparams["compile"]:
            self.net.compile()

    def follow_data(self, data: object) -> None:
        """Take class names and preprocessing from a data module that has them."""
        self._facts.tell(self.net, data)

    def teardown(self, stage: str) -> None:
        """Free the teacher's memory."""
        self._teacher = None

    def configure_callbacks(self) -> list[Callback]:
        """The parts of the module that are callbacks, and the callbacks of its settings."""
        callbacks: list[Callback] = [self._freezing, self.evaluator, self._loss_guard, StepScores()]
        if self.hparams["ema_decay"] is not None:
            callbacks.append(ExponentialAverage(self.hparams["ema_decay"]))
        if self.hparams["find_lr"]:
            callbacks.append(FoundLearningRate())
        trainer: Any = self.trainer  # one that is used again still has those of its last module
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, _PARTS)]
        count_from_one(trainer.callbacks)
        return callbacks

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule; see ``camtrain.training.learn.optimizer``."""
        if self.hparams["head_solver"] != "sgd":
            return SGD(self.net.head.parameters(), lr=0.0)  # leaves the solved head as it is
        return configure(self.net, self.hparams, **count_steps(self.trainer))

    def lr_scheduler_step(self, scheduler: object, metric: object) -> None:
        """Set the rate of the next step; timm's schedules need its number."""
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
        batch = as_pair(batch)
        generator = torch.default_generator if self.device.type == "cpu" else torch  # GPUs' too
        generator.manual_seed(seed_of(self._seed, self.current_epoch, batch_idx, self.global_rank))
        damaged, pictures = len(batch.damaged) if isinstance(batch, Batch) else 0, len(batch[1])
        if damaged and pictures < 2:  # BatchNorm cannot train on one picture
            # Gradients of 0, for which the other processes wait.
            trained = [weight.sum() for weight in self.parameters() if weight.requires_grad]
            loss, pictures = (torch.stack(trained) * 0.0).sum(), 0
        else:
            batch = self._loss.mix(batch)
            loss = self._loss_of(batch)
        self.evaluator.log_step(self, loss, pictures, damaged)
        return loss

    def _loss_of(self, batch: Sequence[Any]) -> Tensor:
        """The loss of a batch, see ``loss_of_batch``."""
        images = batch[0].contiguous(memory_format=self._memory_format)
        settings = self._loss, self.teacher, self.hparams["teacher_weight"]
        return loss_of_batch(self.net, images, batch, *settings)

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch of the validation split; see ``Evaluator.evaluate``."""
        return self.evaluator.evaluate(self.trainer, self.net, "val", as_pair(batch), batch_idx)

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Measure one batch of the test split; see ``Evaluator.evaluate``."""
        return self.evaluator.evaluate(self.trainer, self.net, "test", as_pair(batch), batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint complete: loading it needs neither a weights file nor data."""
        self._facts.warn("The checkpoint says")
        sums = cast("Tensor", self.all_gather(self.evaluator.sums()))
        checkpoint[METADATA_KEY] = {
            **self.evaluator.description_of(self.net).to_dict(),
            "given": complete_settings(checkpoint["hyper_parameters"], self.net),
            "teacher": self._teacher_hash,
            "seed": self._seed,
            "train_sums": sums.reshape(-1, 3).tolist(),  # a row for each process
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the network; check first whether a training may continue from the checkpoint."""
        metadata, stored = checkpoint[METADATA_KEY], checkpoint_description(checkpoint)
        is_resuming = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if is_resuming:
            check_same_network(self, checkpoint)
        if self.net.description.architecture != stored.architecture:
            with as_large_as(checkpoint["state_dict"]):
                net = from_recipe(cast("dict[str, Any]", stored.architecture), self._user)
            self.net = net.to(self.device).to(memory_format=self._memory_format)
            self._freezing = Freezing(self.net, self.hparams)
        self.net.restore(stored)
        self._facts.forget_bundle()
        self.evaluator.restore(stored, checkpoint)
        self._seed = metadata["seed"]
        sums = metadata.get("train_sums", [])
        if is_resuming and len(sums) == self.trainer.world_size:
            self.evaluator.restore_sums(sums[self.global_rank])
        if self._trainer is not None:  # the data module's settings hold from now on
            self.follow_data(getattr(self.trainer, "datamodule", None))
