"""A DataLoader that can go on in the middle of an epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from camtrain.data.sampler import EpochSampler
from camtrain.errors import CamtrainError, CamtrainValueError

T = TypeVar("T")

_MEANING = {
    "batch_size": "batch size",
    "pictures": "number of training pictures",
    "processes": "number of processes",
    "balanced": "balanced sampler",
}


class ResumableLoader(DataLoader[T]):
    """Batches in the order of an ``EpochSampler``, with a state: how many of an epoch were given.

    Batches that workers prepared ahead do not count. The order of an epoch is asked for with the
    first batch, not before: Lightning sets the epoch after it has asked for the iterator, and
    workers would have begun with the wrong one. Lightning's fit loop saves and loads the state.

    Takes the arguments of a ``DataLoader``; give ``worker_init_fn=leave_signals_to_parent`` with
    workers.
    """

    _epoch = 0
    _given = 0
    _continued: tuple[int, int] | None = None  # epoch, batches to leave out

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # torch promises its own class
        """The batches of the sampler's epoch that were not yet given."""
        self._epoch = self._epoch_now()
        epoch, done = self._continued or (-1, 0)
        self._continued = None
        self._given = done if epoch == self._epoch else 0
        if self._given:
            assert isinstance(self.sampler, EpochSampler)
            assert self.batch_size is not None
            self.sampler.start = self._given * self.batch_size
        try:
            for batch in super().__iter__():
                self._given += 1
                yield batch
        except CamtrainError as error:
            raise _as_raised(error) from None

    def state_dict(self) -> dict[str, int | bool]:
        """Where the iteration stands, in plain values, and what this place means."""
        if self._continued is not None:  # loaded, and no batch asked for since
            epoch, given = self._continued
        else:
            epoch, given = self._epoch, self._given
        return {"epoch": epoch, "batches": given, "length": len(self), **self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on there, if it is of that epoch.

        Raises:
            CamtrainValueError: The batches of an epoch are no longer what they were.
        """
        if 0 < state["batches"] < state["length"]:
            self._check_same_batches(state)
        self._continued = (int(state["epoch"]), int(state["batches"]))

    def _check_same_batches(self, state: dict[str, Any]) -> None:
        if not isinstance(self.sampler, EpochSampler):
            raise CamtrainValueError(
                "Only an order of camtrain's own can be continued within an epoch, got "
                f"{type(self.sampler).__name__}; leave --trainer.overfit_batches out."
            )
        for name, now in self._layout().items():
            if state[name] != now:
                raise CamtrainValueError(
                    "A training that stopped within an epoch goes on with the same batches; the "
                    f"{_MEANING[name]} was {state[name]}, got {now}; give the same settings and "
                    "data, or start a new run from its network with --model.weights."
                )

    def _layout(self) -> dict[str, int | bool]:
        """What the batches of an epoch depend on, beside seed and epoch."""
        sampler = self.sampler
        return {
            "batch_size": self.batch_size or 0,
            "pictures": sampler.length if isinstance(sampler, EpochSampler) else 0,
            "processes": sampler.num_replicas if isinstance(sampler, EpochSampler) else 1,
            "balanced": isinstance(sampler, EpochSampler) and sampler.is_balanced,
        }

    def _epoch_now(self) -> int:
        return int(getattr(self.sampler, "epoch", 0))


def _as_raised(error: CamtrainError) -> CamtrainError:
    """An error as a worker raised it: torch puts the worker's whole traceback into its text."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    text = str(error)
    return type(error)(text.rpartition(name)[2].rstrip()) if text.startswith("Caught ") else error


def leave_signals_to_parent(worker: int) -> None:
    """For ``worker_init_fn``: Ctrl-C and a group's SIGTERM reach the training process alone.

    A worker that dies of them would end the training before it could write its checkpoint. Workers
    end with their parent, however that ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
