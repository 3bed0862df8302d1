"""What the README says works as it stands there."""

import re
from pathlib import Path

import pytest
import torch
import torchvision

import camtrain
from camtrain.cli import VERBS, main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def block(language: str, part: str) -> str:
    """The code block that holds ``part``."""
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    [found] = [code for code in blocks if part in code]
    return str(found)


def test_it_is_short_enough_to_be_read() -> None:
    assert len(re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL).split()) <= 600


def test_its_verbs_files_and_links_exist() -> None:
    assert set(re.findall(r"(?:camtrain|train\.py) ([a-z]+) --", TEXT)) <= VERBS.keys()
    for path in re.findall(r"(?:configs|tests)/[\w/]+\.\w+", TEXT):
        assert (ROOT / path).is_file(), path


def test_ci_runs_its_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[test]" && python -m pytest' in TEXT
    assert "pip install -e . && python train.py fit --config configs/quickstart.yaml" in TEXT
    assert "-m pytest" in script
    assert "python train.py fit --config configs/quickstart.yaml" in script


def test_converting_takes_these_lines() -> None:
    names: dict[str, torch.Tensor] = {}
    exec(block("python", "camtrain.convert("), names)
    assert names["maps"].shape == (1, 5, 14, 10)
    assert names["heatmaps"].shape == (1, 5, 224, 160)


@pytest.mark.slow
def test_the_script_trains_and_ships_and_the_predictor_reads_it(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs.rename(tmp_path / "photos")
    # The download is replaced by a file of the published name; there is no network here.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    torch.save(torchvision.models.resnet18().state_dict(), cache / url.rpartition("/")[2])
    monkeypatch.chdir(tmp_path)
    exec(block("python", "CAMDataModule("), {})
    assert len(list((tmp_path / "cams").glob("epoch_*.jpg"))) == 3

    for name, source in (("a.jpg", "red/0.png"), ("b.jpg", "blue/0.png")):
        (tmp_path / "photos" / "test" / source).rename(tmp_path / name)
    code = block("python", "camtrain.load(").replace(
        "runs/quickstart/model.safetensors", "model.safetensors"
    )
    exec(code, {})
    assert (tmp_path / "a.jpg_cam.png").is_file()
    assert camtrain.load("model.safetensors").net.class_names == ("blue", "red")


@pytest.mark.slow
def test_the_exported_file_runs_in_these_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    run = tmp_path / "runs" / "quickstart"
    run.mkdir(parents=True)
    net = camtrain.create_model("camtrain/digits", 10, in_chans=1, neck=())
    camtrain.Predictor(net).save(run / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    [command] = re.findall(r"^camtrain (export .*)$", TEXT, re.MULTILINE)
    assert main(command.split()) == 0
    names: dict[str, object] = {}
    exec(block("python", "onnxruntime"), names)
    assert names["logits"].shape == (1, 10)
    assert names["maps"].shape == (1, 10, 16, 16)
