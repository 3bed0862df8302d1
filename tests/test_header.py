"""The file that a path to a network names."""

from pathlib import Path

import pytest

from camtrain.errors import CamtrainFileNotFoundError
from camtrain.header import BEST_NAME, model_file

RUN = Path(__file__).parent / "training" / "golden_run"


def test_a_run_s_folder_stands_for_its_best_epoch(tmp_path: Path) -> None:
    assert model_file(RUN) == RUN / "model.safetensors"
    assert model_file(RUN / "checkpoints" / "last.ckpt") == RUN / "checkpoints" / "last.ckpt"
    assert model_file("nowhere.ckpt") == Path("nowhere.ckpt")
    with pytest.raises(CamtrainFileNotFoundError, match=r"has no checkpoints/best\.ckpt yet"):
        model_file(RUN, BEST_NAME)
    with pytest.raises(CamtrainFileNotFoundError, match=r"is not the folder of a run \(no config"):
        model_file(tmp_path)
