"""Exceptions within messages."""

import warnings

import pytest

from camtrain.errors import CamtrainValueError, one_line, warn


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_of_several_processes_the_first_alone_warns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, count in (("0", 1), ("1", 0)):
        monkeypatch.setenv(name, rank)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn("something")
        assert len(caught) == count


def test_a_long_text_keeps_its_begin_and_its_end() -> None:
    text = one_line(CamtrainValueError(f"The file {'x' * 1000} is damaged; export it again."))
    assert len(text) == 300
    assert text.startswith("The file xxx")
    assert text.endswith("xxx is damaged; export it again.")
