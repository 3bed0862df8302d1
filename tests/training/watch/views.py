"""Epochs to show, made up."""

import torch

from camtrain.preprocessing import Preprocessing
from camtrain.training.evaluate.evaluator import Evaluation
from camtrain.training.watch.choice import Watched
from camtrain.training.watch.looking import Look, Seen
from camtrain.training.watch.view import EpochView, Measured

NAMES = ("kangaroo", "leopard", "raccoon")


def watched(place: int, side: int = 40) -> Watched:
    """A picture of noise, wider than high, with a box."""
    generator = torch.Generator().manual_seed(place)
    shown = torch.randint(0, 256, (3, side, side * 3 // 2), generator=generator, dtype=torch.uint8)
    box = torch.tensor([[side // 4, side // 8, side, side // 2]])
    image = torch.zeros(3, 32, 32)
    return Watched(shown, image, (place % 3,), box, Preprocessing((32, 32)), f"val/{place}.jpg")


def look_at(picture: Watched, epoch: int, cells: int = 4) -> Look:
    """What a network might see: another class in every epoch."""
    height, width = picture.size_hw
    generator = torch.Generator().manual_seed(epoch)

    def seen(label: int, score: float) -> Seen:
        class_map = torch.randn(cells, cells + 1, generator=generator)
        heat = torch.linspace(0, 1, height * width).reshape(height, width)
        return Seen(label, score, class_map, heat, torch.tensor([[1, 2, width // 2, height - 3]]))

    true, predicted = picture.labels[0], epoch % 3
    return Look(seen(true, 0.25), seen(predicted, 0.75), true == predicted, epoch % 2 == 0)


def measured(names: tuple[str, ...] = NAMES) -> Measured:
    """What a validation might have counted."""
    evaluation = Evaluation(len(names))
    evaluation.reset()
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(30, len(names), generator=generator), torch.arange(30) % len(names)
    evaluation.update(logits, None, labels)
    boxes = [torch.tensor([[0, 0, 9, 9]])] * 30
    evaluation.statistics.update(torch.randn(30, 4, 5, generator=generator), boxes, (32, 32))
    return Measured(evaluation.by_class(), evaluation.statistics.histograms(), {})


def view(
    epoch: int,
    *,
    pictures: int = 3,
    mistakes: int = 2,
    side: int = 40,
    cells: int = 4,
    names: tuple[str, ...] = NAMES,
) -> EpochView:
    """An epoch of made-up pictures."""
    every = [watched(place, side) for place in range(pictures + mistakes)]
    looks = [look_at(one, epoch, cells) for one in every]
    return EpochView(
        epoch=epoch,
        step=max(0, 10 * epoch - 1),
        names=names,
        pictures=every[:pictures],
        looks=looks[:pictures],
        mistakes=list(zip(every, looks, strict=True))[pictures:] if epoch else [],
        measured=measured(names) if epoch else None,
    )
