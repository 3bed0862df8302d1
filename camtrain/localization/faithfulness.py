"""Whether maps show what a network uses: its score while pixels are deleted or inserted.

Sources: deletion and insertion are of Petsiuk et al., RISE, BMVC 2018 (arXiv 1806.07421, section
    4.2), the symmetric relevance gain of Bluecher et al., Decoupling Pixel Flipping and Occlusion
    Strategy for Consistent XAI Benchmarks, TMLR 2024 (arXiv 2401.06654). RISE deletes to grey and
    inserts into a blurred picture; the gain needs both with the same baseline, so both are measured
    with both baselines here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from camtrain.localization.metric import PictureMetric

STEPS = 20
BASELINES = ("mean_colour", "blurred")
_BLUR = 0.05  # standard deviation, part of the picture's side


def baselines(image: Tensor) -> Tensor:
    """What stands where a picture's pixels are deleted, (2, C, H, W), in the order of BASELINES.

    ``mean_colour`` is the mean of each channel of the picture (C, H, W); ``blurred`` is the picture
    under a Gaussian with a standard deviation of a twentieth of each side.

    Example:
        >>> baselines(torch.tensor([[[0.0, 1.0, 5.0]]]))[0].tolist()
        [[[2.0, 2.0, 2.0]]]
    """
    rows, columns = (_gaussian(side).to(image) for side in image.shape[1:])
    mean = image.mean((1, 2), keepdim=True)
    return torch.stack([mean.expand_as(image), rows @ image @ columns.T])


def _gaussian(side: int) -> Tensor:
    """The weight of each pixel of a row in each blurred one, (side, side); each sum is 1."""
    places = torch.arange(side, dtype=torch.float64) / (_BLUR * side)
    weights = (-0.5 * (places[:, None] - places).square()).exp()
    return weights / weights.sum(1, keepdim=True)


def perturbation_curves(
    score: Callable[[Tensor], Tensor], image: Tensor, heatmaps: Tensor
) -> Tensor:
    """A network's score of a picture while its pixels are replaced, the hottest ones first.

    Args:
        score: From pictures (B, C, H, W) to the score of the explained class, (B,).
        image: (C, H, W), as it enters the network.
        heatmaps: (k, H, W). Only the order of their values counts; of equal values the first in
            reading order is the hotter one.

    Returns:
        (k, 2, 2, 21) float64: by heatmap, baseline, direction and the part of the pixels that is
        replaced: 0, 1/20, ..., 1. Directions are deletion (picture to baseline) and insertion
        (baseline to picture).

    Example:
        A network that sums pixels, and a map that is the picture: 1 + 2 + 3 + 4 = 10.

        >>> image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> curves = perturbation_curves(lambda batch: batch.sum((1, 2, 3)), image, image)
        >>> curves[0, 0, 0, ::5].tolist()  # 4, then 3, 2, 1 become the mean, 2.5
        [10.0, 8.5, 8.0, 8.5, 10.0]
    """
    pixels = heatmaps[0].numel()
    ranks = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    ranks = ranks.reshape(len(heatmaps), 1, 1, *heatmaps.shape[1:])
    counts = (torch.arange(1, STEPS, device=image.device) * pixels / STEPS).round()
    is_replaced = ranks < counts[:, None, None, None]  # (k, 19, 1, H, W)
    replacements = baselines(image)
    whole, *bare = score(torch.cat([image[None], replacements])).double().cpu()[:, None]
    curves = []
    for mask in is_replaced:
        for other, end in zip(replacements, bare, strict=True):
            deletion = score(torch.where(mask, other, image)).double().cpu()
            insertion = score(torch.where(mask, image, other)).double().cpu()
            curves += [torch.cat([whole, deletion, end]), torch.cat([end, insertion, whole])]
    return torch.stack(curves).reshape(len(heatmaps), len(replacements), 2, STEPS + 1)


class Faithfulness(PictureMetric):
    """The areas under the curves of deletion and insertion, and the symmetric relevance gain.

    An area is the mean score along a curve (trapezoids), the gain insertion minus deletion; all are
    means over the baselines and the pictures. Deletion is best when it is low, insertion and gain
    when they are high. A map in random order has a gain of about 0.

    ``update`` takes the ``perturbation_curves`` of a picture, (k, 2, 2, 21).

    Args:
        kinds: Names of the k maps; the first is the one that people are shown.

    Example:
        >>> metric = Faithfulness(["shown"])
        >>> curves = torch.zeros(1, 2, 2, 21)
        >>> curves[:, :, 1] = torch.linspace(0, 1, 21)
        >>> metric.update(curves)
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'deletion': 0.0, 'insertion': 0.5, 'srg': 0.5}
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.add_sums("count", dtype=torch.int64)
        shape = (len(kinds), len(BASELINES), 2, STEPS + 1)
        self.add_sums("curves", shape=shape, dtype=torch.float64)
        # Of the differences between the gain of the first map and that of each.
        self.add_sums("squares", shape=shape[:1], dtype=torch.float64)

    def update(self, curves: Tensor) -> None:
        """Count a picture."""
        gains = _gains(curves).to(self.squares)
        self.curves += curves.to(self.curves)
        self.squares += (gains[0] - gains).square()
        self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """The scores by name, float64: of the first map, and ``srg_KIND`` of the others.

        NaN when nothing was counted.
        """
        curves = self.curves / self.count
        deletion, insertion = _areas(curves)[0].mean(0)
        gains = dict(zip(self.kinds, _gains(curves), strict=True))
        shown = gains.pop(self.kinds[0])
        scores = {"deletion": deletion, "insertion": insertion, "srg": shown}
        return scores | {f"srg_{kind}": gain for kind, gain in gains.items()}

    def report(self) -> dict[str, Any]:
        """All that was measured, over all processes, as plain values; empty without pictures.

        ``against`` has, for every further map, the ``difference`` of the first one's gain to its
        gain and the ends of the 95 % interval, 1.96 standard errors of the paired difference.
        """
        with self.sync_context():
            count, curves, squares = int(self.count), self.curves.cpu(), self.squares.cpu()
        if not count:
            return {}
        curves = curves / count
        gains = _gains(curves)
        differences = gains[0] - gains
        variances = (squares / count - differences.square()).clamp_min(0) / max(1, count - 1)
        values = zip(differences.tolist(), (1.96 * variances.sqrt()).tolist(), strict=True)
        against = {
            kind: {"difference": difference, "low": difference - reach, "high": difference + reach}
            for kind, (difference, reach) in zip(self.kinds, values, strict=True)
        }
        del against[self.kinds[0]]
        return {
            "pictures": count,
            "srg": dict(zip(self.kinds, gains.tolist(), strict=True)),
            "against": against,
            "curves": {
                kind: {
                    name: dict(zip(("deletion", "insertion"), pair.tolist(), strict=True))
                    for name, pair in zip(BASELINES, of_kind, strict=True)
                }
                for kind, of_kind in zip(self.kinds, curves, strict=True)
            },
        }


def _areas(curves: Tensor) -> Tensor:
    """The mean height of curves (..., 21), with straight lines between their points."""
    return torch.trapezoid(curves, dx=1 / STEPS)


def _gains(curves: Tensor) -> Tensor:
    """The symmetric relevance gain of each map, (k,), of curves (k, 2, 2, 21)."""
    deletion, insertion = _areas(curves).mean(1).unbind(1)
    return insertion - deletion
