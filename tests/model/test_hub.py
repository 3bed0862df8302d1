"""Networks of timm by the name of a repository on the hub, or of a folder of the same layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import _hub, save_for_hf
from torch.utils.data import DataLoader, TensorDataset

import camtrain
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError
from camtrain.model.hub import is_hub_name
from camtrain.training import CAMModule
from tests.training.conftest import quiet_trainer

LABELS = ["healthy", "leaf rust", "leaf spot"]


def saved(folder: Path, architecture: str = "test_resnet", **more: Any) -> torch.nn.Module:
    """A network with three classes, written as timm writes it."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=3, **more)
    channels = more.get("in_chans", 3)
    mean, std = (0.2, 0.3, 0.4)[:channels], (0.1, 0.2, 0.3)[:channels]
    preprocessing = {"mean": mean, "std": std, "input_size": (channels, 96, 128)}
    config = {"label_names": LABELS, "num_classes": 3}
    save_for_hf(
        network,
        str(folder),
        model_config={**config, "pretrained_cfg": {"crop_pct": 0.9, "interpolation": "bilinear"}},
        data_config=preprocessing,
        safe_serialization=True,
    )
    return network.eval()


@pytest.fixture
def plants(tmp_path: Path) -> Path:
    saved(tmp_path / "plants")
    return tmp_path / "plants"


@pytest.fixture
def downloads(plants: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """A hub with one repository; what is asked of it."""
    asked: list[tuple[str, str, str | None]] = []

    def download(repo_id: str, filename: str, revision: str | None = None, **_: object) -> str:
        asked.append((repo_id, filename, revision))
        if repo_id != "field/plants" or not (plants / filename).is_file():
            raise LocalEntryNotFoundError("cannot find the requested files in the local cache")
        return str(plants / filename)

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    return asked


def test_names_of_places_are_told_from_names_of_networks() -> None:
    names = ["timm/hf-hub:a/b", "hf-hub:a/b@v1", "timm/local-dir:/a/b", "local-dir:a"]
    assert all(map(is_hub_name, names))
    assert not any(map(is_hub_name, ["timm/resnet18", "resnet18", None, torch.nn.ReLU()]))


@torch.inference_mode()
def test_a_folder_brings_classes_preprocessing_and_head(tmp_path: Path) -> None:
    network, images = saved(tmp_path / "plants"), torch.rand(2, 3, 96, 128)
    net = camtrain.create_model(f"timm/local-dir:{tmp_path / 'plants'}", neck=()).eval()
    assert net.class_names == tuple(LABELS)
    assert net.preprocessing == camtrain.Preprocessing(
        size=(96, 128),
        mean=(0.2, 0.3, 0.4),
        std=(0.1, 0.2, 0.3),
        interpolation="bilinear",
        resize_mode="crop",
        crop_pct=0.9,
    )
    output = net.class_maps(images)
    torch.testing.assert_close(output.logits, network(images), atol=1e-5, rtol=1e-5)  # law 2
    law_1 = output.maps.mean((-2, -1)) + net.head.bias
    torch.testing.assert_close(output.logits, law_1, atol=1e-5, rtol=1e-5)
    assert net.recipe is not None
    assert net.recipe["backbone"] == "timm/test_resnet"
    trunk = camtrain.create_model(f"timm/local-dir:{tmp_path / 'plants'}", 7, neck=(8,)).eval()
    assert (trunk.head.out_features, trunk.class_names) == (7, None)
    torch.testing.assert_close(trunk.backbone(images), net.backbone(images))


@pytest.mark.filterwarnings("ignore:The checkpoint:UserWarning", "ignore:You defined a `valid")
def test_a_bundle_and_a_checkpoint_never_ask_the_hub(
    downloads: list[tuple[str, str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = CAMModule("timm/hf-hub:field/plants@v2", neck=(), backbone_args={"drop_rate": 0.1})
    assert {(repo, revision) for repo, _, revision in downloads} == {("field/plants", "v2")}
    assert {name for _, name, _ in downloads} == {"config.json", "model.safetensors"}
    pictures = TensorDataset(torch.rand(4, 3, 96, 128), torch.arange(4) % 3)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, DataLoader(pictures, batch_size=4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    camtrain.Predictor(module.net).save(tmp_path / "a.safetensors")
    monkeypatch.setattr(_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asks the hub"))
    picture = torch.randint(0, 255, (3, 90, 120), dtype=torch.uint8)
    expected = next(iter(camtrain.Predictor(module.net)(picture)))
    for name in ("a.ckpt", "a.safetensors"):
        prediction = next(iter(camtrain.load(tmp_path / name)(picture)))
        assert prediction.names == expected.names
        assert prediction.scores == pytest.approx(expected.scores, abs=1e-6)
        assert torch.allclose(prediction.heatmaps, expected.heatmaps, atol=1e-5)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["hyper_parameters"]["backbone"] == "timm/test_resnet"
    assert content["camtrain"]["given"]["backbone"] == "timm/hf-hub:field/plants@v2"
    loaded = CAMModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert loaded.net.recipe == module.net.recipe
    assert loaded.net.recipe["backbone_args"]["drop_rate"] == 0.1
    again = camtrain.create_model("timm/test_resnet", weights=tmp_path / "a.safetensors", neck=())
    assert torch.equal(again.head.weight, module.net.head.weight)


@torch.inference_mode()
def test_arguments_of_the_folder_are_those_of_the_architecture(tmp_path: Path) -> None:
    saved(tmp_path / "scans", "test_vit3", dynamic_img_size=True, in_chans=2)
    net = camtrain.create_model(f"local-dir:{tmp_path / 'scans'}", neck=()).eval()
    assert net.recipe is not None
    assert net.recipe["in_chans"] == 2
    assert net.recipe["backbone_args"]["dynamic_img_size"] is True
    assert net(torch.rand(1, 2, 96, 128)).shape == (1, 3)
    camtrain.Predictor(net).save(tmp_path / "a.safetensors")
    again = camtrain.load(tmp_path / "a.safetensors").net
    images = torch.rand(1, 2, 80, 112)
    torch.testing.assert_close(again(images), net(images))


def test_random_weights_and_files_take_only_the_architecture(
    plants: Path, downloads: list[tuple[str, str, str | None]]
) -> None:
    net = camtrain.create_model("timm/hf-hub:field/plants", 3, weights=None, neck=())
    assert {name for _, name, _ in downloads} == {"config.json"}
    file = plants / "model.safetensors"
    again = camtrain.create_model("timm/hf-hub:field/plants", weights=file, neck=())
    assert again.recipe == net.recipe or again.recipe["own_head"]
    assert not torch.equal(again.head.weight, net.head.weight)
    assert {name for _, name, _ in downloads} == {"config.json"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "timm/hf-hub:field/cows@main",
            {},
            r"The config\.json of timm/hf-hub:field/cows@main could not be read \(.* cache\); "
            r"fetch config\.json and model\.safetensors of https://huggingface\.co/field/cows/tree/"
            r"main into a folder and give timm/local-dir:FOLDER\.",
        ),
        ("timm/local-dir:{folder}/none", {}, "Config file not found: .*none/config.json.*; give a"),
        ("timm/local-dir:{folder}", {"architecture": "resnet19"}, "got 'timm/resnet19'; the near"),
        ("timm/local-dir:{folder}", {"architecture": None}, r"config\.json of timm/local-dir:.*re"),
        ("timm/local-dir:{folder}", {"weights": b"nonsense"}, "The weights of timm/local-dir:.*; "),
        ("timm/local-dir:{folder}", {"weights": None}, "weights of .* No suitable checkpoints fou"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    name: str,
    change: dict[str, Any],
    message: str,
    plants: Path,
    downloads: list[tuple[str, str, str | None]],
) -> None:
    if "weights" in change:
        data = change.pop("weights")
        (plants / "model.safetensors").unlink()
        if data is not None:
            (plants / "model.safetensors").write_bytes(data)
    values = json.loads((plants / "config.json").read_text())
    (plants / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(CamtrainError, match=message) as error:
        camtrain.create_model(name.format(folder=plants), 2)
    assert "\n" not in str(error.value)
    is_missing = "hf-hub" in name or "none" in name
    assert isinstance(error.value, CamtrainFileNotFoundError) == is_missing
