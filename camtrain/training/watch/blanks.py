"""What a network predicts of pictures that show nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camtrain.model.camnet import CAMNet
from camtrain.training.watch.results import compute


def blank_predictions(net: CAMNet, names: Sequence[str]) -> str | None:
    """The best class and its score for a black, a gray and a white picture, and for noise.

    A network that is as sure of them as of photographs has scores that say little. None where the
    preprocessing is unknown.
    """
    if net.preprocessing is None:
        return None
    mean, std = (
        torch.tensor(v).reshape(-1, 1, 1) for v in (net.preprocessing.mean, net.preprocessing.std)
    )
    shape = (len(mean), *net.preprocessing.size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    blanks = {
        "a black picture": torch.zeros(shape),
        "a gray one": torch.full(shape, 0.5),
        "a white one": torch.ones(shape),
        "noise": noise,
    }
    pictures = [(pixels - mean) / std for pixels in blanks.values()]
    scores, classes = compute(net, lambda batch: net.scores(net(batch).float()), pictures).max(1)
    predictions = zip(scores.tolist(), classes.tolist(), blanks, strict=True)
    return ", ".join(f"{names[k]} {score:.2f} of {blank}" for score, k, blank in predictions)
