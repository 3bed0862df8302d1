"""The order of an epoch: once each, or balanced; shared by processes; continued."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler

from camtrain.data import EpochSampler
from camtrain.errors import CamtrainError

LABELS = [0] * 90 + [3] * 9 + [7]


def test_processes_share_an_epoch_as_torch_does() -> None:
    for length, processes in ((10, 2), (11, 3), (2, 5)):
        for rank in range(processes):
            own = EpochSampler(length, shuffle=False, seed=0, num_replicas=processes, rank=rank)
            torchs = DistributedSampler(range(length), processes, rank, shuffle=False)
            assert [index for _, index in own] == list(torchs)
            assert len(own) == len(torchs)


def test_processes_shuffle_alike() -> None:
    whole = list(EpochSampler(12, shuffle=True, seed=3))
    for rank in range(3):
        share = EpochSampler(12, shuffle=True, seed=3, num_replicas=3, rank=rank)
        assert list(share) == whole[rank::3]


@pytest.mark.parametrize("labels", [None, LABELS], ids=["once each", "balanced"])
def test_an_epoch_goes_on_where_it_stopped(labels: list[int] | None) -> None:
    sampler = EpochSampler(100, shuffle=True, seed=1, labels=labels, num_replicas=2, rank=1)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.start = 13
    assert list(sampler) == whole[13:]
    assert list(sampler) == whole


@pytest.mark.nightly
def test_balanced_classes_are_equally_likely() -> None:
    sampler = EpochSampler(100, shuffle=True, seed=0, labels=LABELS)
    keys = [key for epoch in range(200) for key in at_epoch(sampler, epoch)]
    assert len(keys) == 200 * 100
    share = Counter(LABELS[index] for _, index, _ in keys)
    for label in (0, 3, 7):
        assert share[label] / len(keys) == pytest.approx(1 / 3, abs=0.02)  # 6 deviations
    within = Counter(index for _, index, _ in keys if LABELS[index] == 3)
    assert len(within) == 9
    assert max(within.values()) < 1.2 * min(within.values())


def test_a_balanced_order_depends_on_seed_and_epoch_alone() -> None:
    one, twin = (EpochSampler(100, shuffle=True, seed=1, labels=LABELS) for _ in range(2))
    assert at_epoch(one, 2) == at_epoch(twin, 2) != at_epoch(one, 3)
    assert at_epoch(EpochSampler(100, shuffle=True, seed=2, labels=LABELS), 2) != at_epoch(one, 2)
    assert len(set(at_epoch(one, 2))) == 100  # the number of the draw makes them differ


def at_epoch(sampler: EpochSampler, epoch: int) -> list[tuple[int, ...]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "labels must be as many as items, 3, got 2"),
        ([0, 1, torch.tensor([1, 0])], "exactly one class per picture, a number, got Tensor"),
        ([0, 1, (0, 1)], "choose sampler shuffle for multi-label pictures"),
    ],
)
def test_labels_that_cannot_be_balanced_are_refused(labels: list[Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        EpochSampler(3, shuffle=True, seed=0, labels=labels)
