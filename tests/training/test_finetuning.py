"""Going on from one's own result: five digits learned, five others fine-tuned."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import camtrain
from camtrain.cli import main
from camtrain.data import ClutteredDigits, Split
from tests.training.learn.test_freezing import hash_of


def write_digits(root: Path, digits: range) -> None:
    """Drawn digits of some classes, as a folder of pictures."""
    splits: tuple[tuple[Split, int], ...] = (("train", 400), ("val", 120), ("test", 60))
    for split, count in splits:
        source = ClutteredDigits(split, length=count)
        for index, label in enumerate(source.labels):
            if label in digits:
                path = root / split / str(label) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(source.read(index).image[0].numpy()).save(path)


@pytest.mark.nightly
def test_five_digits_are_learned_and_five_others_fine_tuned(tmp_path: Path) -> None:
    def fit(name: str, digits: range, *more: str) -> float:
        write_digits(tmp_path / name, digits)
        arguments = [
            "fit",
            *("--name", name, "--runs_dir", str(tmp_path / "runs"), "--logger", "none"),
            *("--model.backbone", "camtrain/digits"),
            *("--data.root", str(tmp_path / name), "--data.size", "[48, 64]"),
            *("--data.workers", "0", "--data.augment", "none", "--model.lr", "0.01"),
            *("--data.batch_size", "8"),
            *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
            *("--model.neck", "[16]", *more),
        ]
        assert main(arguments) == 0
        predictor = camtrain.load(tmp_path / "runs" / name / "model.safetensors")
        assert predictor.net.class_names == tuple(map(str, digits))
        return float(predictor.scores["val/acc1"])

    width = ("--model.backbone_args", '{"width": 8}')
    assert fit("first", range(5), *width, "--trainer.max_epochs", "8") > 0.35
    bundle = tmp_path / "runs" / "first" / "model.safetensors"
    went_on = ("--model.weights", str(bundle), "--trainer.max_epochs", "6")
    tuned = fit("tuned", range(5, 10), *went_on, "--model.freeze_backbone", "true")
    nets = [
        camtrain.load(tmp_path / "runs" / name / "model.safetensors").net
        for name in ("first", "tuned")
    ]
    assert hash_of(nets[0].backbone) == hash_of(nets[1].backbone)
    assert not torch.equal(nets[0].neck[0].weight, nets[1].neck[0].weight)
    assert nets[1].recipe["backbone_args"] == {"width": 8}
    assert tuned > 0.3
    checkpoint = tmp_path / "runs" / "tuned" / "checkpoints" / "best.ckpt"
    bundle.unlink()
    assert main(["test", "--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu"]) == 0
