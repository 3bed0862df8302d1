"""Deletion, insertion and their difference, by hand for a network that sums pixels."""

import pytest
import torch
from torch import Tensor

from camtrain.localization.faithfulness import (
    STEPS,
    Faithfulness,
    baselines,
    perturbation_curves,
)

IMAGE = torch.arange(20.0).reshape(1, 4, 5)  # one pixel per step; sum 190, mean 9.5


def sum_of_pixels(images: Tensor) -> Tensor:
    return images.sum((1, 2, 3))


def test_curves_of_a_network_that_sums_pixels_are_known_by_hand() -> None:
    curves = perturbation_curves(sum_of_pixels, IMAGE, torch.cat([IMAGE, -IMAGE]))
    assert curves.shape == (2, 2, 2, STEPS + 1)
    # After t steps, the t largest of 0..19 have become 9.5: each loses 19 - i - 9.5.
    losses = torch.cumsum(19 - torch.arange(20.0) - 9.5, 0).tolist()
    deletion = [190 - loss for loss in (0.0, *losses)]
    insertion = [190 + loss for loss in (0.0, *losses)]
    assert curves[0, 0].tolist() == [deletion, insertion]
    assert curves[1, 0].tolist() == [insertion, deletion]  # the smallest ones first
    # The areas: the losses are t (20 - t) / 2, whose mean over 20 steps is 66.5 / 2.
    metric = Faithfulness(["shown", "opposite"])
    metric.update(torch.stack([curves[:, :1], curves[:, :1]], dim=1).flatten(1, 2))
    scores = {name: value.item() for name, value in metric.compute().items()}
    assert scores == pytest.approx(
        {"deletion": 190 - 33.25, "insertion": 190 + 33.25, "srg": 66.5, "srg_opposite": -66.5}
    )


def test_curves_begin_and_end_at_the_picture_and_the_baseline() -> None:
    image = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(0))
    curves = perturbation_curves(sum_of_pixels, image, torch.rand(2, 6, 9))
    ends = sum_of_pixels(baselines(image)).double()
    for of_map in curves:
        for (deletion, insertion), end in zip(of_map, ends, strict=True):
            assert deletion[0] == insertion[-1] == sum_of_pixels(image[None])[0]
            assert deletion[-1] == insertion[0] == end
    # Such a network adds: what is deleted is what insertion lacks.
    assert torch.allclose(curves.sum(2), curves.sum(2)[:, :, :1].expand(-1, -1, STEPS + 1))


def test_only_the_order_of_a_map_counts_and_equal_values_go_in_reading_order() -> None:
    image = torch.rand(1, 4, 5)
    heatmaps = torch.stack([IMAGE[0], IMAGE[0].exp(), torch.zeros(4, 5), -IMAGE[0]])
    curves = perturbation_curves(sum_of_pixels, image, heatmaps)
    assert torch.equal(curves[0], curves[1])
    assert torch.equal(curves[2], curves[3])


def test_baselines_are_the_mean_colour_and_a_blur_that_keeps_what_is_even() -> None:
    image = torch.stack([torch.full((8, 12), 3.0), torch.arange(96.0).reshape(8, 12)])
    mean, blurred = baselines(image)
    assert mean[:, 3, 4].tolist() == [3.0, 47.5]
    assert torch.allclose(blurred[0], image[0])
    assert blurred[1].std() < image[1].std()
    dot = torch.zeros(1, 1, 20)
    dot[0, 0, 10] = 1.0
    row = baselines(dot)[1][0, 0]  # a standard deviation of one pixel
    assert torch.allclose(row, row.flip(0).roll(1), atol=1e-6)
    assert row[11] / row[10] == pytest.approx(2.718281828**-0.5, rel=1e-5)


def test_the_interval_is_that_of_pairs() -> None:
    metric = Faithfulness(["shown", "centre"])
    assert metric.report() == {}
    for gain in (0.2, 0.4):
        curves = torch.zeros(2, 2, 2, STEPS + 1, dtype=torch.float64)
        curves[0, :, 1] = gain  # insertion at once
        metric.update(curves)
    report = metric.report()
    assert report["pictures"] == 2
    assert report["srg"] == pytest.approx({"shown": 0.3, "centre": 0.0})
    against = report["against"]["centre"]
    assert against["difference"] == pytest.approx(0.3)
    assert against["high"] == pytest.approx(0.3 + 1.96 * 0.1)
    assert against["low"] == pytest.approx(0.3 - 1.96 * 0.1)
    assert report["curves"]["shown"]["blurred"]["insertion"] == pytest.approx([0.3] * (STEPS + 1))
