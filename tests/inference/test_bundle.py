"""The bundle keeps everything, is written whole or not at all, and is refused in one sentence."""

import json
import pickle
import resource
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import camtrain
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.bundle import read_network, write_bundle
from camtrain.model.camnet import CAMNet
from camtrain.model.create import create_model, from_recipe
from camtrain.preprocessing import Preprocessing

GOLDEN = Path(__file__).parent / "golden_v1.safetensors"


def digits_net() -> CAMNet:
    net = create_model(
        "camtrain/digits", 3, in_chans=1, neck=(2,), pool="lse", backbone_args={"width": 1}
    )
    net.name_classes(["nought", "one", "zwei drei/ü"])
    net.preprocessing = Preprocessing((48, 40), (0.4,), (0.2,), "bicubic", "crop", 0.9)
    with torch.no_grad():
        net(torch.rand(2, 1, 48, 40))  # in training mode: BatchNorm's buffers leave their defaults
    return net


def own_head_net() -> CAMNet:
    """A cam-ready classifier that keeps its head, here with random weights."""
    name = "torchvision/squeezenet1_1"
    recipe = create_model(name, 7, weights=None, neck=(), task="multilabel").recipe
    assert recipe is not None
    return from_recipe({**recipe, "own_head": True})


def paper_net() -> CAMNet:
    return create_model(
        "camtrain/googlenet-cam", 3, weights=None, stride=8, backbone_args={"width": 0.125}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = json.loads(file.metadata()["camtrain"])
    return metadata


def rewritten(path: Path, tensors: dict[str, Tensor] | None = None, **changes: object) -> Path:
    """The bundle with other tensors or other metadata."""
    text = json.dumps({**metadata_of(path), **changes})
    save_file(load_file(path) if tensors is None else tensors, path, {"camtrain": text})
    return path


def write_with_threshold(path: Path, net: CAMNet, threshold: float) -> None:
    write_bundle(path, net, description=replace(net.description, threshold=threshold))


@pytest.mark.parametrize("make", [digits_net, own_head_net, paper_net])
def test_round_trip_is_bit_identical(make: Callable[[], CAMNet], path: Path) -> None:
    torch.manual_seed(1)
    net: CAMNet = make().to(memory_format=torch.channels_last)
    scores = {"val/acc1": 0.1 + 0.2, "val/loc_gt_known": 1 / 3}
    write_bundle(path, net, description=replace(net.description, threshold=0.15, scores=scores))
    found = read_network(path)
    assert found.description.threshold == 0.15
    assert found.description.scores == scores
    assert list(found.net.class_names or ()) == list(net.display_names)
    assert found.net.preprocessing == net.preprocessing
    assert found.net.recipe == net.recipe
    assert found.net.pool == net.pool
    assert found.net.task == net.task == ("multilabel" if make is own_head_net else "multiclass")
    state, expected = found.net.state_dict(), net.state_dict()
    assert state.keys() == expected.keys()
    for name in expected:
        assert torch.equal(state[name], expected[name]), name
        assert state[name].dtype == expected[name].dtype, name
    assert not any(module.training for module in found.net.modules())
    images = torch.rand(1, 1 if make is digits_net else 3, 72, 64)
    found.net.to(memory_format=torch.channels_last)
    assert torch.equal(found.net(images), net.eval()(images))
    again = path.with_name("again.safetensors")
    write_bundle(again, found.net, description=found.description)
    assert metadata_of(again) == metadata_of(path)
    assert load_file(again).keys() == load_file(path).keys()


def test_reading_draws_no_random_numbers(path: Path) -> None:
    write_bundle(path, paper_net())
    before = torch.get_rng_state()
    read_network(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_file_is_a_plain_safetensors_with_one_json_beside_the_weights(path: Path) -> None:
    net = digits_net()
    description = replace(net.description, threshold=0.25, scores={"val/acc1": 0.5})
    write_bundle(path, net, description=description)
    state = net.state_dict()
    assert load_file(path).keys() == state.keys()
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, state[name]), name
    assert metadata_of(path) == {
        "format_version": 1,
        "camtrain_version": camtrain.__version__,
        "architecture": net.recipe,
        "class_names": ["nought", "one", "zwei drei/ü"],
        "preprocessing": {
            "size": [48, 40],
            "mean": [0.4],
            "std": [0.2],
            "interpolation": "bicubic",
            "resize_mode": "crop",
            "crop_pct": 0.9,
        },
        "map_threshold": 0.25,
        "scores": {"val/acc1": 0.5},
    }


def test_classes_without_names_are_named_by_their_numbers(path: Path) -> None:
    net = create_model("camtrain/digits", 3, neck=(), backbone_args={"width": 1})
    with pytest.warns(UserWarning, match="classes are called 0, 1, 2, since") as caught:
        camtrain.Predictor(net).save(path)
    assert [warning.filename for warning in caught] == [__file__]
    assert read_network(path).net.class_names == ("0", "1", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        camtrain.load(path).save(path)  # the file has names now
        camtrain.Predictor(net, class_names=["a", "b", "c"]).save(path)


def test_a_bundle_is_also_a_weights_file(path: Path) -> None:
    net = digits_net()
    write_bundle(path, net)
    copy = create_model("camtrain/digits", 5, weights=path, in_chans=1, backbone_args={"width": 1})
    for name, tensor in net.backbone.state_dict().items():
        assert torch.equal(copy.backbone.state_dict()[name], tensor), name


def half_written(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    Path(path).write_bytes(b"half a file")
    raise OSError("No space left on device")


@pytest.mark.parametrize("has_older", [True, False])
def test_a_failing_write_leaves_the_older_file_whole_and_nothing_else(
    has_older: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_older:
        write_with_threshold(path, digits_net(), 0.11)
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    assert len(before) == has_older
    monkeypatch.setattr(safetensors.torch, "save_file", half_written)
    with pytest.raises(OSError, match="No space left"):
        write_with_threshold(path, digits_net(), 0.22)
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before


def test_a_write_replaces_the_older_file_and_leaves_nothing_else(path: Path) -> None:
    for threshold in (0.11, 0.22):
        write_with_threshold(path, digits_net(), threshold)
    assert read_network(path).description.threshold == 0.22
    assert list(path.parent.iterdir()) == [path]


def test_the_file_may_be_read_by_whoever_may_read_other_files(path: Path) -> None:
    write_bundle(path, digits_net())
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a readable safetensors file"),
        (b"\x80\x02}q\x00.", "is not a readable safetensors file"),  # a pickle
        (b"PK\x03\x04" + bytes(200), "is not a readable safetensors file"),  # a zip
        ((2**60).to_bytes(8, "little") + b"{}", "is not a readable safetensors file"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)
    assert_refused(path, message)


def assert_refused(path: Path, *parts: str) -> None:
    """In one sentence, which names the file."""
    with pytest.raises(CamtrainValueError) as error:
        read_network(path)
    for part in (str(path), *parts):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def with_header(header: object, data: bytes = bytes(16)) -> bytes:
    """A safetensors file of this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor_at(begin: int, end: int, shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",  # a header longer than the file
        (10**9).to_bytes(8, "little") + b"{}" + bytes(100),
        with_header({"a": tensor_at(0, 8), "b": tensor_at(4, 12)}),  # overlapping
        with_header({"a": tensor_at(0, 8), "b": tensor_at(0, 8)}),
        with_header({"a": tensor_at(0, 8)}),  # bytes that are nobody's
        with_header({"a": tensor_at(8, 16)}),  # a hole
        with_header({"a": tensor_at(0, 2**40, (2**38,))}),  # more than there is
        with_header({"a": tensor_at(0, 16, (2**62, 2**62))}),  # a shape that overflows
        with_header({"a": tensor_at(16, 0)}),
        with_header({"a": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}}),
        with_header(b"{" * 5000),
        with_header(b"\xff\xfe not text"),
        with_header({"__metadata__": {"camtrain": {"not": "text"}}, "a": tensor_at(0, 16, (4,))}),
    ],
)
def test_a_hostile_header_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert_refused(path, "is not a readable safetensors file")


class Bomb:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """What loading calls."""
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["camtrain", "state_dict", "callbacks", None])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_checkpoint_is_refused_and_does_nothing(
    zipped: bool, key: str | None, tmp_path: Path
) -> None:
    """Wherever it hides, and though all that is needed stands beside it."""
    net, path, trace = digits_net(), tmp_path / "best.ckpt", tmp_path / "executed"
    assert net.recipe is not None
    assert net.preprocessing is not None
    content: dict[str, Any] = {
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
        "camtrain": {
            "architecture": net.recipe,
            "class_names": ["a", "b", "c"],
            "preprocessing": net.preprocessing.to_dict(),
            "map_threshold": 0.2,
        },
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert camtrain.load(path).network.class_names == ("a", "b", "c")
    torch.save(
        {**content, key: Bomb(trace)} if key else Bomb(trace),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(
        CamtrainValueError, match="is not a camtrain checkpoint that can be read safely"
    ) as error:
        camtrain.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04" + bytes(200), pickle.dumps({"camtrain": {}}), b"\x80\x05.", b"text"],
)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes(content)
    with pytest.raises(CamtrainValueError, match="is not a camtrain checkpoint") as error:
        camtrain.load(path)
    assert "\n" not in str(error.value)


def test_a_truncated_bundle_is_refused(path: Path) -> None:
    write_bundle(path, digits_net())
    path.write_bytes(path.read_bytes()[:-4])
    assert_refused(path, "is not a readable safetensors file")


def test_a_missing_file_is_told_from_a_bad_one(path: Path) -> None:
    for missing in (path, path.parent):  # a folder is no file either
        with pytest.raises(CamtrainFileNotFoundError, match="No bundle at") as error:
            read_network(missing)
        assert str(missing) in str(error.value)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_without_our_metadata_are_refused(
    metadata: dict[str, str] | None, path: Path
) -> None:
    save_file(digits_net().state_dict(), path, metadata)
    assert_refused(path, "is not a camtrain bundle", "camtrain.create_model")


FAR_LARGER = "a network far larger than its"


def nested(depth: int, uses: int = 1) -> list[Any]:
    """Lists in lists; where each is used twice, printing them never ends."""
    values: list[Any] = []
    for _ in range(depth):
        values = [values] * uses
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10**8}, "it has 100000000 classes, and a head.weight of (3, "),
        ({"backbone_args": {"width": 10_000}}, FAR_LARGER),
        ({"neck": [30_000, 30_000]}, FAR_LARGER),
        pytest.param(
            {"backbone": "timm/vit_base_patch16_224", "backbone_args": {"depth": 10**5}},
            FAR_LARGER,
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"backbone": "timm/resnet18", "backbone_args": {"layers": [10**9, 1, 1, 1]}},
            FAR_LARGER,
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_network_larger_than_its_weights_is_not_built(
    changes: dict[str, Any], message: str, path: Path
) -> None:
    """Before: gigabytes were allocated and filled, before the shapes were compared."""
    write_bundle(path, digits_net())
    architecture = {**metadata_of(path)["architecture"], **changes}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(rewritten(path, architecture=architecture), message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000  # kB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": [1]}, "state_dict must be a dict"),
        ({"state_dict": {"net.x": 3}}, "state_dict must hold tensors"),
        ({"callbacks": {"CAMLogger": 3}}, "callbacks must hold the state of each"),
        ({"hyper_parameters": {3: 4}}, "hyper_parameters must be a list of names"),
        ({"datamodule_hyper_parameters": "root"}, "datamodule_hyper_parameters must be a dict"),
        ({"epoch": "last"}, "epoch must be a int"),
        ({"hyper_parameters": {"lr": nested(40, 2)}}, "its values are more than 2000000"),
    ],
)
def test_a_checkpoint_with_parts_of_other_types_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    net, path = digits_net(), tmp_path / "best.ckpt"
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state, "camtrain": net.description.to_dict(), **changes}, path)
    assert_refused(path, message)


def test_a_checkpoint_that_unpacks_to_more_than_the_file_is_refused(tmp_path: Path) -> None:
    """Before: a deflated pickle of gigabytes was unpacked."""
    path, packed = tmp_path / "best.ckpt", tmp_path / "packed.ckpt"
    torch.save({"camtrain": {}, "text": "a" * 100_000}, path)
    with ZipFile(path) as archive, ZipFile(packed, "w", ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    assert_refused(packed, "its members unpack to")
    with pytest.raises(CamtrainValueError, match="cannot be read as weights"):
        camtrain.create_model("camtrain/digits", 3, weights=packed)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"text"', "{}", '{"format_version": Infinity}', "[" * 100_000],
)
def test_damaged_json_is_refused(text: str, path: Path) -> None:
    save_file(digits_net().state_dict(), path, {"camtrain": text})
    assert_refused(path, "has unreadable camtrain metadata")


def test_a_newer_format_is_refused_before_anything_else_is_looked_at(path: Path) -> None:
    newer = json.dumps({"format_version": 5, "architecture": "a language of the future"})
    save_file({"x": torch.zeros(1)}, path, {"camtrain": newer})
    assert_refused(path, "format version 5", "reads up to 4", "install a newer camtrain")


def test_an_automatic_threshold_is_kept_in_a_format_that_older_versions_refuse(path: Path) -> None:
    net = digits_net()
    write_bundle(path, net, description=replace(net.description, threshold="auto"))
    assert metadata_of(path)["format_version"] == 4
    description = read_network(path).description
    assert (description.threshold, description.calibrated_threshold) == ("auto", None)
    assert description.threshold_origin == "Otsu's of each heatmap, not calibrated"
    assert description.with_maps("affinity", ()).threshold == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["only one"]}, "class_names must hold one name for each of the 3"),
        ({"architecture": None}, "architecture is missing"),
        ({"architecture": {"backbone": "timm/local-dir:."}}, "backbone must be LIBRARY/NAME"),
        ({"architecture": {"backbone": "timm/hf-hub:a/b"}}, "backbone must be LIBRARY/NAME"),
        ({"architecture": {"backbone": "os/system"}}, "backbone must be LIBRARY/NAME"),
        ({"architecture": {"dropout": float("nan")}}, "dropout must lie in"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, path: Path
) -> None:
    write_bundle(path, digits_net())
    if changes.get("architecture"):
        changes = {"architecture": {**metadata_of(path)["architecture"], **changes["architecture"]}}
    assert_refused(rewritten(path, **changes), "tensors and metadata that do not fit", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": "a, b, c"}, "class_names must be a list of names"),
        ({"class_names": [1, 2, 3]}, "class_names must be a list of names"),
        ({"map_threshold": 1.5}, "threshold must lie in [0, 1), got 1.5"),
        ({"class_names": ["a", "b", "c" * 10_001]}, "class_names must be a list of names"),
        ({"map_threshold": "otsu"}, "map_threshold must hold numbers"),
        ({"map_threshold": None}, "map_threshold must hold numbers"),
        ({"map_threshold": "0.2"}, "map_threshold must hold numbers"),
        ({"scores": 3}, "scores must hold numbers"),
        ({"scores": {"acc": "high"}}, "scores must hold numbers"),
        ({"other_thresholds": {"class maps": [1]}}, "other_thresholds must hold numbers"),
        ({"is_calibrated": "yes"}, "is_calibrated must be true or false"),
        ({"refine": {"method": 5, "layers": []}}, "refine must be a list of names"),
        ({"preprocessing": {"size": [40_000, 40_000]}}, "size must be of at most 67108864 pixels"),
        ({"preprocessing": {"mean": [0.5, 0.5, "x"]}}, "mean, std and crop_pct finite numbers"),
        ({"preprocessing": {"std": [1.0, float("nan"), 1.0]}}, "finite numbers"),
        ({"preprocessing": {"size": [32.5, 32]}}, "size must be whole numbers"),
        ({"scores": {"acc": 10**400}}, "a number beyond 64 bits"),
        ({"preprocessing": None}, "preprocessing is missing"),
        ({"preprocessing": {"size": [0, 4]}}, "size must be two positive numbers"),
        ({"preprocessing": {"scale": 4}}, "unexpected keyword argument 'scale'"),
        ({"architecture": []}, "TypeError"),
        ({"architecture": {}}, "KeyError: 'backbone'"),
        ({"architecture": {"backbone": "os/system"}}, "KeyError: 'num_classes'"),
        ({"architecture": {"backbone": 5, "cut": nested(60)}}, "nested deeper than 50"),
    ],
)
def test_damaged_metadata_are_refused(changes: dict[str, Any], message: str, path: Path) -> None:
    write_bundle(path, digits_net())
    assert_refused(rewritten(path, **changes), "has unreadable camtrain metadata", message)


def test_tensors_that_do_not_fit_are_named(path: Path) -> None:
    write_bundle(path, digits_net())
    tensors = load_file(path)
    without = {name: tensor for name, tensor in tensors.items() if name != "head.bias"}
    assert_refused(rewritten(path, without), "head.bias")
    assert_refused(rewritten(path, {**tensors, "tail.bias": torch.zeros(1)}), "tail.bias")
    rewritten(path, {**tensors, "head.bias": torch.zeros(4)})
    assert_refused(path, "head.bias", "torch.Size([4])", "torch.Size([3])")


def converted_net() -> CAMNet:
    """Nobody knows how its pictures are prepared."""
    classifier = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return camtrain.convert(classifier)


@pytest.mark.parametrize(
    ("name", "make", "threshold", "error", "message"),
    [
        (
            "model.safetensors",
            converted_net,
            0.2,
            CamtrainValueError,
            "preprocessing must be known",
        ),
        ("model.pt", digits_net, 0.2, CamtrainValueError, "A bundle is a .safetensors file"),
        ("model.safetensors", digits_net, 1.0, CamtrainValueError, "threshold must lie in [0, 1)"),
        ("a/b.safetensors", digits_net, 0.2, CamtrainFileNotFoundError, "create it first"),
    ],
)
def test_what_cannot_become_a_bundle_is_refused_and_nothing_is_written(
    name: str,
    make: Callable[[], CAMNet],
    threshold: float,
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as raised:
        write_with_threshold(tmp_path / name, make(), threshold)
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


def make_golden() -> CAMNet:
    """How golden_v1.safetensors was made, once, by camtrain 0.1.0; it must never be made again.

    A later format gets a file of its own beside it. In a Python shell in this folder::

        write_bundle(
            "golden_v1.safetensors", make_golden(), threshold=0.35, scores={"val/acc1": 0.75}
        )
    """
    net = create_model(
        "camtrain/digits", 3, in_chans=1, neck=(2,), backbone_args={"width": 1}
    ).eval()
    net.name_classes(["circle", "square", "star"])
    net.preprocessing = Preprocessing((16, 24), (0.25,), (0.5,), "bicubic", "crop", 0.8)
    with torch.no_grad():
        for number, (name, tensor) in enumerate(net.state_dict().items()):
            if tensor.is_floating_point():
                wave = torch.sin(torch.arange(tensor.numel()) + number).reshape(tensor.shape)
                tensor.copy_(1 + 0.5 * wave if name.endswith("running_var") else wave)
    return net


def golden_images() -> Tensor:
    """(2, 1, 16, 24): two waves."""
    return torch.sin(torch.arange(2 * 16 * 24) * 0.1).reshape(2, 1, 16, 24)


GOLDEN_LOGITS = [[25.7958, -4.0789, -21.88275], [21.04581, -3.54059, -17.58078]]
GOLDEN_MAP = [  # of the second picture, for class 2
    [0.0, 0.0, 0.0, 0.0, -1.90039, -1.23302],
    [-34.84501, -64.39194, -69.26356, -39.21576, -12.92768, -1.96656],
    [0.0, 0.0, 0.0, -3.60947, -2.89494, -11.57699],
    [-24.70399, -46.73724, -55.89866, -32.97226, -0.92689, -0.94724],
]


def test_the_golden_bundle_of_format_version_1_loads_forever() -> None:
    found = read_network(GOLDEN)
    assert found.description.threshold == 0.35
    assert found.description.scores == {"val/acc1": 0.75}
    assert found.net.class_names == ("circle", "square", "star")
    assert found.net.preprocessing == Preprocessing(
        (16, 24), (0.25,), (0.5,), "bicubic", "crop", 0.8
    )
    with torch.inference_mode():
        logits, maps, _ = found.net.class_maps(golden_images())
    torch.testing.assert_close(logits, torch.tensor(GOLDEN_LOGITS), rtol=1e-5, atol=1e-4)
    assert maps.shape == (2, 3, 4, 6)
    torch.testing.assert_close(maps[1, 2], torch.tensor(GOLDEN_MAP), rtol=1e-5, atol=1e-4)


def test_the_golden_bundle_holds_what_its_recipe_says() -> None:
    """Its weights are those of the formula: the file has not been made anew by another."""
    state = load_file(GOLDEN)
    for name, tensor in make_golden().state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-6, msg=name)


GOLDEN_V2 = GOLDEN.with_name("golden_v2.safetensors")
GOLDEN_REFINED_MAP = [  # as `GOLDEN_MAP`, refined
    [0.0, 0.87654, 0.89016, 0.81401, 0.50002, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.06898, 0.0],
    [0.81297, 0.7181, 0.66692, 0.34951, 0.22634, 0.0],
    [0.0, 0.0, 0.0, 0.01599, 0.62669, 0.41137],
]


def test_the_golden_bundle_of_format_version_2_loads_forever() -> None:
    """``make_golden().set_refine("affinity")``, written once by camtrain 0.1.0."""
    found = read_network(GOLDEN_V2)
    assert metadata_of(GOLDEN_V2)["format_version"] == 2
    assert found.description.threshold == 0.4
    assert found.net.stages is not None
    assert found.net.stages.layers == ("trunk.pool2", "trunk.relu3")
    with torch.inference_mode():
        logits, maps, _ = found.net.class_maps(golden_images())
        refined = found.net.display_maps(golden_images()).maps
    torch.testing.assert_close(logits, torch.tensor(GOLDEN_LOGITS), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(maps[1, 2], torch.tensor(GOLDEN_MAP), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(refined[1, 2], torch.tensor(GOLDEN_REFINED_MAP), rtol=0, atol=1e-4)


def test_a_bundle_of_refined_maps_is_a_weights_file_too() -> None:
    net = create_model("camtrain/digits", 10, in_chans=1, weights=GOLDEN_V2)
    for name, tensor in read_network(GOLDEN_V2).net.backbone.state_dict().items():
        assert torch.equal(net.backbone.state_dict()[name], tensor), name
    assert net.refine == "none"  # the layers belong to what is measured, not to the weights


def test_no_network_is_drawn_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers out of bounds were drawn again, and drawing is left out: memory may hold any."""
    net = create_model("torchvision/googlenet", 2, weights=None, neck=())
    write_bundle(tmp_path / "model.safetensors", net)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(1e9))
    read_network(tmp_path / "model.safetensors")
