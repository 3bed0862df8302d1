"""The loader that goes on in the middle of an epoch."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from camtrain.data import EpochSampler, ResumableLoader, leave_signals_to_parent
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
