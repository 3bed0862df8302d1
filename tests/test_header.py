"""The file that a path to a network names."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from camtrain.errors import CamtrainFileNotFoundError
from camtrain.header import BEST_NAME, model_file, read_safetensors_description

RUN = Path(__file__).parent / "training" / "golden_run"


def test_a_run_s_folder_stands_for_its_best_epoch(tmp_path: Path) -> None:
    assert model_file(RUN) == RUN / "model.safetensors"
    assert model_file(RUN / "checkpoints" / "last.ckpt") == RUN / "checkpoints" / "last.ckpt"
    assert model_file("nowhere.ckpt") == Path("nowhere.ckpt")
    with pytest.raises(CamtrainFileNotFoundError, match=r"has no checkpoints/best\.ckpt yet"):
        model_file(RUN, BEST_NAME)
    with pytest.raises(CamtrainFileNotFoundError, match=r"is not the folder of a run \(no config"):
        model_file(tmp_path)


def test_a_bundle_that_may_not_be_read_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line makes a sentence of it; safetensors has no number of the error."""
    (tmp_path / "model.safetensors").touch()
    refusal = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(os, "open", Mock(side_effect=refusal))
    with pytest.raises(PermissionError):
        read_safetensors_description(tmp_path / "model.safetensors")
