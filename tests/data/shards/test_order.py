"""A random order that needs few shards at a time."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from camtrain.data import EpochSampler
from camtrain.data.loading import _BUFFER, shuffled_by_shard


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
