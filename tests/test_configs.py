"""Every shipped config is understood by the real command line, and trains on its kind of data."""

import gzip
import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from camtrain.cli import main
from tests.data.readers.test_pets import pets

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "configs" / "sweep.yaml"
CONFIGS = [path for path in sorted(ROOT.glob("configs/*.yaml")) if path != SWEEP]
CONFIGS += sorted(ROOT.glob("tests/benchmarks/*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_parsed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(config), "--print_config"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    for line in config.read_text().splitlines():
        key = line.split("#")[0].strip().partition(":")[0]
        assert not key or f"{key}:" in printed


def photograph(path: Path, number: int) -> None:
    """A small noisy picture, wider than high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def imagenet(root: Path) -> None:
    """train/WNID, val/WNID."""
    for split, count in (("train", 4), ("val", 2)):
        for wnid in ("n01440764", "n01443537"):
            for number in range(count):
                photograph(root / split / wnid / f"{wnid}_{number}.JPEG", number)


def places(root: Path) -> None:
    """Lists of Places205 beside its images."""
    classes = ["/a/abbey", "/a/airport_terminal"]
    (root / "categoryIndex_places205.csv").write_text(
        "".join(f"{name} {label}\n" for label, name in enumerate(classes))
    )
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for label, name in enumerate(classes):
            for number in range(count):
                path = f"{name[1:]}/gsun_{split}{number}.jpg"
                photograph(root / "images256" / path, number)
                lines.append(f"{path} {label}\n")
        (root / f"{split}_places205.csv").write_text("".join(lines))


def inria(root: Path) -> None:
    """INRIAPerson/{Train,Test}/{pos,neg}."""
    for split, count in (("Train", 8), ("Test", 2)):
        for name in ("pos", "neg"):
            for number in range(count):
                photograph(root / split / name / f"{name}_{number}.png", number)


def mnist(root: Path) -> None:
    """The four idx files, packed as they are published."""
    for part, count in (("train", 40), ("t10k", 10)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, magic, values in (("images-idx3", 2051, pixels), ("labels-idx1", 2049, labels)):
            header = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
            with gzip.open(root / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "imagenet_vgg16": imagenet,
    "imagenet_alexnet": imagenet,
    "imagenet_googlenet": imagenet,
    "places_vgg16": places,
    "places_alexnet": places,
    "places_googlenet": places,
    "person": inria,
    "mnist": mnist,
    "pets": pets,
}
# Trained elsewhere, on what they are for; the best one by hand: it takes minutes.
HERE = {"quickstart", "animals3", "animals3_best", "lenet"}


def test_every_config_is_tried() -> None:
    assert set(LAYOUTS) | HERE == {config.stem for config in CONFIGS}


@pytest.mark.nightly
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_config_trains_on_pictures_in_the_real_layout(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    LAYOUTS[name](data)
    side = "28" if name == "mnist" else "64"
    status = main(
        [
            *("fit", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--data.root", str(data)),
            *("--model.weights", "null", "--data.size", side, "--data.workers", "0"),
            *("--data.batch_size", "4", "--trainer.max_epochs", "1", "--logger", "none"),
            *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
            *("--runs_dir", str(tmp_path / "runs"), "--cams.num_images", "2"),
        ]
    )
    assert status == 0
    assert (tmp_path / "runs" / name / "model.safetensors").is_file()


def commands_of(sweep: dict[str, Any]) -> list[list[str]]:
    """The arguments of every trial, as the agent of W&B spells them."""
    names = list(sweep["parameters"])
    commands = []
    for values in itertools.product(*(sweep["parameters"][name]["values"] for name in names)):
        options = [f"--{name}={value}" for name, value in zip(names, values, strict=True)]
        macros = {"${env}": [], "${interpreter}": [], "${program}": [], "${args}": options}
        commands.append([a for part in sweep["command"] for a in macros.get(part, [part])])
    return commands


@pytest.mark.nightly
def test_every_trial_of_the_sweep_is_parsed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(SWEEP.read_text())
    assert (ROOT / sweep["program"]).is_file()
    commands = commands_of(sweep)
    assert len(commands) == 24
    for command in commands:
        with pytest.raises(SystemExit) as exit_:
            main([*command, "--print_config"])
        assert exit_.value.code == 0
        told = yaml.safe_load(capsys.readouterr().out)
        for option in command[2:]:
            [(room, name, value)] = re.findall(r"--(\w+)\.(\w+)=(.*)", option)
            assert told[room][name] == yaml.safe_load(value)
