"""How a training ends: what is said when one of its workers dies."""

import pytest

from camtrain.errors import CamtrainValueError
from camtrain.training.run.signals import StopSignals, ending_cleanly
from tests.training.conftest import quiet_trainer

# What torch raises of a worker; before, each was a traceback, and of the last nothing was raised.
DEATHS = [
    "DataLoader worker (pid 7) is killed by signal: Killed. ",
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit.",
    "Too many open files. Communication with the workers is no longer possible. Please increase "
    "the limit using `ulimit -n` in the shell",
    "DataLoader worker (pid(s) 7) exited unexpectedly",
]


@pytest.mark.parametrize("text", DEATHS)
def test_a_worker_that_dies_is_one_sentence(text: str) -> None:
    with (
        pytest.raises(CamtrainValueError, match=r"batches has ended .* give fewer workers"),
        ending_cleanly(quiet_trainer(), StopSignals()),
    ):
        raise RuntimeError(text)


def test_another_error_stays_what_it_is() -> None:
    with (
        pytest.raises(RuntimeError, match=r"^out of memory$"),
        ending_cleanly(quiet_trainer(), StopSignals()),
    ):
        raise RuntimeError("out of memory")
