"""The faithfulness of a tested network's maps, on some pictures of the test split."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from camtrain.arguments import announce
from camtrain.data import PreparedDataset
from camtrain.errors import one_line, warn
from camtrain.localization import Faithfulness, centre_map, perturbation_curves
from camtrain.maps import upsampled
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import RefinedOutput
from camtrain.training.cache import FeatureDataset
from camtrain.training.evaluate.mosaics import is_whole
from camtrain.training.module import CAMModule
from camtrain.training.watch.pictures import Candidates, dataset_of, load_picture
from camtrain.training.watch.results import compute

_COUNT_ON_GPU = 64


def log_faithfulness(module: CAMModule, trainer: Trainer, count: int | None, seed: int) -> None:
    """Log what ``Faithfulness`` measures on ``count`` test pictures, and add it to the report.

    None means 64 on a GPU and 0 on a CPU: each takes hundreds of forward passes. Classes take
    turns. Nothing is measured where only a part of the split is tested, or where its pictures have
    no numbers. Every process must call it, and measures its share.
    """
    if count is None:
        count = 0 if module.device.type == "cpu" else _COUNT_ON_GPU
    dataset = dataset_of(trainer.test_dataloaders)
    if not count or dataset is None or not is_whole(trainer, "test"):
        return
    dataset = dataset.pictures if isinstance(dataset, FeatureDataset) else dataset
    notice = announce(
        f"Measuring the faithfulness of the maps on {min(count, len(dataset))} pictures"
    )
    try:
        with notice if trainer.is_global_zero else nullcontext():
            metric = _measure(module.net, dataset, trainer, count, seed)
    except Exception as error:
        if isinstance(dataset, PreparedDataset):
            raise
        warn(
            "CAMLogger cannot measure faithfulness on the test pictures, which should be pairs of "
            f"an image and a label ({one_line(error)}); the test goes on without.",
            stacklevel=2,
        )
        return
    if report := metric.report():
        module.reports.setdefault("test", {})["faithfulness"] = report
        for name, value in metric.compute().items():
            module.log(f"test/{name}", value)


def _measure(
    net: CAMNet, dataset: Sequence[Any], trainer: Trainer, count: int, seed: int
) -> Faithfulness:
    metric = Faithfulness(kinds_of(net)).to(net.head.weight.device)
    indices = Candidates.of(dataset).stratified(count, seed)
    for index in indices[trainer.global_rank :: trainer.world_size]:
        picture = load_picture(dataset, index, net)
        if picture is not None:  # its file is damaged, which the test reports
            metric.update(curves_of(net, picture.image, seed=index))
    return metric


def kinds_of(net: CAMNet) -> list[str]:
    """The maps that are compared: the shown one, the plain one where it differs, two baselines."""
    return ["shown", *(["plain"] if net.stages else []), "centre", "random"]


def curves_of(net: CAMNet, image: Tensor, *, seed: int) -> Tensor:
    """The ``perturbation_curves`` of a picture (C, H, W) for its predicted class.

    The random map has as many cells as the class map, and their order depends on ``seed``.
    """
    size_hw = (image.shape[1], image.shape[2])
    find_maps = net.refined_maps if net.stages else net.class_maps
    output = compute(net, lambda batch: find_maps(batch, top=1), [image])
    label = int(output.classes[0, 0])
    refined = [output.refined_maps[0, 0]] if isinstance(output, RefinedOutput) else []
    maps = [class_map.cpu() for class_map in (*refined, output.maps[0, 0])]
    noise = torch.rand(maps[0].shape, generator=torch.Generator().manual_seed(seed))
    heatmaps = [upsampled(class_map, size_hw) for class_map in (*maps, noise)]
    heatmaps.insert(-1, centre_map(*size_hw))

    def score(images: Tensor) -> Tensor:
        return compute(net, lambda batch: net.scores(net(batch))[:, label], list(images))

    return perturbation_curves(score, image, torch.stack(heatmaps))
