"""Epochs to show, made up."""

import torch

from camtrain.preprocessing import Preprocessing
from camtrain.training.evaluate.scores import Evaluation
from camtrain.training.watch.pictures import ValidationPicture
from camtrain.training.watch.results import ClassResult, PictureResult
from camtrain.training.watch.snapshot import EpochSnapshot, Moment, ValidationStatistics

NAMES = ("kangaroo", "leopard", "raccoon")


def validation_picture(index: int, side: int = 40) -> ValidationPicture:
    """A picture of noise, wider than high, with a box."""
    generator = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 256, (3, side, side * 3 // 2), generator=generator, dtype=torch.uint8)
    box = torch.tensor([[side // 4, side // 8, side, side // 2]])
    preprocessing, path = Preprocessing((32, 32)), f"val/{index}.jpg"
    return ValidationPicture(pixels, torch.zeros(3, 32, 32), (index % 3,), box, preprocessing, path)


def picture_result(picture: ValidationPicture, epoch: int, cells: int = 4) -> PictureResult:
    """What a network might predict: another class in every epoch."""
    height, width = picture.size_hw
    generator = torch.Generator().manual_seed(epoch)

    def class_result(label: int, score: float) -> ClassResult:
        class_map = torch.randn(cells, cells + 1, generator=generator)
        heat = torch.linspace(0, 1, height * width).reshape(height, width)
        box = torch.tensor([[1, 2, width // 2, height - 3]])
        return ClassResult(label, score, class_map, heat, box)

    true, predicted = picture.labels[0], epoch % 3
    return PictureResult(
        picture=picture,
        true=class_result(true, 0.25),
        predicted=class_result(predicted, 0.75),
        is_right=true == predicted,
        is_located=epoch % 2 == 0,
    )


def statistics(names: tuple[str, ...] = NAMES) -> ValidationStatistics:
    """What a validation might have counted."""
    evaluation = Evaluation(len(names))
    evaluation.reset()
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(30, len(names), generator=generator), torch.arange(30) % len(names)
    evaluation.update(logits, None, labels)
    boxes = [torch.tensor([[0, 0, 9, 9]])] * 30
    evaluation.statistics.update(torch.randn(30, 4, 5, generator=generator), boxes, (32, 32))
    return ValidationStatistics(
        evaluation.by_class(), evaluation.statistics.histograms(), {}, [[0.5, 0.25, 4]]
    )


def snapshot(
    epoch: int,
    *,
    pictures: int = 3,
    mistakes: int = 2,
    side: int = 40,
    cells: int = 4,
    names: tuple[str, ...] = NAMES,
) -> EpochSnapshot:
    """An epoch of made-up pictures."""
    results = [
        picture_result(validation_picture(index, side), epoch, cells)
        for index in range(pictures + mistakes)
    ]
    return EpochSnapshot(
        moment=Moment(epoch),
        step=max(0, 10 * epoch - 1),
        names=names,
        results=results[:pictures],
        mistakes=results[pictures:] if epoch else [],
        statistics=statistics(names) if epoch else None,
    )


def pictures_of(epoch: EpochSnapshot) -> dict[int, ValidationPicture]:
    """The watched pictures of an epoch, by index."""
    return dict(enumerate(result.picture for result in epoch.results))
