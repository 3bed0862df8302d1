"""Published weights, with no connection: downloads, files, and what goes wrong."""

import io
import re
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import pytest
import timm
import torch
import torchvision

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.model.create import create_model
from camtrain.model.weights import find_weights

SQUEEZENET = "torchvision/squeezenet1_1"


FILE = "squeezenet1_1-b8a52dc0.pth"


URL = f"https://download.pytorch.org/models/{FILE}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torchvision's weights are kept, empty; nothing can be downloaded."""

    def refuse(*_: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@torch.inference_mode()
def test_published_weights_keep_their_head_and_its_names(cache: Path) -> None:
    classifier = torchvision.models.squeezenet1_1().eval()
    torch.save(classifier.state_dict(), cache / FILE)
    net = create_model(SQUEEZENET, neck=()).eval()
    assert net.class_names is not None
    assert (len(net.class_names), net.class_names[0]) == (1000, "tench")
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(net(images), classifier(images), atol=1e-5, rtol=0)
    assert create_model(SQUEEZENET, 12).class_names is None


@pytest.mark.nightly
def test_densenets_are_loaded_from_their_names_of_2017(cache: Path) -> None:
    """The library renames the keys of these files while it loads them."""
    classifier = torchvision.models.densenet121().eval()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor
        for name, tensor in classifier.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, cache / "densenet121-a639ec97.pth")
    trunk = create_model("densenet121", 5).backbone.get_submodule("trunk").state_dict()
    weights = classifier.state_dict()
    assert len(trunk) == len(weights) - 2
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trunk.items())


@pytest.mark.nightly
@pytest.mark.parametrize("has_auxiliary_heads", [True, False])
def test_googlenet_renormalizes_its_input_with_weights_only(
    has_auxiliary_heads: bool, cache: Path
) -> None:
    classifier = torchvision.models.googlenet(
        init_weights=False, transform_input=True, aux_logits=has_auxiliary_heads
    ).eval()
    torch.save(classifier.state_dict(), cache / "googlenet-1378be20.pth")
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        net = create_model("googlenet", neck=()).eval()
        torch.testing.assert_close(net(images), classifier(images), atol=1e-6, rtol=0)
    assert net.recipe is not None
    assert net.recipe["backbone_args"] == {"transform_input": True}
    random = create_model("googlenet", 5, weights=None)
    assert random.recipe is not None
    assert random.recipe["backbone_args"] == {}
    # Its mean and deviation of 0.5 are what grey pictures get from their preprocessing.
    grey = create_model("googlenet", 5, in_chans=1)
    assert grey(torch.randn(1, 1, 64, 96)).shape == (1, 5)
    assert grey.preprocessing is not None
    assert grey.preprocessing.mean == grey.preprocessing.std == (0.5,)


def test_a_failed_download_names_the_file_and_where_to_put_it(cache: Path) -> None:
    with pytest.raises(CamtrainFileNotFoundError) as error:
        create_model(SQUEEZENET, 5)
    message = str(error.value)
    assert "no network in tests" in message
    assert (
        f"fetch {URL} and put it into {cache}, or give weights=FILE, the path of that file."
        in message
    )
    assert "\n" not in message


def serve(content: bytes) -> Callable[..., Any]:
    """An ``urlopen`` that answers with ``content``."""

    class Answer(io.BytesIO):
        def info(self) -> Message:
            """No headers."""
            return Message()

    return lambda *_: Answer(content)


def test_a_download_with_another_hash_is_refused_and_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", serve(b"an error page of some proxy"))
    with pytest.raises(CamtrainFileNotFoundError) as error:
        create_model(SQUEEZENET, 5)
    assert 'invalid hash value (expected "b8a52dc0"' in str(error.value)
    assert f"fetch {URL}" in str(error.value)
    assert list(cache.iterdir()) == []


def test_a_download_is_kept_and_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    classifier = torchvision.models.squeezenet1_1()
    torch.save(classifier.state_dict(), file)
    monkeypatch.setattr(torch.hub, "urlopen", serve(file.getvalue()))
    monkeypatch.setattr(torch.hub, "HASH_REGEX", re.compile("no file has (a hash)"))
    found = find_weights(SQUEEZENET, "IMAGENET1K_V1")
    assert found is not None
    assert torch.equal(
        found.tensors["features.0.bias"], classifier.get_parameter("features.0.bias")
    )
    assert [path.name for path in cache.iterdir()] == [FILE]


def test_a_damaged_file_in_the_cache_is_said(cache: Path) -> None:
    file = io.BytesIO()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), file)
    (cache / FILE).write_bytes(file.getvalue()[:100_000])
    with pytest.raises(CamtrainFileNotFoundError, match=f"could not be loaded .*fetch {URL}"):
        create_model(SQUEEZENET, 5)


def test_published_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = timm.create_model("test_resnet")
    asked = []

    def load(repository: str, **_: object) -> dict[str, torch.Tensor]:
        asked.append(repository)
        return classifier.state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    net = create_model("timm/test_resnet", neck=())
    assert asked == ["timm/test_resnet.r160_in1k"]
    assert torch.equal(net.head.weight, classifier.get_parameter("fc.weight"))


def test_a_failed_download_of_timm_names_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network in tests\nat all")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    with pytest.raises(CamtrainFileNotFoundError) as error:
        create_model("timm/resnet18", 5, weights="tv_in1k")
    message = str(error.value)
    assert "(no network in tests); fetch model.safetensors of timm/resnet18.tv_in1k" in message
    assert message.endswith("and give weights=FILE, the path of that file.")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "torchvision/resnet50",
            "IMAGENET1K_V3",
            "one of DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, None (null), or a file, got ",
        ),
        ("timm/resnet18", "a9", "must be one of DEFAULT, a1_in1k,"),
        ("timm/efficientnet_b6", "DEFAULT", "timm/efficientnet_b6 has no published weights; give"),
        ("camtrain/digits", "V1", "camtrain/digits has no published weights; give weights=None"),
    ],
)
def test_unknown_weights_are_said(name: str, weights: str, message: str) -> None:
    with pytest.raises(CamtrainValueError) as error:
        find_weights(name, weights)
    assert message in str(error.value)


@pytest.mark.parametrize("weights", ["missing.pth", "runs/birds", Path("DEFAULT")])
def test_what_looks_like_a_file_is_looked_for(weights: str | Path) -> None:
    with pytest.raises(CamtrainFileNotFoundError, match="does not exist"):
        find_weights(SQUEEZENET, weights)


def test_no_weights() -> None:
    assert find_weights(SQUEEZENET, None) is None
    assert find_weights("camtrain/digits", "DEFAULT") is None
