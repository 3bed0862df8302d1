"""Repeats are known by their place: against torch's sampler, and in two processes that meet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DistributedSampler

from camtrain.localization.repeats import is_repeat


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


PROCESS = """
import json, sys
import torch
from torch import distributed
from torch.utils.data import DistributedSampler
from camtrain.localization import MaxBoxAcc, MaxBoxAccV2, PxAP
from camtrain.localization.repeats import is_repeat

rank, world_size, meeting_point = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world_size > 1:
    distributed.init_process_group(
        "gloo", init_method="file://" + meeting_point, rank=rank, world_size=world_size
    )
generator = torch.Generator().manual_seed(0)
maps = torch.randn(7, 5, 8, generator=generator)
masks = list(torch.randint(2, (7, 20, 30), generator=generator, dtype=torch.uint8))
boxes_xyxy = [torch.tensor([[n, 0, 50 - 4 * n, 40 - n]])[: n != 3] for n in range(7)]
sizes_hw = torch.tensor([[40, 50]] * 7)
boxes, all_boxes, pixels = MaxBoxAcc(), MaxBoxAccV2(), PxAP()
indices = list(DistributedSampler(range(7), world_size, rank, shuffle=True))
for first in range(0, len(indices), 3):
    batch = indices[first : first + 3]
    repeats = is_repeat(first, len(batch), rank=rank, world_size=world_size, length=7).tolist()
    batch = [index for index, repeat in zip(batch, repeats) if not repeat]
    for metric in (boxes, all_boxes):
        metric.update(maps[batch], [boxes_xyxy[index] for index in batch], sizes_hw[batch])
    pixels.update(maps[batch], [masks[index] for index in batch])
scores = [metric.compute().item() for metric in (boxes, all_boxes, pixels)]
thresholds = [boxes.best_threshold(), all_boxes.calibrated_threshold(0.3)]
curve = all_boxes.curve(0.7)[1].tolist()
print(json.dumps([scores, thresholds, curve]))
if world_size > 1:
    distributed.destroy_process_group()
"""


def outputs_of(world_size: int, meeting_point: Path) -> list[list[float]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(world_size), str(meeting_point)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    [alone] = outputs_of(1, tmp_path / "unused")
    scores = alone[0]
    assert all(0 < score < 1 for score in scores)
    # Of seven pictures the second process is given one twice.
    assert outputs_of(2, tmp_path / "meeting_point") == [alone, alone]
