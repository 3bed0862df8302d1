"""A training that moves to another device, and one for which a GPU is too small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from camtrain import cli
from camtrain.training import CAMModule

_OUT = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 139 GiB."


def test_continuing_on_another_device_says_what_is_not_identical(
    fitted: Callable[..., Path],
    fit_arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = fitted() / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["run"]["device"] == "cpu"
    content["run"] |= {"device": "NVIDIA H200", "precision": "16-mixed"}
    content["run"]["random"][0]["cuda"] = [torch.zeros(16, dtype=torch.uint8)]
    torch.save(content, last)
    arguments = fit_arguments("--ckpt_path", "last", "--trainer.precision", "32-true")
    more = ("--trainer.max_epochs", "3")
    assert cli.main([*arguments, *more]) == 0
    assert (
        "was on NVIDIA H200 in 16-mixed and goes on on cpu in 32-true:" in capsys.readouterr().out
    )
    assert cli.main([*arguments, "--trainer.max_epochs", "4"]) == 0
    assert "goes on on" not in capsys.readouterr().out


def out_of_memory_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the training step of this number fail as on a GPU that is too small."""
    train = CAMModule.training_step

    def fail(module: CAMModule, batch: object, batch_idx: int) -> Tensor:
        if module.global_step == step:
            raise torch.OutOfMemoryError(_OUT)
        return train(module, batch, batch_idx)

    monkeypatch.setattr(CAMModule, "training_step", fail)


def test_too_little_memory_in_the_first_step_leaves_nothing_behind(
    fit_arguments: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out_of_memory_at(monkeypatch, 0)
    assert cli.main(fit_arguments()) == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(
        "camtrain: error: The memory of cpu is too small for a batch of 8 pictures of 3 channels "
        "and 32x32 pixels (the last tensor takes 1.50 GiB); give a smaller data.batch_size"
    )
    assert not any((tmp_path / "runs" / "run").iterdir())


def test_too_little_memory_later_leaves_a_run_that_can_be_continued(
    fit_arguments: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        out_of_memory_at(patch, 3)  # the second of the second epoch
        assert cli.main(fit_arguments()) == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert "is whole, and goes on with --ckpt_path last where more memory is free" in line
    assert cli.main(fit_arguments("--ckpt_path", "last")) == 0
    rows = (tmp_path / "runs" / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
