"""What the README says works as it stands there: its links, its commands, its code."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import camtrain
from camtrain.cli import VERBS, main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)

# What makes a command of the README one of seconds.
QUICK = {
    "fit --config": ["--trainer.max_epochs", "1", "--data.lengths", "[64, 20, 20]"],
    "fit --data.root": ["--trainer.max_epochs", "1", "--data.size", "64", "--data.workers", "0"],
    "export runs/quickstart": ["--max_drop", "100"],  # one epoch teaches little
    "models": ["test_*"],  # of all of them, see model/test_catalogue.py
}


def commands() -> Iterator[str]:
    """Every line for a shell, and every ``camtrain VERB ...`` in the text."""
    for language, code in BLOCKS:
        if language == "bash":
            lines = code.replace("\\\n", " ").splitlines()
            yield from (part.strip() for line in lines for part in line.split("&&"))
    for code in re.findall(r"`(camtrain [^`/]+)`", PROSE):
        yield code


def code_with(part: str) -> str:
    """The Python block that holds ``part``."""
    [found] = [code for language, code in BLOCKS if language == "python" and part in code]
    return str(found)


def test_it_is_short_enough_to_be_read() -> None:
    assert len(PROSE.split()) <= 700


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).is_file(), link
    for path in re.findall(r"(?:configs|tests|notebooks)/[\w/]+\.\w+", TEXT):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"`(\w+\.py)[ `]", TEXT):
        assert (ROOT / path).is_file() or (ROOT / "tests" / "benchmarks" / path).is_file(), path


def test_the_map_of_the_house_names_every_room() -> None:
    text = (ROOT / "camtrain" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(p.parent.name for p in (ROOT / "camtrain").glob("*/__init__.py"))


def test_other_pages_name_what_is_there() -> None:
    configs = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+\.yaml)`", configs)
    assert sorted(named) == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    benchmarks = ROOT / "tests" / "benchmarks"
    for path in re.findall(r"(\w+\.py)\b", (benchmarks / "README.md").read_text(encoding="utf-8")):
        assert any((folder / path).is_file() for folder in (ROOT, benchmarks)), path


def test_every_fault_of_wandb_in_the_table_has_its_tests() -> None:
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    section = text.split("## When W&B fails")[1].split("\n## ")[0]
    code = "".join(path.read_text() for path in (ROOT / "tests/training/run").glob("test_*.py"))
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    for row in rows:
        names = re.findall(r"`(\w+)`", row[-2])
        assert names, row
        for name in names:
            assert re.search(rf"def test_\w*{name}", code), name


def test_its_picture_is_seen_on_white_and_on_black() -> None:
    with Image.open(ROOT / "notebooks" / "over_epochs.png") as picture:
        pixels = np.array(picture.convert("RGBA"))
    clear = pixels[..., 3] == 0
    assert clear.mean() > 0.02  # between the pictures and behind the headings
    heading = pixels[:24][pixels[:24, :, 3] > 250][:, :3].mean()
    assert 90 < heading < 165  # neither near white nor near black


def test_ci_runs_its_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[test]" && python -m pytest -n 2' in TEXT
    assert "pip install -e . && python train.py fit --config configs/quickstart.yaml" in TEXT
    assert "python -m pytest -n 2" in script
    assert "python train.py fit --config configs/quickstart.yaml" in script


def test_converting_takes_these_lines() -> None:
    names: dict[str, torch.Tensor] = {}
    exec(code_with("camtrain.convert("), names)
    assert names["maps"].shape == (1, 5, 14, 10)
    assert names["heatmaps"].shape == (1, 5, 224, 160)


@pytest.fixture
def somewhere(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with configs, ``photos`` and what torchvision would have downloaded."""
    photographs.rename(tmp_path / "photos")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for name in ("resnet18", "resnet50"):
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        network = torchvision.models.get_model(name)
        torch.save(network.state_dict(), cache / url.rpartition("/")[2])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> None:
    """Run it in this process, if it is one of ours."""
    program, *arguments = shlex.split(re.sub(r"^python train\.py", "camtrain", command))
    if program == "pip" or command.startswith("python -m pytest"):
        return
    assert program == "camtrain", command
    assert arguments[0] in VERBS, command
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        return
    assert main([*arguments, *QUICK.get(" ".join(arguments[:2]), [])]) == 0, command


@pytest.mark.nightly
def test_its_commands_and_its_code_do_what_they_say(
    somewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    for command in commands():
        run(command)
    printed = capsys.readouterr().out
    assert "The trained head of runs/frozen/model.safetensors is kept" in printed
    quickstart = somewhere / "runs" / "quickstart"
    assert (quickstart / "report.html").is_file()
    assert (quickstart / "over_epochs.png").is_file()
    assert list(quickstart.glob("wandb/offline-run-*"))
    assert (somewhere / "found" / "predictions.jsonl").is_file()

    for name, source in (("a.jpg", "red/0.png"), ("b.jpg", "blue/0.png")):
        Image.open(somewhere / "photos" / "test" / source).save(somewhere / name)
    exec(code_with("predictor(["), {})
    assert (somewhere / "a.jpg_cam.png").is_file()
    names: dict[str, np.ndarray] = {}
    exec(code_with("onnxruntime"), names)
    assert names["logits"].shape == (1, 10)
    assert names["maps"].shape == (1, 10, 16, 16)
    pytest.importorskip("openvino")
    exec(code_with("openvino"), names)
    assert names["maps"].shape == (1, 10, 16, 16)


@pytest.mark.nightly
def test_its_script_trains_and_ships(somewhere: Path) -> None:
    exec(code_with("runs/photos"), {})
    assert len(list((somewhere / "runs" / "photos" / "cams").glob("epoch_*.jpg"))) == 3
    assert camtrain.load("runs/photos/model.safetensors").net.class_names == ("blue", "red")


MY_NET = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self):
        features = [nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*features, nn.Flatten(), nn.Linear(5832, 16), nn.ReLU(), nn.Linear(16, 9))
"""


@pytest.mark.nightly
def test_its_own_network_is_trained_and_shipped(
    somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (somewhere / "mynets.py").write_text(MY_NET)
    monkeypatch.syspath_prepend(str(somewhere))
    names: dict[str, camtrain.Predictor] = {}
    exec(code_with("MyNet"), names)
    assert names["predictor"].net.class_names == ("blue", "red")


def test_the_map_of_the_house_names_what_is_there() -> None:
    """Every path in `camtrain/README.md`, with or without its `.py`."""
    text = (ROOT / "camtrain" / "README.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`?((?:\w+/)+[\w.]*)", re.sub(r"https?://\S+", "", text)))
    assert "model/camnet.py" in paths
    for path in paths - {"timm/resnet50"}:
        places = [ROOT / path, ROOT / "camtrain" / path, ROOT / "camtrain" / f"{path}.py"]
        assert any(place.exists() for place in places), path
