"""``camtrain push`` and ``hf://ORG/NAME``, against fakes of the hub's functions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import camtrain
from camtrain import cli
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from tests.model.nets import LeNet

TOKEN = "hf_Secret0123456789"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, as far as ``push`` looks into it."""
    folder = tmp_path / "runs/birds"
    (folder / "cams").mkdir(parents=True)
    (folder / "test").mkdir()
    (folder / "config.yaml").write_text("data: {}")
    for name in ("epoch_001", "epoch_002"):
        (folder / f"cams/{name}.jpg").write_bytes(name.encode())
    scores = {"scores": {"acc1": 0.875, "gt_known": 0.5}}
    (folder / "test/localization.json").write_text(json.dumps(scores))
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 2, neck=(8,), backbone_args={"width": 4})
    preprocessing = camtrain.Preprocessing((32, 40))
    camtrain.Predictor(
        net, class_names=["ant", "bee"], preprocessing=preprocessing, scores={"val/acc1": 0.9}
    ).save(folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that is a folder; its functions are those of ``huggingface_hub``."""
    site = tmp_path / "site"

    def create_repo(self: object, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        (site / repo_id).mkdir(parents=True, exist_ok=True)
        (site / "private").write_text(str(private))

    def upload_folder(
        self: object, *, repo_id: str, folder_path: Path, commit_message: str
    ) -> None:
        shutil.copytree(folder_path, site / repo_id, dirs_exist_ok=True)

    def download(repo_id: str, filename: str, *, revision: str | None) -> str:
        path = site / repo_id / filename
        if not path.is_file():
            raise FileNotFoundError(f"404: no {repo_id} at {revision} for {TOKEN}")
        return str(path)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    return site


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The head and the text of a model card."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_what_is_pushed_is_loaded_by_its_address(
    run: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", str(run), "ORG/birds", "--license", "mit", "--private"]) == 0
    printed = capsys.readouterr().out
    assert "Pushed README.md, model.safetensors, sheet.jpg to https://huggingface.co/" in printed
    assert 'camtrain.load("hf://ORG/birds")' in printed
    assert (hub / "private").read_text() == "True"
    assert (hub / "ORG/birds/sheet.jpg").read_bytes() == b"epoch_002"
    before = camtrain.load(run)
    for address in ("hf://ORG/birds", "hf://ORG/birds@main", Path("hf://ORG/birds")):
        after = camtrain.load(address)
        assert after.description == before.description
        assert after.net is not None
        assert before.net is not None
        tensors = after.net.state_dict()
        assert all(torch.equal(t, tensors[name]) for name, t in before.net.state_dict().items())
    assert all(TOKEN.encode() not in f.read_bytes() for f in hub.rglob("*") if f.is_file())


def test_the_card_says_what_the_network_is_and_reached(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pushed"
    (run / "cams/test.jpg").write_bytes(b"test")
    args = ["push", str(run), "ORG/birds", "--dry_run", "--output", str(folder)]
    assert cli.main([*args, "--license", "cc-by-4.0"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "model.safetensors", "sheet.jpg")
    ]
    assert (folder / "sheet.jpg").read_bytes() == b"test"
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    head, text = card_of(folder)
    assert head["license"] == "cc-by-4.0"
    assert head["pipeline_tag"] == "image-classification"
    for line in (
        *("# ORG/birds", "camtrain/digits as a class", "![Heatmaps of some pictures](sheet.jpg)"),
        *("* Classes (2): ant, bee", "* Input: 40 x 32 pixels", "at 0.2 of a map's maximum"),
        *("| test/acc1 | 0.875 |", "| test/gt_known | 0.5 |"),
        'predictor = camtrain.load("hf://ORG/birds")',
    ):
        assert line in text
    assert "val/acc1" not in text
    assert cli.main(args) == 2  # the folder is not empty


def test_a_bundle_alone_has_no_sheet_and_an_own_network_names_its_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = shutil.copy(run / "model.safetensors", tmp_path / "b.safetensors")
    assert cli.main(["push", str(bundle), "ORG/b", "--dry_run"]) == 0
    assert sorted(p.name for p in Path("hub/ORG/b").iterdir()) == ["README.md", "model.safetensors"]
    head, text = card_of(Path("hub/ORG/b"))
    assert head["license"] == "unknown"
    assert "sheet" not in text
    assert "test/acc1" not in text
    assert "| val/acc1 | 0.9 |" in text
    assert cli.main(["push", str(run), "ORG/c", "--dry_run", "--no_sheet"]) == 0
    assert not Path("hub/ORG/c/sheet.jpg").exists()

    net = camtrain.create_model(LeNet(), num_classes=2)
    net.preprocessing = camtrain.Preprocessing((28, 28), mean=(0.5,), std=(0.5,))
    camtrain.Predictor(net, class_names=["a", "b"]).save(tmp_path / "own.safetensors")
    assert cli.main(["push", "own.safetensors", "ORG/own", "--dry_run"]) == 0
    text = card_of(Path("hub/ORG/own"))[1]
    assert "from tests.model.nets import LeNet" in text
    assert 'camtrain.load("hf://ORG/own", backbone=LeNet)' in text


def test_no_message_holds_the_token(
    run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"401 for Bearer {TOKEN} and\nhf_another0123456789")

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", refuse)
    assert cli.main(["push", str(run), "ORG/birds"]) == 2
    out, err = capsys.readouterr()
    assert "ORG/birds could not be pushed (401 for Bearer *** and hf_***); check that you" in err
    assert TOKEN not in out + err
    with pytest.raises(CamtrainFileNotFoundError, match=r"hf://ORG/none could not .*404.*\*\*\*\)"):
        camtrain.load("hf://ORG/none")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{run}", "birds"], "A repository of the Hugging Face Hub is ORG/NAME, got 'birds' as"),
        (["{run}", "a/../b"], "is ORG/NAME, got 'a/../b'"),
        (["{run}/checkpoints", "ORG/birds"], "push takes a bundle (model.safetensors) or the"),
        (["{run}/cams", "ORG/birds"], "cams is not the folder of a run"),
        (["{run}", "ORG/birds"], "run `hf auth login` first, or give --dry_run"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(
    args: list[str],
    message: str,
    run: Path,
    hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert cli.main(["push", *(arg.format(run=run) for arg in args)]) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not hub.exists()


def test_an_address_of_no_repository_is_refused() -> None:
    for address in ("hf://birds", "hf://", "hf://a/b/c"):
        with pytest.raises(CamtrainValueError, match="of the Hugging Face Hub is ORG/NAME, got"):
            camtrain.load(address)
