"""Leaving pictures out, from the command line to the test of a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from camtrain.cli import main
from camtrain.training import CAMDataModule


@pytest.mark.nightly
def test_a_checkpoint_is_tested_without_the_pictures_it_was_trained_without(
    fit_arguments: Callable[..., list[str]], tmp_path: Path, photographs: Path
) -> None:
    (photographs / "train/red/0.png").write_bytes(b"")
    (photographs / "test/red/1.png").write_bytes(b"")
    listed = tmp_path / "exclude.txt"
    assert main(["check-data", str(photographs), "--exclude", str(listed)]) == 1
    assert main(fit_arguments("--data.exclude", str(listed))) == 0
    listed.unlink()
    best = tmp_path / "runs/run/checkpoints/best.ckpt"
    kept = torch.load(best, weights_only=True)["datamodule_hyper_parameters"]["exclude"]
    assert kept == ["train/red/0.png", "test/red/1.png"]
    test = ["test", "--ckpt_path", str(best), "--trainer.enable_progress_bar", "false"]
    assert main(test) == 0  # the broken picture would be an error
    assert main([*test, "--data.exclude", '["train/red/0.png", "test/red/1.png"]']) == 0


def test_the_splits_of_a_run_are_those_of_all_pictures(tmp_path: Path, photographs: Path) -> None:
    """A picture that is left out today keeps its split for the day when it is mended."""
    root = photographs / "train"
    (photographs / "boxes.csv").unlink()
    data = CAMDataModule(root=root, exclude=["red/0.png", "blue/1.png"], workers=0)
    data.write_split(tmp_path / "split.csv")
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert len(lines) == 1 + 16
    whole = CAMDataModule(root=root, workers=0, split_file=tmp_path / "split.csv")
    for split, source in data.sources.items():
        kept = [path for path in whole.sources[split].paths if path in set(source.paths)]
        assert kept == list(source.paths)
    assert sum(map(len, data.sources.values())) == 14
