"""Weights from files: every wrapping that is met in practice, and what is refused."""

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.model.backbones import build_classifier
from camtrain.model.create import create_model
from camtrain.model.weights import find_weights, fit_weights, load_weights, read_weights
from tests.conftest import everyday

Weights = dict[str, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))


def assert_equal(found: Weights, expected: Weights) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def read(path: Path, target: nn.Module) -> Weights:
    """The tensors of a file by the names of a network."""
    return fit_weights(read_weights(path), target.state_dict(), "w.pth")


FOREIGN = {
    "criterion.weight": torch.ones(7),
    "n_averaged": torch.tensor(3),  # of torch's AveragedModel
    "val_acc.tp": torch.ones(7),  # a metric of a Lightning module
}
# Form: after. Before, those below "our own" were refused: the dictionaries because they hold "no
# tensors by name", the prefixes because "num_classes must be at least 1", in `create_model`.
WRAPPINGS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "plain": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda weights: {"model": weights},
    "model_state_dict": lambda weights: {"model_state_dict": weights},
    "module.": lambda weights: prefixed("module.", weights),
    "both": lambda weights: {"state_dict": prefixed("module.", weights)},
    "lightning": lambda weights: {"state_dict": prefixed("net.backbone.trunk.", weights)},
    "our own": lambda weights: {
        **prefixed("backbone.trunk.", weights),
        "neck.conv1.weight": torch.ones(1),
        "head.weight": torch.ones(1),
    },
    "_orig_mod.": lambda weights: prefixed("_orig_mod.", weights) | FOREIGN,
    "module._orig_mod.": lambda weights: prefixed("module._orig_mod.", weights) | FOREIGN,
    "_orig_mod.module.": lambda weights: prefixed("_orig_mod.module.", weights) | FOREIGN,
    "model.": lambda weights: prefixed("model.", weights) | FOREIGN,
    "backbone.": lambda weights: FOREIGN | prefixed("backbone.", weights),
    "network.": lambda weights: prefixed("network.", weights) | FOREIGN,
    "encoder.": lambda weights: prefixed("encoder.", weights) | FOREIGN,
    "net": lambda weights: {"net": weights, "acc": 93.5, "epoch": 3},
    "weights": lambda weights: {"weights": weights},
    "params_ema": lambda weights: {"params_ema": weights},
    "network": lambda weights: {
        "network": weights,
        "optimizer": {"state": {0: {"m": torch.ones(2)}}},
    },
    "deep": lambda weights: {"a": {"model": prefixed("_orig_mod.net.module.", weights)}},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("is_legacy", [False, True])
def test_wrappings_are_taken_off(
    wrap: Callable[[Weights], dict[str, Any]], is_legacy: bool, tmp_path: Path
) -> None:
    weights = network().state_dict()
    torch.save(wrap(weights), tmp_path / "w.pth", _use_new_zipfile_serialization=not is_legacy)
    fitted = read(tmp_path / "w.pth", network())
    assert_equal({n: t for n, t in fitted.items() if n not in FOREIGN}, weights)


def test_the_head_beside_a_backbone_is_read(tmp_path: Path) -> None:
    """As mmpretrain saves it; before: num_classes must be at least 1."""
    target = network()
    target.add_module("fc", nn.Linear(4, 1000))
    weights = {**network().state_dict(), "fc.weight": torch.ones(7, 4), "fc.bias": torch.ones(7)}
    stored = {("head." if n[:2] == "fc" else "backbone.") + n: t for n, t in weights.items()}
    torch.save({"meta": {"epoch": 3}, "state_dict": stored}, tmp_path / "w.pth")
    assert read(tmp_path / "w.pth", target).keys() == weights.keys()


PAIRS = {
    ("state_dict", "state_dict_ema"): "state_dict",
    ("model_ema", "model"): "model",
    ("params_ema", "params"): "params",
    ("teacher", "student"): "student",
    ("first", "second"): "first",
}


@pytest.mark.parametrize("places", PAIRS)
def test_of_two_networks_in_a_file_the_trained_one_is_taken_and_named(
    places: tuple[str, str], tmp_path: Path
) -> None:
    """Before, the EMA of `state_dict` and `model` went unsaid, and other pairs were refused."""
    nets = {place: network().state_dict() for place in places}
    torch.save(nets, tmp_path / "w.pth")
    expected = PAIRS[places]
    with pytest.warns(UserWarning, match=f"holds 2 networks that fit .*, {expected} is taken; to"):
        assert_equal(read(tmp_path / "w.pth", network()), nets[expected])


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.trunk."])
def test_safetensors_are_read(prefix: str, tmp_path: Path) -> None:
    weights = dict(sorted(network().state_dict().items()))
    save_file(prefixed(prefix, weights), tmp_path / "w.safetensors")
    assert_equal(dict(sorted(read(tmp_path / "w.safetensors", network()).items())), weights)


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    weights = {"part.weight": torch.ones(2, 2), "bias": torch.ones(2)}
    torch.save(weights, tmp_path / "w.pt")
    target = nn.Sequential(OrderedDict(part=nn.Linear(2, 2, bias=False)))
    target.register_parameter("bias", nn.Parameter(torch.zeros(2)))
    assert_equal(read(tmp_path / "w.pt", target), weights)


def test_loading_ignores_what_the_network_does_not_have() -> None:
    source, target = network(), network()
    load_weights(target, {**source.state_dict(), "head.weight": torch.ones(3)}, source="w.pth")
    assert_equal(target.state_dict(), source.state_dict())


def test_weights_from_before_the_counter_of_batchnorm_load() -> None:
    weights = network().state_dict()
    del weights["norm.num_batches_tracked"]
    target = network()
    load_weights(target, weights, source="w.pth")
    assert torch.equal(target.conv.weight, weights["conv.weight"])


def test_half_precision_is_loaded_into_float32() -> None:
    weights = {
        n: t.half() if t.is_floating_point() else t for n, t in network().state_dict().items()
    }
    target = network()
    load_weights(target, weights, source="w.pth")
    assert target.conv.weight.dtype == torch.float32
    assert torch.equal(target.conv.weight, weights["conv.weight"].float())


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            {"conv.weight": None},
            ("w.pth holds weights of another", "of 7 tensors 6 fit; missing conv.weight; give"),
        ),
        (
            {"conv.weight": torch.ones(8, 3, 3, 3)},
            ("6 fit; shapes differ: conv.weight (8, 3, 3, 3), (4, 3, 3, 3) expected; give",),
        ),
        (
            {"norm.bias": None, "conv.bias": torch.ones(2)},
            ("5 fit; missing norm.bias; shapes differ: conv.bias (2,), (4,) expected",),
        ),
        (
            {n: None for n in network().state_dict()}
            | {"x.a": torch.ones(1), "x.b": torch.ones(1)},
            (
                "of 7 tensors 0 fit; missing conv.weight, conv.bias, norm.weight and 3 more; ",
                "unexpected x.a, x.b; give",
            ),
        ),
        (  # of a larger network; before, the first blocks of a resnet34 became a resnet18
            {"conv.0.a": torch.ones(1), "conv.0.b": torch.ones(1)},
            ("of 7 tensors 7 fit; unexpected conv.0.a, conv.0.b; give weights=FILE",),
        ),
    ],
)
def test_unfitting_weights_are_named_with_their_shapes_and_nothing_is_loaded(
    change: dict[str, Tensor | None], messages: tuple[str, ...]
) -> None:
    weights = {n: t for n, t in {**network().state_dict(), **change}.items() if t is not None}
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CamtrainValueError) as error:
        load_weights(target, weights, source="w.pth")
    for message in messages:
        assert message in str(error.value)
    assert_equal(target.state_dict(), before)


class Touching:
    """Pickled code: reading it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        """What a pickle runs."""
        return Path.touch, (self.path,)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_code_in_a_file_is_refused_and_not_run(is_legacy: bool, tmp_path: Path) -> None:
    content = {**network().state_dict(), "x": Touching(tmp_path / "touched")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not is_legacy)
    with pytest.raises(CamtrainValueError, match="would run code from it; expected the state_dict"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "touched").exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # what it would have done
    assert (tmp_path / "touched").exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pth")
    with pytest.raises(CamtrainValueError, match="holds more than plain tensors"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_refused_without_a_warning(tmp_path: Path) -> None:
    torch.jit.save(
        torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt"
    )  # before: a warning of torch
    with pytest.raises(CamtrainValueError, match="holds more than plain tensors"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "w.safetensors"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_in_one_sentence(
    name: str, part: float, tmp_path: Path
) -> None:
    path, weights = tmp_path / name, network().state_dict()
    if name == "w.safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=name == "zip.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CamtrainValueError) as error:
        read_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"not a checkpoint\n", "it is damaged, or holds more than plain tensors"),
        ("w.safetensors", b"not a checkpoint\n", "it is damaged"),
        ("w.pth", [torch.ones(1)], "holds no tensors by name"),
        ("w.pth", {"epoch": 3}, "holds no tensors by name; expected the state_dict"),
        ("w.pth", {}, "holds no tensors by name"),
    ],
)
def test_what_is_no_weights_file_is_said(
    name: str, content: object, message: str, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CamtrainValueError, match=message):
        read_weights(tmp_path / name)


def test_a_missing_file_is_said_with_the_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(CamtrainFileNotFoundError) as error:
        find_weights("torchvision/resnet18", tmp_path / "none.pth")
    assert "must be a weight name or an existing file" in str(error.value)
    assert f"looked at {tmp_path / 'none.pth'}" in str(error.value)


def places365(architecture: str, weights: Weights) -> dict[str, Any]:
    """The wrapping of the public Places365 checkpoints, whose training was parallel in two ways."""
    if architecture == "alexnet":
        parts = (name.partition(".") for name in weights)
        names = [f"{a}.module.{b}" if a == "features" else f"{a}.{b}" for a, _, b in parts]
    else:
        names = [f"module.{name}" for name in weights]
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "epoch": 90,
        "arch": architecture,
        "state_dict": OrderedDict(zip(names, weights.values(), strict=True)),
        "best_prec1": torch.tensor(54.7),
        "optimizer": optimizer,
    }


@pytest.mark.parametrize(
    ("architecture", "is_legacy"),
    everyday([("alexnet", True), ("resnet18", True), ("densenet121", False)], ("resnet18", True)),
)
def test_the_checkpoints_of_places365_load_with_their_classes(
    architecture: str, is_legacy: bool, tmp_path: Path
) -> None:
    path, name = tmp_path / f"{architecture}_places365.pth.tar", f"torchvision/{architecture}"
    classifier = torchvision.models.get_model(architecture, num_classes=365)
    weights = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", n): t
        for n, t in classifier.state_dict().items()
        if not n.endswith("num_batches_tracked")
    }
    content = places365(architecture, weights)
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    net = create_model(name, weights=path, neck=(8,))
    assert net.head.out_features == 365
    expected, trunk = classifier.state_dict(), net.backbone.get_submodule("trunk").state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in trunk.items())
    first, weight = next(classifier.named_parameters())
    grey = create_model(name, weights=path, neck=(8,), in_chans=1).backbone
    found = grey.get_parameter(f"trunk.{first}")
    torch.testing.assert_close(found, weight.sum(dim=1, keepdim=True))


def test_module_stays_where_the_network_has_one() -> None:
    target = nn.Sequential(OrderedDict(features=nn.Sequential(OrderedDict(module=nn.Linear(2, 3)))))
    weights = {n: torch.randn_like(t) for n, t in target.state_dict().items()}
    assert list(weights) == ["features.module.weight", "features.module.bias"]
    load_weights(target, fit_weights(weights, target.state_dict(), ""), source="w.pth")
    assert_equal(target.state_dict(), weights)


SQUEEZENET = "torchvision/squeezenet1_1"


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """With twelve classes, in order to be told from the library's default."""
    return torchvision.models.squeezenet1_1(num_classes=12).eval()


@pytest.mark.parametrize("form", ["classifier", "trunk", "camtrain"])
def test_create_model_takes_the_trunk_of_every_kind_of_file(
    form: str, classifier: nn.Module, tmp_path: Path
) -> None:
    weights = classifier.state_dict()
    trunk = {name: tensor for name, tensor in weights.items() if name.startswith("features.")}
    if form == "camtrain":
        trained = create_model(SQUEEZENET, 4, weights=None, neck=(8,))
        load_weights(trained.backbone.get_submodule("trunk"), trunk, source="")
        weights = trained.state_dict()
    elif form == "trunk":
        weights = trunk
    save_file(weights, tmp_path / "w.safetensors")
    net = create_model(SQUEEZENET, 3, weights=tmp_path / "w.safetensors", neck=(8,))
    assert_equal(dict(net.backbone.get_submodule("trunk").state_dict()), trunk)
    assert net.head.out_features == 3


def test_digits_load_from_their_own_bundle(tmp_path: Path) -> None:
    trained = create_model("camtrain/digits", 4, backbone_args={"width": 4})
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    net = create_model(
        "camtrain/digits", 3, weights=tmp_path / "w.safetensors", backbone_args={"width": 4}
    )
    assert_equal(net.backbone.state_dict(), trained.backbone.state_dict())


def test_the_head_of_a_cam_ready_file_is_kept(classifier: nn.Module, tmp_path: Path) -> None:
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    net = create_model(SQUEEZENET, weights=tmp_path / "w.pth", neck=())
    assert net.head.out_features == 12
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(images), classifier(images), atol=1e-6, rtol=0)
    other = create_model(SQUEEZENET, 5, weights=tmp_path / "w.pth", neck=())
    assert other.head.weight.shape == (5, 512)


def test_a_file_of_another_architecture_is_refused(classifier: nn.Module, tmp_path: Path) -> None:
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CamtrainValueError) as error:
        create_model("torchvision/resnet18", 5, weights=tmp_path / "w.pth")
    sentence = "w.pth holds weights of another architecture: of 120 tensors 0 fit; missing conv1."
    assert sentence in str(error.value)
    assert "unexpected features.0.weight, features.0.bias, " in str(error.value)
    with pytest.raises(CamtrainValueError, match="0 fit"):  # before: num_classes must be at least 1
        create_model("camtrain/digits", weights=tmp_path / "w.pth")


@pytest.mark.parametrize("neck", [(), (8,)])
@pytest.mark.parametrize("in_chans", [1, 6])
def test_weights_for_colour_fit_other_channels(
    neck: tuple[int, ...], in_chans: int, classifier: nn.Module, tmp_path: Path
) -> None:
    """The rule of timm: one channel gets the sum, more get repetitions of the same total."""
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    net = create_model(SQUEEZENET, 12, weights=tmp_path / "w.pth", neck=neck, in_chans=in_chans)
    colour = classifier.get_parameter("features.0.weight")
    expected = {1: colour.sum(dim=1, keepdim=True), 6: colour.repeat(1, 2, 1, 1) / 2}[in_chans]
    found = net.backbone.get_parameter("trunk.features.0.weight")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("in_chans", [1, 6])
@torch.inference_mode()
def test_a_grey_picture_looks_the_same_in_every_number_of_channels(
    in_chans: int, classifier: nn.Module, tmp_path: Path
) -> None:
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    net = create_model(SQUEEZENET, weights=tmp_path / "w.pth", neck=(), in_chans=in_chans).eval()
    grey = torch.randn(2, 1, 64, 96)
    expected = classifier(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(net(grey.expand(-1, in_chans, -1, -1)), expected, atol=1e-5, rtol=0)


REAL = [
    ("timm/mobilenetv2_100", "mobilenetv2_100_tfpad.safetensors", {"pad_type": "same"}),
    (SQUEEZENET, "squeezenet1_1.safetensors", {}),
]


@pytest.mark.parametrize(("name", "file", "arguments"), REAL)
@torch.inference_mode()
def test_real_weights_keep_their_head_and_their_logits(
    name: str, file: str, arguments: dict[str, Any], shared: Path
) -> None:
    path = shared / "weights" / file
    net = create_model(name, weights=path, neck=(), backbone_args=arguments).eval()
    classifier = build_classifier(name, num_classes=None, in_chans=3, backbone_args=arguments)
    classifier.load_state_dict(load_file(path))
    images = torch.randn(2, 3, 96, 160)
    logits, maps, classes = net.class_maps(images)
    assert classes.shape == (2, 1000)
    scale = maps.abs().max().item()
    torch.testing.assert_close(logits, classifier.eval()(images), atol=1e-5 * scale, rtol=0)
    pooled = maps.mean((-2, -1)) + net.head.bias
    torch.testing.assert_close(logits, pooled, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize(("name", "file", "arguments"), REAL)
def test_real_weights_fill_the_trunk_of_a_network_with_a_new_head(
    name: str, file: str, arguments: dict[str, Any], shared: Path
) -> None:
    path = shared / "weights" / file
    net = create_model(name, 20, weights=path, backbone_args=arguments)
    weights, trunk = load_file(path), net.backbone.get_submodule("trunk").state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trunk.items())
    assert {name.split(".")[0] for name in weights.keys() - trunk.keys()} == {"classifier"}
    assert net.head.weight.shape == (20, 1024)
