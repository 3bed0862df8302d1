"""Repeats are known by their place: against torch's sampler, and in two processes that meet."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from camtrain.localization import MaxBoxAcc, MaxBoxAccV2, PxAP
from camtrain.training.evaluate.evaluator import is_repeat
from tests.by_two import run_by_two


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_without_the_repeats_every_sample_is_there_once(
    length: int, world_size: int, shuffle: bool
) -> None:
    kept = []
    for rank in range(world_size):
        sampler = DistributedSampler(range(length), world_size, rank, shuffle=shuffle)
        indices = list(sampler)
        for first in range(0, len(indices), 4):
            batch = indices[first : first + 4]
            repeats = is_repeat(
                first, len(batch), rank=rank, world_size=world_size, length=length
            ).tolist()
            kept += [index for index, repeat in zip(batch, repeats, strict=True) if not repeat]
    assert sorted(kept) == list(range(length))


def measure(out: Path) -> None:
    """Scores, thresholds and a curve of seven pictures, divided between all processes there are."""
    rank, world_size = int(os.environ.get("LOCAL_RANK", 0)), 2 if "LOCAL_RANK" in os.environ else 1
    if world_size > 1:
        distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(7, 5, 8, generator=generator)
    masks = list(torch.randint(2, (7, 20, 30), generator=generator, dtype=torch.uint8))
    boxes_xyxy = [torch.tensor([[n, 0, 50 - 4 * n, 40 - n]])[: n != 3] for n in range(7)]
    sizes_hw = torch.tensor([[40, 50]] * 7)
    boxes, all_boxes, pixels = MaxBoxAcc(), MaxBoxAccV2(), PxAP()
    indices = list(DistributedSampler(range(7), world_size, rank, shuffle=True))
    for first in range(0, len(indices), 3):
        batch = indices[first : first + 3]
        repeats = is_repeat(first, len(batch), rank=rank, world_size=world_size, length=7)
        batch = [i for i, repeat in zip(batch, repeats.tolist(), strict=True) if not repeat]
        for metric in (boxes, all_boxes):
            metric.update(maps[batch], [boxes_xyxy[index] for index in batch], sizes_hw[batch])
        pixels.update(maps[batch], [masks[index] for index in batch])
    scores = [metric.compute().item() for metric in (boxes, all_boxes, pixels)]
    thresholds = [boxes.best_threshold(), all_boxes.calibrated_threshold(0.3)]
    curve = all_boxes.curve(0.7)[1].tolist()
    (out / f"{world_size}{rank}.json").write_text(json.dumps([scores, thresholds, curve]))


@pytest.mark.nightly
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    measure(tmp_path)
    run_by_two(measure, tmp_path)  # of seven pictures the second process is given one twice
    alone, *both = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("10", "20", "21"))
    assert all(0 < score < 1 for score in alone[0])
    assert both == [alone, alone]
