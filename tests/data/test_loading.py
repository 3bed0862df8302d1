"""The order of an epoch, and the loader that goes on in the middle of one."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from camtrain.data import (
    EpochSampler,
    ResumableLoader,
    leave_signals_to_parent,
)
from camtrain.data.loading import _BUFFER, shuffled_by_shard
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError


class Keys(Dataset[tuple[int, ...]]):
    """Gives back what it is asked for."""

    def __getitem__(self, key: tuple[int, ...]) -> tuple[int, ...]:
        """The key."""
        return key


def loader_of(length: int = 10, **settings: Any) -> ResumableLoader[list[tuple[int, ...]]]:
    labels = settings.pop("labels", None)
    sampler = EpochSampler(length, shuffle=True, seed=0, labels=labels)
    defaults = {"batch_size": 3, "collate_fn": list, "worker_init_fn": leave_signals_to_parent}
    return ResumableLoader(Keys(), sampler=sampler, **{**defaults, **settings})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_it_goes_on_with_the_batches_that_were_not_given(workers: int, done: int) -> None:
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    first, second = loader_of(**settings), loader_of(**settings)
    for loader in (first, second):
        loader.sampler.set_epoch(5)
    whole = list(loader_of_epoch(5))
    given = iter(first)
    assert [next(given) for _ in range(done)] == whole[:done]
    state = first.state_dict()
    assert state["batches"] == done  # however many the workers prepared
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert len(second) == 4
    assert list(second) == whole[done:]
    assert second.state_dict()["batches"] == 4
    second.sampler.set_epoch(6)
    assert list(second) == list(loader_of_epoch(6))


def loader_of_epoch(epoch: int) -> DataLoader[Any]:
    loader = loader_of()
    loader.sampler.set_epoch(epoch)
    return loader


def test_the_epoch_is_that_of_the_first_batch() -> None:
    loader = loader_of(num_workers=2)
    batches = iter(loader)
    loader.sampler.set_epoch(7)
    assert {epoch for epoch, _ in next(batches)} == {7}


def test_the_state_of_another_epoch_leaves_nothing_out() -> None:
    loader = loader_of()
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "batches": 2})
    assert len(list(loader)) == 4


CHANGES = [
    ({"batch_size": 4}, "the batch size was 3, got 4"),
    ({"length": 11}, "the number of training pictures was 10, got 11"),
    ({"labels": [0, 1] * 5}, "the balanced sampler was False, got True"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_other_batches_are_refused_within_an_epoch_alone(
    change: dict[str, Any], message: str
) -> None:
    state = {**loader_of().state_dict(), "batches": 2}
    other = loader_of(**change)
    with pytest.raises(CamtrainError, match=message):
        other.load_state_dict(state)
    other.load_state_dict({**state, "batches": 4})


def test_an_order_of_torch_cannot_go_on() -> None:
    loader = ResumableLoader(torch.arange(10), batch_size=3)
    assert [len(batch) for batch in loader] == [3, 3, 3, 1]
    with pytest.raises(CamtrainError, match="Only an order of camtrain's own"):
        loader.load_state_dict({**loader.state_dict(), "batches": 2})


class Missing(Dataset[int]):
    """Finds no file."""

    def __getitem__(self, key: object) -> int:
        """Raise, with a cause."""
        try:
            raise OSError("the cause")
        except OSError as error:
            raise CamtrainFileNotFoundError("The image a.jpg is gone; copy it again.") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_one_sentence(workers: int) -> None:
    loader = ResumableLoader(
        Missing(), sampler=EpochSampler(2, shuffle=False, seed=0), num_workers=workers
    )
    with pytest.raises(CamtrainFileNotFoundError) as raised:
        next(iter(loader))
    assert str(raised.value) == "The image a.jpg is gone; copy it again."


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


def order_of(sizes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    shard_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return shard_of, shuffled_by_shard(shard_of, torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 99))
def test_every_sample_comes_once(sizes: list[int], seed: int) -> None:
    _, order = order_of(sizes, seed)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(st.integers(1, 40), st.integers(0, 99))
def test_few_shards_are_open_at_a_time(count: int, seed: int) -> None:
    shard_of, order = order_of([5] * count, seed)
    needed = shard_of[order].tolist()
    for start in range(0, len(needed), 5 * _BUFFER):
        assert len(set(needed[start : start + 5 * _BUFFER])) == min(_BUFFER, count - start // 5)
    backwards = needed[::-1]
    lives = [(needed.index(one), len(needed) - backwards.index(one)) for one in set(needed)]
    open_at = [sum(first <= place < last for first, last in lives) for place in range(len(needed))]
    assert max(open_at) <= _BUFFER


def test_shards_and_their_samples_are_shuffled() -> None:
    shard_of, order = order_of([30] * 24)
    needed = shard_of[order].tolist()
    assert set(needed[:240]) != set(range(8))
    assert len(set(needed[:30])) > 4
    assert needed != sorted(needed)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    groups = torch.arange(90) // 3

    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(90, shuffle=True, seed=seed, groups=groups)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert [index for _, index in order(1, 2)] != [index for _, index in order(1, 3)]
    assert order(1, 2) != order(0, 2)
    assert {epoch for epoch, _ in order(1, 2)} == {2}
    assert list(EpochSampler(90, shuffle=False, seed=0, groups=groups))[:2] == [(0, 0), (0, 1)]
