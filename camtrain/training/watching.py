"""Watching a network learn to look: heatmaps of the same pictures, every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.utils.data import DataLoader

from camtrain.data import DamagedImageError, PreparedDataset, to_pixels
from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.inference.bundle import DEFAULT_THRESHOLD, names_of
from camtrain.inference.heatmap import picture_heatmaps
from camtrain.localization import boxes_from_heatmap
from camtrain.model.camnet import CAMNet
from camtrain.model.probe import evaluating
from camtrain.preprocessing import Preprocessing
from camtrain.training.cache import FeatureDataset
from camtrain.training.files import replacing
from camtrain.visualize import WatchedPicture, contact_sheet, panel

MOST_IMAGES = 48
_LABELS_READ = 512


@dataclass(frozen=True, eq=False)
class _Watched:
    """A validation picture: as people see it, and as the network does."""

    shown: Tensor  # (C, H, W), uint8
    image: Tensor  # (C, h, w), normalized
    labels: tuple[int, ...]  # its classes; one, unless the network is multi-label
    boxes_xyxy: Tensor  # (n, 4), in pixels of `shown`
    preprocessing: Preprocessing


class CAMLogger(Callback):
    """Shows the same class-stratified validation pictures after every epoch, and before the first.

    Each picture stands beside the heatmaps of its true and of its predicted class, with boxes,
    names and scores. Where labels are multi-hot, the first class of a picture is shown as the true
    one, each of its classes is a right prediction, and a picture of no class has only a predicted
    one. The sheets go to ``DIRPATH/epoch_000.jpg``, ... and to the W&B and TensorBoard loggers of
    the trainer, under ``val/cams``. Works with any module whose ``.net`` is a ``CAMNet``.
    """

    def __init__(
        self,
        num_images: int = 16,
        *,
        dirpath: str | Path | None = None,
        colormap: str = "viridis",
        tile: int = 256,
        seed: int = 0,
    ) -> None:
        """Nothing is written before the training starts.

        Args:
            num_images: Pictures to watch, 1 to 48.
            dirpath: Folder of the sheets; None means ``cams`` in the trainer's log folder.
            colormap: ``viridis``, ``inferno``, ``turbo`` or ``jet``.
            tile: Longer side of each picture on the sheets, in pixels.
            seed: Of the choice of pictures.
        """
        if not 1 <= num_images <= MOST_IMAGES:
            raise CamtrainValueError(f"num_images must lie in 1..{MOST_IMAGES}, got {num_images}.")
        self.num_images = num_images
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.colormap = colormap
        self.tile = tile
        self.seed = seed
        self._indices: list[int] = []
        self._watched: list[_Watched] = []
        self._kept: Tensor | None = None  # the backbone's features, where it stays as it is

    def state_dict(self) -> dict[str, Any]:
        """The chosen pictures, so that a resumed training watches the same ones."""
        return {"indices": self._indices}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self._indices = list(state_dict["indices"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the pictures, and show them as the untrained network sees them."""
        net = getattr(pl_module, "net", None)
        if not isinstance(net, CAMNet):
            raise CamtrainTypeError(
                f"CAMLogger needs a module whose .net is a CAMNet, got {type(pl_module).__name__} "
                "with "
                f"{type(net).__name__}; use camtrain.training.CAMModule."
            )
        dataset, self._kept = _validation_dataset(trainer), None
        is_cached = isinstance(dataset, FeatureDataset)
        if isinstance(dataset, FeatureDataset):
            dataset = dataset.pictures
        if dataset is None or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        if not self._indices or max(self._indices) >= len(dataset):
            self._indices = stratified(_labels(dataset), self.num_images, self.seed)
        read = (_read_or_skip(dataset, index, net) for index in self._indices)
        self._watched = [one for one in read if one is not None]
        if is_cached and self._watched:
            self._kept = _trunk(self._watched, net)
        if trainer.global_step == 0:
            self._show(trainer, net, epoch=0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the pictures as the network sees them now."""
        if self._watched and not trainer.sanity_checking:
            net = pl_module.net
            assert isinstance(net, CAMNet)
            self._show(trainer, net, epoch=trainer.current_epoch + 1)

    def _show(self, trainer: Trainer, net: CAMNet, epoch: int) -> None:
        trunk = _trunk(self._watched, net) if self._kept is None else self._kept
        rows = _rows(self._watched, trunk, net, _class_names(trainer, net))
        right = sum(row.is_right for row in rows)
        title = f"epoch {epoch}  ·  {right} of {len(rows)} right"
        sheet = contact_sheet(rows, title=title, colormap=self.colormap, tile=self.tile)
        folder = self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "cams"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"epoch_{epoch:03d}.jpg") as part:
            sheet.save(part, "JPEG", quality=90)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                panels = _of_one_size(
                    [panel(row, colormap=self.colormap, tile=self.tile) for row in rows]
                )
                captions = [caption(row) for row in rows]
                logger.log_image("val/cams", panels, trainer.global_step, caption=captions)
            elif isinstance(logger, TensorBoardLogger):
                # Under the number of the step that Lightning logs the scores with.
                step = max(0, trainer.global_step - 1)
                logger.experiment.add_image("val/cams", np.asarray(sheet), step, dataformats="HWC")


def _of_one_size(panels: list[Image.Image]) -> list[Image.Image]:
    """Panels filled up with white at the bottom, since W&B wants pictures of one size."""
    size = (max(one.width for one in panels), max(one.height for one in panels))
    filled = [Image.new("RGB", size, "white") for _ in panels]
    for canvas, one in zip(filled, panels, strict=True):
        canvas.paste(one, (0, 0))
    return filled


def stratified(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Places of ``count`` items: one of every class in turn, each class in its own random order.

    Example:
        >>> [[0, 0, 0, 0, 1, 2][i] for i in stratified([0, 0, 0, 0, 1, 2], 4, seed=0)]
        [0, 1, 2, 0]
    """
    generator = np.random.default_rng(seed)
    turns = []
    for label in sorted(set(labels)):
        places = generator.permutation([i for i, other in enumerate(labels) if other == label])
        turns += [(turn, label, int(place)) for turn, place in enumerate(places[:count])]
    return [place for _, _, place in sorted(turns)[:count]]


def caption(row: WatchedPicture) -> str:
    """Names and scores of a picture in one line."""
    verdict = "right" if row.is_right else "wrong"
    return (
        f"true: {row.true_name} {row.true_score:.2f} | "
        f"predicted: {row.predicted_name} {row.predicted_score:.2f} ({verdict})"
    )


def _trunk(watched: list[_Watched], net: CAMNet) -> Tensor:
    """What the backbone makes of the pictures, (B, C, h, w)."""
    device = net.head.weight.device
    images = torch.stack([one.image for one in watched]).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    with evaluating(net), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        features: Tensor = net.backbone(images)
    return features


def _rows(
    watched: list[_Watched], trunk: Tensor, net: CAMNet, names: Sequence[str]
) -> list[WatchedPicture]:
    device = net.head.weight.device
    labels = torch.tensor([one.labels[0] if one.labels else 0 for one in watched], device=device)
    with evaluating(net), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        features = net.neck(trunk)
        logits = net.classify(features)
        classes = torch.stack([labels, logits.argmax(1)], dim=1)  # (B, 2): true, predicted
        maps = net.maps_of(features, classes=classes).maps.cpu()
        scores = net.scores(logits).gather(1, classes).tolist()
    rows = []
    for one, pair, both, score in zip(watched, maps, classes.tolist(), scores, strict=True):
        size_hw = (one.shown.shape[1], one.shown.shape[2])
        heat = picture_heatmaps(pair, one.preprocessing, size_hw)
        if not one.labels:
            heat[0] = 0.0
        row = WatchedPicture(
            image=one.shown,
            true_heatmap=heat[0],
            predicted_heatmap=heat[1],
            true_boxes_xyxy=one.boxes_xyxy,
            predicted_boxes_xyxy=boxes_from_heatmap(heat[0], DEFAULT_THRESHOLD)[:1],
            true_name=names[both[0]] if one.labels else "no class",
            predicted_name=names[both[1]],
            true_score=score[0] if one.labels else 0.0,
            predicted_score=score[1],
            is_right=both[1] in one.labels,
        )
        rows.append(row)
    return rows


def _read_or_skip(dataset: Sequence[Any], index: int, net: CAMNet) -> _Watched | None:
    """Whether a damaged picture is an error is for the validation to say."""
    try:
        return _read(dataset, index, net)
    except DamagedImageError:
        return None


def _read(dataset: Sequence[Any], index: int, net: CAMNet) -> _Watched:
    if isinstance(dataset, PreparedDataset):
        sample, picture = dataset[index], dataset.picture(index)
        labels, boxes_xyxy = _classes(sample.label), sample.boxes_xyxy
        return _Watched(picture.image, sample.image, labels, boxes_xyxy, dataset.preprocessing)
    image, label = dataset[index][:2]
    preprocessing = net.preprocessing or Preprocessing()
    shown = to_pixels(image, preprocessing)
    squash = replace(preprocessing, size=tuple(image.shape[1:]), resize_mode="squash")
    return _Watched(shown, image, _classes(label), torch.zeros(0, 4, dtype=torch.int64), squash)


def _labels(dataset: Sequence[Any]) -> list[int]:
    """The first class of each item, -1 for none; reads no picture where the data set knows them."""
    for name in ("labels", "targets"):
        if hasattr(dataset, name):
            labels = list(getattr(dataset, name))
            break
    else:
        labels = [dataset[i][1] for i in range(min(len(dataset), _LABELS_READ))]
    return [next(iter(_classes(label)), -1) for label in labels]


def _classes(label: object) -> tuple[int, ...]:
    """The classes of a label, which is a class number or multi-hot, (K,)."""
    label = torch.as_tensor(label)
    return (int(label),) if label.ndim == 0 else tuple(label.nonzero()[:, 0].tolist())


def _class_names(trainer: Trainer, net: CAMNet) -> Sequence[str]:
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return net.class_names or names or names_of(net)


def _validation_dataset(trainer: Trainer) -> Sequence[Any] | None:
    loaders = trainer.val_dataloaders
    first = loaders[0] if isinstance(loaders, (list, tuple)) and loaders else loaders
    return cast("Sequence[Any]", first.dataset) if isinstance(first, DataLoader) else None
