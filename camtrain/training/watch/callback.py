"""The callback that shows heatmaps after every validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from camtrain.data import Batch, PreparedDataset
from camtrain.errors import CamtrainTypeError, CamtrainValueError, one_line, warn
from camtrain.files import write_picture
from camtrain.model.camnet import CAMNet
from camtrain.training.cache import FeatureDataset
from camtrain.training.module import CAMModule
from camtrain.training.watch.batch_picture import class_names_of
from camtrain.training.watch.faithfulness import log_faithfulness
from camtrain.training.watch.mistakes import Mistake, Mistakes
from camtrain.training.watch.pictures import Candidates, dataset_of, validation_dataset
from camtrain.training.watch.report import TrainingReport
from camtrain.training.watch.results import PictureResult, WatchRunner, blank_predictions
from camtrain.training.watch.sinks import Sink, make_sinks
from camtrain.training.watch.snapshot import (
    BoxThreshold,
    EpochSnapshot,
    Moment,
    ValidationStatistics,
)
from camtrain.visualize.overlay import palette
from camtrain.visualize.sheets import check_tile

MOST_IMAGES = 48
_CANDIDATES_PER_IMAGE = 4  # how many are tried at most where files are damaged


class CAMLogger(Callback):
    """Shows the same class-stratified pictures after every validation, and before the first epoch.

    Each picture stands beside the heatmaps of its true and of its predicted class, with boxes,
    names and scores. If a picture has several true classes, the heatmap of the first one is shown,
    and the prediction is right if it is any of them; a picture without a class has only the heatmap
    of the prediction. Pictures of more than 1,024 pixels along a side are reduced to 1,024.

    The callback writes contact sheets, ``DIRPATH/epoch_000.jpg``, ... (after validations within
    an epoch ``epoch_001_step_000250.jpg``, ...), and ``report.html``, a page that needs no network:
    scores, pictures with a slider over the epochs, confusions, localization, mistakes, settings. It
    is written anew each time; its data lies in the folder ``report``, so that a resumed training
    continues it. At the end, ``over_epochs.png`` shows up to five pictures at six moments.

    The loggers of the trainer get, at the same step as the epoch's scores: W&B ``val/cams``
    (overlays with boxes), ``val/cams_table`` (see ``WandbSink``), ``val/confusion``,
    ``val/reliability``, ``val/classes``, ``val/cam_..._histogram`` and, with ``log_mistakes``,
    ``val/cam_mistakes``; MLflow each picture, sheets, charts and tables (see ``MlflowSink``);
    TensorBoard sheets, charts and histograms; CSV ``cams.csv``; others sheets and charts.

    It works with any module whose ``.net`` is a ``CAMNet``, also in ``lightning.pytorch``. Only
    ``CAMModule`` measures classes, histograms and localization. Mistakes are shown if
    ``validation_step`` returns ``logits`` and ``batch``, as ``CAMModule`` does; if it returns
    ``features`` too, they are not computed again.
    """

    def __init__(
        self,
        num_images: int = 16,
        *,
        num_mistakes: int = 8,
        log_mistakes: bool = False,
        masks: bool = False,
        faithfulness: int | None = None,
        dirpath: str | Path | None = None,
        report: str | Path | None = None,
        colormap: str = "viridis",
        tile: int = 256,
        seed: int = 0,
    ) -> None:
        """Nothing is written before the training starts.

        Args:
            num_images: Pictures to watch, 1 to 48. Per validation each adds about 20 kB (at a tile
                of 512) to ``cams`` and to the W&B run, where all stay: fewer keep both small.
            num_mistakes: The most confident mistakes of each validation to show in the report, 0 to
                48.
            log_mistakes: Whether the loggers get the mistakes too, as ``val/cam_mistakes``.
            masks: Whether W&B gets heatmaps as masks of 5 levels: change their opacity there.
            faithfulness: Test pictures to measure deletion and insertion on; None: 64, on a CPU 0.
            dirpath: Folder of the sheets, one per logger; None: ``cams`` where logs are.
            report: File of the report; None: ``report.html`` in ``dirpath``, or beside ``cams``.
            colormap: ``viridis``, ``inferno``, ``turbo`` or ``jet``.
            tile: Longer side of each picture on sheets and in loggers, 224 to 512 pixels.
            seed: Seed for the choice of the pictures.
        """
        limits = (("num_images", num_images, 1), ("num_mistakes", num_mistakes, 0))
        for name, number, low in limits:
            if not low <= number <= MOST_IMAGES:
                raise CamtrainValueError(f"{name} must lie in {low}..{MOST_IMAGES}, got {number}.")
        if faithfulness is not None and faithfulness < 0:
            raise CamtrainValueError(f"faithfulness must be at least 0, got {faithfulness}.")
        self.num_images, self.faithfulness, self.seed = num_images, faithfulness, seed
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.report = None if report is None else Path(report)
        self._state_key = f"CAMLogger {place}" if (place := dirpath or report) else "CAMLogger"
        palette(colormap)  # raises now, not after an epoch
        check_tile(tile)
        self._colormap, self._tile = colormap, tile
        self._sink_options = {"log_mistakes": log_mistakes, "masks": masks}
        self._indices: list[int] = []
        self._choice = ""  # identifies the data, and how many pictures were chosen
        self._mistakes = Mistakes(num_mistakes)
        self._has_pictures = False
        self._runner: WatchRunner | None = None  # in the first process, while it trains
        self._page: TrainingReport | None = None
        self._folder = Path()
        self._sinks: list[Sink] = []
        self._moment = Moment(0)  # of the validation that is going on

    _legacy_state_key = cast("Any", "CAMLogger")  # of earlier versions, which allowed one

    @property
    def state_key(self) -> str:
        """What tells several loggers of a trainer apart: where they write."""
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """The chosen pictures, so that a resumed training watches the same ones."""
        return {"indices": self._indices, "choice": self._choice, "faithfulness": self.faithfulness}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the choice of pictures."""
        self._indices = list(state_dict["indices"])
        self._choice = state_dict.get("choice", "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the pictures; a new training shows them with the untrained network."""
        net, dataset = _net_of(pl_module), validation_dataset(trainer)
        self._has_pictures = dataset is not None
        self._runner, self._page, self._sinks = None, None, []
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        self._folder = self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "cams"
        path = self.report or (self.dirpath or self._folder.parent) / "report.html"
        self._page = TrainingReport(path, self._colormap)
        is_new = trainer.global_step == 0
        if is_new:
            self._page.clear()
        else:
            self._page.load(trainer.current_epoch, trainer.global_step)
        with isolate_rng():  # a data set may draw random numbers
            self._runner = None if dataset is None else self._make_runner(dataset, net)
        if self._runner is None:
            return
        names = class_names_of(trainer, net) or net.display_names
        self._page.set_pictures(self._runner.pictures, names)
        self._sinks = make_sinks(trainer, self._folder, path, **self._sink_options)
        if is_new:
            self._show(trainer, net, Moment(0))
            self._page.write(trainer, pl_module)

    def _make_runner(self, dataset: Sequence[Any], net: CAMNet) -> WatchRunner | None:
        """Choose the pictures and return what evaluates them; None if none can be read."""
        is_cached = isinstance(dataset, FeatureDataset)
        dataset = dataset.pictures if isinstance(dataset, FeatureDataset) else dataset
        try:
            candidates = Candidates.of(dataset)
            choice = f"{self.num_images} of {candidates.identity}"
            indices, count = self._indices, len(self._indices)
            if choice != self._choice:  # nothing is resumed, or the data has changed
                count = self.num_images
                indices = candidates.stratified(_CANDIDATES_PER_IMAGE * count, self.seed)
            runner = WatchRunner(dataset, indices, count, net, is_backbone_cached=is_cached)
        except Exception as error:
            if isinstance(dataset, PreparedDataset):
                raise
            warn(
                "CAMLogger cannot show the validation pictures, which should be pairs of an image "
                f"and a label ({one_line(error)}); the training goes on without.",
                stacklevel=2,
            )
            return None
        self._choice, self._indices = choice, list(runner.pictures)
        return runner if runner.pictures else None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the mistakes of the previous validation."""
        self._moment = Moment.of(trainer)  # a callback may stop the training in a later hook
        self._mistakes.reset(rank=trainer.global_rank, processes=trainer.world_size)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the most confident mistakes, and the features of watched pictures."""
        if not isinstance(outputs, Mapping) or not {"logits", "batch"} <= outputs.keys():
            return
        if dataloader_idx or not self._is_watching(trainer):
            return
        val_batch, features = outputs["batch"], outputs.get("features")
        if isinstance(val_batch, Batch) and val_batch.is_cached:
            features = None  # for some pictures they are a vector, spread over a map
        elif isinstance(val_batch, Batch) and features is not None and self._runner is not None:
            self._runner.keep_features(val_batch.indices, features)
        self._mistakes.update(_net_of(pl_module), outputs["logits"], val_batch, features=features)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the watched pictures with the current network, and show them."""
        # In later hooks the network no longer has its averaged weights, and the loggers have
        # already written the epoch's scores.
        if not self._is_watching(trainer):
            return
        statistics = None
        if isinstance(pl_module, CAMModule):
            statistics = ValidationStatistics.of(pl_module.evaluator["val"])
        mistakes = self._mistakes.of_all_processes(trainer)
        if self._runner is not None:
            with isolate_rng():
                net = _net_of(pl_module)
                self._show(trainer, net, self._moment, mistakes=mistakes, statistics=statistics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the scores to the report; write it, unless ``on_train_epoch_end`` is about to."""
        if self._page is not None and self._is_watching(trainer):
            self._page.add_scores(self._moment, _scores(trainer, "val/"))
            if self._moment.step is not None:
                self._page.write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the scores of the training to the report, and write it."""
        if self._page is not None:
            self._page.add_scores(Moment(trainer.current_epoch + 1), _scores(trainer, "train/"))
            self._page.write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``over_epochs.png``, heatmaps of some pictures over the epochs."""
        if self._page is None or self._runner is None:
            return
        picture = self._page.timeline(list(self._runner.pictures.values()))
        if picture is not None:
            write_picture(self._page.path.with_name("over_epochs.png"), picture)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure faithfulness; after a training, show test pictures with the tested network."""
        if not isinstance(pl_module, CAMModule):
            return
        log_faithfulness(pl_module, trainer, self.faithfulness, self.seed)
        if self._runner is None or (dataset := dataset_of(trainer.test_dataloaders)) is None:
            return
        net, evaluator = pl_module.net, pl_module.evaluator
        threshold = BoxThreshold(evaluator.map_threshold, evaluator.is_calibrated)
        dataset = dataset.pictures if isinstance(dataset, FeatureDataset) else dataset
        with isolate_rng():
            indices = Candidates.of(dataset).stratified(self.num_images, self.seed)
            runner = WatchRunner(dataset, indices, len(indices), net, is_backbone_cached=False)
            results, _ = runner.run(net, threshold=threshold.value)
        if results:
            epoch, step = evaluator.loaded_epoch or trainer.current_epoch, evaluator.loaded_step
            snapshot = self._snapshot(trainer, net, Moment(epoch, step=step), results, threshold)
            self._log(replace(snapshot, split="test"))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the scores of a test to the report, and write it."""
        page = self._page
        if page is None and self.report is not None and trainer.is_global_zero:
            page = TrainingReport(self.report, self._colormap)  # nothing was left to train
            page.load()
        if page is not None:
            net, report = _net_of(pl_module), getattr(pl_module, "reports", {}).get("test", {})
            page.set_test_scores(_scores(trainer, "test/"), report)
            names = class_names_of(trainer, net) or net.display_names
            page.set_blanks(blank_predictions(net, names))
            page.write(trainer, pl_module)

    def _is_watching(self, trainer: Trainer) -> bool:
        """Whether a training, not a trial run, validates pictures; equal in all processes."""
        is_trial = trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)
        is_training = trainer.state.fn == TrainerFn.FITTING
        return self._has_pictures and is_training and not is_trial

    def _show(
        self,
        trainer: Trainer,
        net: CAMNet,
        moment: Moment,
        *,
        mistakes: Sequence[Mistake] = (),
        statistics: ValidationStatistics | None = None,
    ) -> None:
        """Evaluate the pictures, and show them on disk, in loggers and in the report."""
        assert self._runner is not None
        assert self._page is not None
        threshold = BoxThreshold() if statistics is None else statistics.threshold
        results, mistake_results = self._runner.run(net, mistakes, threshold=threshold.value)
        snapshot = self._snapshot(trainer, net, moment, results, threshold)
        snapshot = replace(snapshot, mistakes=mistake_results, statistics=statistics)
        self._log(snapshot)
        self._page.add(snapshot)
        self._page.set_blanks(blank_predictions(net, snapshot.names))

    def _snapshot(
        self,
        trainer: Trainer,
        net: CAMNet,
        moment: Moment,
        results: Sequence[PictureResult],
        threshold: BoxThreshold,
    ) -> EpochSnapshot:
        return EpochSnapshot(
            moment=moment,
            step=max(0, trainer.global_step - 1),  # as Lightning numbers the scores
            names=class_names_of(trainer, net) or net.display_names,
            results=results,
            mistakes=(),
            statistics=None,
            threshold=threshold,
            colormap=self._colormap,
            tile=self._tile,
        )

    def _log(self, snapshot: EpochSnapshot) -> None:
        """Show a snapshot on disk and in the loggers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = "test" if snapshot.split == "test" else snapshot.moment.stem
        write_picture(self._folder / f"{name}.jpg", snapshot.sheet)
        for sink in self._sinks:
            sink.log(snapshot)


def _net_of(pl_module: LightningModule) -> CAMNet:
    """The ``net`` of a module; raises CamtrainTypeError if it is no ``CAMNet``."""
    net = getattr(pl_module, "net", None)
    if not isinstance(net, CAMNet):
        raise CamtrainTypeError(
            f"CAMLogger needs a module whose .net is a CAMNet, got {type(pl_module).__name__} with "
            f"{type(net).__name__}; use camtrain.training.CAMModule."
        )
    return net


def _scores(trainer: Trainer, prefix: str) -> dict[str, Tensor]:
    """The logged scores whose names begin with ``prefix``, such as ``val/``."""
    metrics = trainer.callback_metrics
    return {name: value for name, value in metrics.items() if name.startswith(prefix)}
