"""The callback that watches a network learn to look."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from camtrain.data import Batch, PreparedDataset
from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.inference.bundle import names_of
from camtrain.model.camnet import CAMNet
from camtrain.training.cache import FeatureDataset
from camtrain.training.files import replacing
from camtrain.training.module import CAMModule
from camtrain.training.watch.choice import candidates_of, validation_dataset
from camtrain.training.watch.looking import Looker
from camtrain.training.watch.mistakes import Mistake, Mistakes
from camtrain.training.watch.outlets import Outlet, make_outlets
from camtrain.training.watch.over_epochs import MOST_EPOCHS, over_epochs
from camtrain.training.watch.report import Report
from camtrain.training.watch.view import EpochView, Measured, Style

MOST_IMAGES = 48
_READ_PER_IMAGE = 4  # pictures, at most, where files are damaged


class CAMLogger(Callback):
    """Shows the same class-stratified validation pictures after every epoch, and before the first.

    Each picture stands beside the heatmaps of its true and of its predicted class, with boxes,
    names and scores. Where labels are multi-hot, the first class of a picture is shown as the true
    one, each of its classes is a right prediction, and a picture of no class has only a predicted
    one. Pictures of more than 1,024 pixels along a side are watched at 1,024.

    On disk: contact sheets ``DIRPATH/epoch_000.jpg``, ..., and ``report.html``, one page that needs
    no network: scores, the pictures with a slider over the epochs, confusions, localization against
    the threshold, mistakes, settings. It is written anew after every epoch; what it is made of lies
    in the folder ``report``, so that a resumed training goes on with it. In the end, beside it,
    ``over_epochs.png``: some heatmaps over the epochs in one picture.

    The loggers of the trainer get, in the row of the epoch's scores: W&B ``val/cams`` (overlays
    with boxes), ``val/cams_table`` (a row per picture and epoch), ``val/confusion``,
    ``val/classes``, ``val/cam_..._histogram`` and, by choice, ``val/cam_mistakes``; TensorBoard the
    contact sheets, the confusion matrix and the histograms; a CSV logger ``cams.csv``.

    Works with any module whose ``.net`` is a ``CAMNet``; classes, histograms and localization are
    measured by ``CAMModule``, and mistakes are known where ``validation_step`` returns ``logits``
    and ``batch``, as it does (with ``features`` too, nothing is computed a second time).
    """

    def __init__(
        self,
        num_images: int = 16,
        *,
        num_mistakes: int = 8,
        log_mistakes: bool = False,
        dirpath: str | Path | None = None,
        report: str | Path | None = None,
        colormap: str = "viridis",
        tile: int = 256,
        seed: int = 0,
    ) -> None:
        """Nothing is written before the training starts.

        Args:
            num_images: Pictures to watch, 1 to 48.
            num_mistakes: The most confident mistakes of each validation to show in the report, 0 to
                48.
            log_mistakes: Whether the loggers get them too, as ``val/cam_mistakes``.
            dirpath: Folder of the sheets; None means ``cams`` in the trainer's log folder.
            report: File of the report; None means ``report.html`` beside that folder.
            colormap: ``viridis``, ``inferno``, ``turbo`` or ``jet``.
            tile: Longer side of each picture on sheets and in loggers, 224 to 512 pixels.
            seed: Of the choice of pictures.
        """
        for name, number, least in (
            ("num_images", num_images, 1),
            ("num_mistakes", num_mistakes, 0),
        ):
            if not least <= number <= MOST_IMAGES:
                raise CamtrainValueError(
                    f"{name} must lie in {least}..{MOST_IMAGES}, got {number}."
                )
        self.num_images = num_images
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.report = None if report is None else Path(report)
        self.seed = seed
        self._style = Style(colormap, tile, log_mistakes)
        self._indices: list[int] = []
        self._choice = ""  # of what, and how many, they were chosen
        self._mistakes = Mistakes(num_mistakes)
        self._has_pictures = False
        self._looker: Looker | None = None  # of the first process, while it trains
        self._page: Report | None = None
        self._folder = Path()
        self._outlets: list[Outlet] = []
        self._outlet_states: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The chosen pictures, so that a resumed training watches the same ones."""
        states = [outlet.state_dict() for outlet in self._outlets]
        return {"indices": self._indices, "choice": self._choice, "outlets": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self._indices = list(state_dict["indices"])
        self._choice = state_dict.get("choice", "")
        self._outlet_states = list(state_dict.get("outlets", ()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the pictures, and show them as the untrained network sees them."""
        net, dataset = _net_of(pl_module), validation_dataset(trainer)
        self._has_pictures = dataset is not None
        self._looker, self._page, self._outlets = None, None, []
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        self._folder = self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "cams"
        page = self.report or self._folder.parent / "report.html"
        self._page = Report(page, self._style.colormap)
        is_new = trainer.global_step == 0
        if is_new:
            self._page.begin()
        else:
            self._page.load(trainer.current_epoch)
        with isolate_rng():  # whose pictures are read may draw numbers
            self._looker = None if dataset is None else self._choose(dataset, net)
        if self._looker is None:
            return
        self._page.show(self._looker.watched, _class_names(trainer, net))
        self._outlets = make_outlets(trainer, self._style, self._outlet_states)
        self._outlet_states = []
        if is_new:
            self._show(trainer, net, epoch=0)
            self._page.write(trainer, pl_module)

    def _choose(self, dataset: Sequence[Any], net: CAMNet) -> Looker | None:
        """The pictures to watch; None where there are none that can be read."""
        is_kept = isinstance(dataset, FeatureDataset)
        dataset = dataset.pictures if isinstance(dataset, FeatureDataset) else dataset
        try:
            candidates = candidates_of(dataset)
            choice = f"{self.num_images} of {candidates.identity}"
            places, count = self._indices, len(self._indices)
            if choice != self._choice:  # nothing is resumed, or other data
                places = candidates.in_turn(_READ_PER_IMAGE * self.num_images, self.seed)
                count = self.num_images
            looker = Looker(dataset, places, count, net, keeps_trunk=is_kept)
        except Exception as error:
            if isinstance(dataset, PreparedDataset):
                raise
            warnings.warn(
                "CAMLogger cannot show the validation pictures, which should be pairs of an image "
                f"and a label ({type(error).__name__}: {error}); the training goes on without.",
                stacklevel=2,
            )
            return None
        self._choice, self._indices = choice, list(looker.watched)
        return looker if looker.watched else None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the mistakes of the validation before."""
        self._mistakes.begin(rank=trainer.global_rank, processes=trainer.world_size)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the most confident mistakes, and what was computed of watched pictures."""
        is_known = isinstance(outputs, Mapping) and {"logits", "batch"} <= outputs.keys()
        if not is_known or dataloader_idx or not self._is_on(trainer):
            return
        assert isinstance(outputs, Mapping)
        seen, features = outputs["batch"], outputs.get("features")
        if isinstance(seen, Batch) and seen.is_cached:
            features = None  # of some pictures they are a vector, spread over a map
        elif isinstance(seen, Batch) and features is not None and self._looker is not None:
            self._looker.take(seen.indices, features)
        self._mistakes.update(_net_of(pl_module), outputs["logits"], seen, features=features)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the pictures as the network sees them now."""
        # Here, not later: an average of the weights is still in its place, and what the loggers
        # get can share a row with the scores.
        if not self._is_on(trainer):
            return
        measured = None
        if isinstance(pl_module, CAMModule):
            measured = Measured.by(pl_module.evaluations["val"])
        mistakes = self._mistakes.of_all_processes(trainer)
        if self._looker is not None:
            epoch, net = trainer.current_epoch + 1, _net_of(pl_module)
            with isolate_rng():
                self._show(trainer, net, epoch=epoch, mistakes=mistakes, measured=measured)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the report the scores of the validation; within an epoch, write it."""
        if self._page is not None and self._is_on(trainer):
            self._score(trainer, "val/")
            if not trainer.is_last_batch:
                self._page.write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, with the scores of the training."""
        if self._page is not None:
            self._score(trainer, "train/")
            self._page.write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write how the heatmaps have changed over the epochs."""
        if self._page is None or self._looker is None:
            return
        looks = self._page.looks(MOST_EPOCHS)
        pictures = list(self._looker.watched.values())
        if looks and any(one.labels for one in pictures):
            picture = over_epochs(pictures, looks, self._style.colormap)
            with replacing(self._page.path.with_name("over_epochs.png")) as part:
                picture.save(part, "PNG")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, with what the test after the training has given."""
        page = self._page
        if page is None and self.report is not None and trainer.is_global_zero:
            page = Report(self.report, self._style.colormap)  # there was nothing left to train
            page.load()
        if page is not None:
            page.conclude(_scores(trainer, "test/"))
            page.write(trainer, pl_module)

    def _is_on(self, trainer: Trainer) -> bool:
        """Whether a training with validation pictures is watched; the same in all processes."""
        is_trying = trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)
        is_training = trainer.state.fn == TrainerFn.FITTING
        return self._has_pictures and is_training and not is_trying

    def _score(self, trainer: Trainer, split: str) -> None:
        assert self._page is not None
        self._page.score(trainer.current_epoch + 1, _scores(trainer, split))

    def _show(
        self,
        trainer: Trainer,
        net: CAMNet,
        *,
        epoch: int,
        mistakes: Sequence[Mistake] = (),
        measured: Measured | None = None,
    ) -> None:
        assert self._looker is not None
        assert self._page is not None
        looks = self._looker.look(net, mistakes)
        view = EpochView(
            epoch=epoch,
            step=max(0, trainer.global_step - 1),  # as Lightning numbers the scores
            names=_class_names(trainer, net),
            pictures=list(self._looker.watched.values()),
            looks=looks.watched,
            mistakes=looks.mistakes,
            measured=measured,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / f"epoch_{epoch:03d}.jpg") as part:
            view.sheet(self._style).save(part, "JPEG", quality=90)
        for outlet in self._outlets:
            outlet.publish(view)
        self._page.add(view)


def _net_of(pl_module: LightningModule) -> CAMNet:
    net = getattr(pl_module, "net", None)
    if not isinstance(net, CAMNet):
        raise CamtrainTypeError(
            f"CAMLogger needs a module whose .net is a CAMNet, got {type(pl_module).__name__} with "
            f"{type(net).__name__}; use camtrain.training.CAMModule."
        )
    return net


def _class_names(trainer: Trainer, net: CAMNet) -> Sequence[str]:
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return net.class_names or names or names_of(net)


def _scores(trainer: Trainer, split: str) -> dict[str, Tensor]:
    """Logged scores of a split, by their full names."""
    metrics = trainer.callback_metrics
    return {name: value for name, value in metrics.items() if name.startswith(split)}
