"""A network of the user through every door: trained, continued, measured, shipped, read."""

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

import camtrain
from camtrain.cli import main
from camtrain.errors import CamtrainValueError
from camtrain.inference import demo
from camtrain.inference.predictor import Predictor
from camtrain.model.camnet import CAMNet
from camtrain.training import CAMDataModule, CAMModule, fit
from tests.conftest import fit_of

CODE = '''
"""Networks of a user."""
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * width, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 5)
        )

    def forward(self, images):
        return self.classifier(self.features(images))
'''
NAME = "users_nets.Net"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with the user's code."""
    (tmp_path / "users_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("users_nets", None)


def arguments(photographs: Path, folder: Path, *more: str) -> list[str]:
    return [
        *fit_of(photographs, folder / "runs"),
        *("--model.backbone", NAME, "--model.backbone_args", '{"width": 4}', *more),
    ]


def weights_of(file: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return state


def test_the_command_line_trains_measures_exports_and_predicts(
    folder: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(arguments(photographs, folder)) == 0
    run, pictures = folder / "runs" / "run", str(photographs)
    bundle = str(run / "model.safetensors")
    # A file names the code, and imports nothing.
    sys.modules.pop("users_nets")
    (folder / "users_nets.py").write_text(f"{CODE}\nPath = 1 / 0")
    ours = ["--backbone", NAME]
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))  # no page is opened
    shown: list[Predictor] = []
    monkeypatch.setattr(demo, "page", lambda predictor, _: shown.append(predictor) or MagicMock())
    with socket.create_server((demo.LOCAL, 0)) as server:
        page = ["demo", bundle, "--port", str(server.getsockname()[1])]
    for verb in (
        page,
        ["predict", bundle, pictures, "--output", "results"],
        ["export", str(run), "--format", "safetensors", "--output", "again.safetensors"],
        ["test", "--ckpt_path", str(run)],
        ["validate", "--ckpt_path", bundle, "--data.root", pictures],
    ):
        capsys.readouterr()
        assert main(verb) == 2
        assert f"is your own, {NAME}, and no file can build it" in capsys.readouterr().err
        assert "users_nets" not in sys.modules
    with pytest.raises(CamtrainValueError, match=r"hand in its class.*--backbone users_nets\.Net"):
        camtrain.load(bundle)
    (folder / "users_nets.py").write_text(CODE)
    assert main([*page, *ours]) == 0
    assert shown[0].description == camtrain.load(bundle, backbone=NAME).description
    assert main(["predict", bundle, pictures, "--output", "results", *ours]) == 0
    assert json.loads((folder / "results/predictions.jsonl").read_text().splitlines()[0])
    command = ["export", str(run), "--format", "pt2", "--output", "net.pt2", *ours]
    assert main(command) == 0
    assert main(["test", "--ckpt_path", str(run), *ours]) == 0
    assert main(["validate", "--ckpt_path", bundle, "--data.root", pictures, *ours]) == 0
    from users_nets import Net  # type: ignore[import-not-found]

    # An exported network needs none of that.
    images = torch.rand(2, 3, 32, 32)
    exported, ours_loaded = camtrain.load("net.pt2"), camtrain.load(bundle, backbone=Net)
    a, b = (p.network.class_maps(images).maps for p in (exported, ours_loaded))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    checkpoint = run / "checkpoints" / "best.ckpt"
    with pytest.raises(CamtrainValueError, match="no file can build it"):
        CAMModule.load_from_checkpoint(checkpoint)
    module = CAMModule.load_from_checkpoint(checkpoint, backbone=Net)
    assert torch.equal(module.net.head.weight, weights_of(checkpoint)["net.head.weight"])
    net = camtrain.create_model(Net, weights=bundle, neck=())
    assert torch.equal(net.head.weight, module.net.head.weight)
    student = arguments(photographs, folder, "--name", "student", "--model.teacher", bundle)
    assert main([*student, "--trainer.max_epochs", "1"]) == 0
    assert main([*student, "--ckpt_path", "last"]) == 0  # to its second and last epoch


def test_a_continued_training_gives_the_same_bits(folder: Path, photographs: Path) -> None:
    # A schedule that does not depend on the number of epochs, since the second run is cut short.
    options = ("--model.schedule", "constant", "--model.warmup_epochs", "0")
    assert main(arguments(photographs, folder, "--name", "whole", *options)) == 0
    part = arguments(photographs, folder, "--name", "part", *options)
    assert main([*part, "--trainer.max_epochs", "1"]) == 0
    assert main([*part, "--ckpt_path", "last"]) == 0
    first, second = (
        weights_of(folder / "runs" / name / "checkpoints" / "last.ckpt")
        for name in ("whole", "part")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_typo_is_one_line_and_status_2(
    folder: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(photographs, folder, "--model.backbone", "users_nets.Nett")) == 2
    assert "users_nets has no Nett; the nearest is Net." in capsys.readouterr().err
    assert not (folder / "runs").exists()


def module_given() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(384, 2))


def cam_ready() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 2),
    )  # fmt: skip


def by_hand() -> CAMNet:
    return CAMNet(nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.ReLU()), nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("make", "builder"),
    [
        (module_given, module_given),
        (lambda: camtrain.convert(cam_ready()), cam_ready),
        (by_hand, by_hand),
    ],
    ids=["module", "converted", "by hand"],
)
def test_a_script_trains_and_ships_any_module(
    make: Callable[[], nn.Module],
    builder: Callable[[], nn.Module],
    photographs: Path,
    tmp_path: Path,
) -> None:
    data = CAMDataModule(root=str(photographs), size=32, workers=0, batch_size=8)
    torch.manual_seed(0)
    module = CAMModule(
        backbone=make(),
        num_classes=data.num_classes if builder is module_given else None,
        freeze_backbone=True,
    )
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    fit(module, data, folder=tmp_path / "run", trainer=options, logger="none")
    assert list((tmp_path / "run" / "cams").iterdir())
    predictor = camtrain.load(tmp_path / "run", backbone=builder)
    images, best = torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)
    maps = predictor.net.class_maps(images, classes=best).maps
    seen = camtrain.gradcam(predictor.net, images, layer="neck", classes=best)
    torch.testing.assert_close(seen, maps.relu() / maps[0, 0].numel(), rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.net(images), module.net.eval()(images))
