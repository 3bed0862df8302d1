"""Caffe's weight files: both serializations, an independent engine's numbers, and hostile bytes."""

import json
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.model.caffemodel import caffe_weights, read_caffemodel
from camtrain.model.camnet import CAMNet
from camtrain.model.create import create_model
from camtrain.model.recipes import caffe_layers

Layers = dict[str, list[Tensor]]


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def field(place: int, content: bytes) -> bytes:
    return varint(place << 3 | 2) + varint(len(content)) + content


def numbers(tensor: Tensor, style: str) -> bytes:
    if style == "packed":
        return field(5, tensor.numpy().tobytes())
    values = tensor.flatten().tolist()
    if style == "double":
        return field(8, struct.pack(f"<{len(values)}d", *values))
    if style == "unpacked":
        return b"".join(b"\x2d" + struct.pack("<f", value) for value in values)
    half = len(values) // 2
    parts = (values[:half], values[half:])  # of what is packed
    return b"".join(field(5, struct.pack(f"<{len(part)}f", *part)) for part in parts)


def encoded(layers: Layers, *, version: int = 2, style: str = "packed") -> bytes:
    """A caffemodel, by an encoder of its own."""
    written = field(1, b"a net")
    for name, blobs in layers.items():
        layer = b""
        for blob in blobs:
            if version == 1:
                axes = (1,) * (4 - blob.ndim) + tuple(blob.shape)
                shape = b"".join(
                    varint(place << 3) + varint(axis) for place, axis in enumerate(axes, start=1)
                )
            elif style == "unpacked":
                shape = field(7, b"".join(b"\x08" + varint(axis) for axis in blob.shape))
            else:
                shape = field(7, field(1, b"".join(map(varint, blob.shape))))
            layer += field(6 if version == 1 else 7, shape + numbers(blob, style))
        bottom = field(2 if version == 1 else 3, b"data")
        layer = field(4 if version == 1 else 1, name.encode()) + bottom + layer + b"\x50\x01"
        written += field(2 if version == 1 else 100, layer)
    return written


def some_layers() -> Layers:
    return {
        "conv1": [torch.randn(4, 3, 5, 7), torch.randn(4)],
        "relu1": [],
        "inception/1x1": [torch.randn(2, 4, 1, 1), torch.randn(2)],
        "fc": [torch.randn(6, 2), torch.randn(6)],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.caffemodel"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("style", ["packed", "unpacked", "parts", "double"])
def test_every_serialization_is_read_alike(version: int, style: str, path: Path) -> None:
    layers = some_layers()
    path.write_bytes(encoded(layers, version=version, style=style))
    found = read_caffemodel(path)
    assert list(found) == ["conv1", "inception/1x1", "fc"]  # layers without weights play no part
    for name, blobs in found.items():
        for blob, expected in zip(blobs, layers[name], strict=True):
            legacy = (1,) * (4 - expected.ndim) + tuple(expected.shape)
            assert blob.shape == (legacy if version == 1 else expected.shape)
            assert torch.equal(blob.reshape(expected.shape), expected)
            assert blob.dtype == torch.float32


def test_values_by_hand(path: Path) -> None:
    """One layer of the new serialization, byte by byte."""
    shape, data = b"\x3a\x04\x0a\x02\x01\x02", b"\x2a\x08\x00\x00\x80\x3f\x00\x00\x00\xc0"
    layer = b"\x0a\x02fc" + b"\x3a\x10" + shape + data
    path.write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    assert {
        name: [blob.tolist() for blob in blobs] for name, blobs in read_caffemodel(path).items()
    } == {"fc": [[[1.0, -2.0]]]}


def net_and_file(name: str) -> tuple[CAMNet, Layers]:
    """A miniature with random weights, and these by their Caffe names."""
    torch.manual_seed(0)
    net = create_model(name, 4, weights=None, backbone_args={"width": 0.125})
    state = {n.removeprefix("backbone.trunk."): t for n, t in net.state_dict().items()}
    layers = {
        caffe: [state[f"{ours}.weight"], state[f"{ours}.bias"]]
        for caffe, ours in caffe_layers(name).items()
    }
    return net, layers


NAMES = ("camtrain/vgg16-cam", "camtrain/googlenet-cam", "camtrain/alexnet-plus-cam")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", [1, 2])
def test_every_weight_arrives(name: str, version: int, path: Path) -> None:
    net, layers = net_and_file(name)
    path.write_bytes(encoded(layers, version=version))
    loaded = create_model(name, weights=path, backbone_args={"width": 0.125})
    assert loaded.recipe == net.recipe
    expected = net.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[n]) for n, t in loaded.state_dict().items())


def test_a_network_of_one_class_keeps_its_head(path: Path) -> None:
    _, layers = net_and_file(NAMES[0])
    layers["CAM_fc"] = [torch.randn(1, 128), torch.randn(1)]
    path.write_bytes(encoded(layers, version=1))
    loaded = create_model(NAMES[0], weights=path, backbone_args={"width": 0.125})
    assert torch.equal(loaded.head.weight, layers["CAM_fc"][0])


@pytest.mark.parametrize(
    ("arguments", "keeps_neck", "keeps_head"),
    [
        ({"num_classes": 4}, True, True),
        ({"num_classes": 7}, True, False),
        ({"stride": 8}, True, True),
        ({"pool": "lse"}, True, True),
        ({"neck": (128,), "neck_groups": 4}, False, False),
        ({"neck": ()}, False, False),
        ({"cut": "block4"}, False, False),
    ],
)
def test_what_a_changed_network_keeps_of_the_file(
    arguments: dict[str, object], keeps_neck: bool, keeps_head: bool, path: Path
) -> None:
    net, layers = net_and_file(NAMES[0])
    path.write_bytes(encoded(layers))
    loaded = create_model(NAMES[0], weights=path, backbone_args={"width": 0.125}, **arguments)
    assert loaded.head.out_features == arguments.get("num_classes", 4)
    state, expected = loaded.state_dict(), net.state_dict()
    kept = {n for n, t in state.items() if n in expected and torch.equal(t, expected[n])}
    assert {n for n in state if n.startswith("backbone.")} <= kept
    assert ("neck.conv1.weight" in kept) == keeps_neck
    assert ("head.weight" in kept) == keeps_head


def test_other_channels_take_the_sum_of_the_first_layer(path: Path) -> None:
    _, layers = net_and_file(NAMES[1])
    path.write_bytes(encoded(layers))
    grey = create_model(NAMES[1], weights=path, backbone_args={"width": 0.125}, in_chans=1)
    found = grey.backbone.get_parameter("trunk.conv1.7x7_s2.weight")
    torch.testing.assert_close(found, layers["conv1/7x7_s2"][0].sum(1, keepdim=True))


def drawn_layers(name: str, width: float, num_classes: int, seed: int) -> Layers:
    """The weights of the oracles: too large to be stored for some, but drawn from a seed."""
    with torch.device("meta"):
        net = create_model(name, num_classes, weights=None, backbone_args={"width": width})
    state = {n.removeprefix("backbone.trunk."): t for n, t in net.state_dict().items()}
    generator = np.random.RandomState(seed)
    layers: Layers = {}
    for caffe, ours in caffe_layers(name).items():
        weight, bias = state[f"{ours}.weight"], state[f"{ours}.bias"]
        scale = (2 / weight[0].numel()) ** 0.5 * (0.05 if ours == "head" else 1)
        drawn = [
            generator.standard_normal(weight.shape) * scale,
            generator.standard_normal(bias.shape) / 2,
        ]
        layers[caffe] = [torch.from_numpy(values).float() for values in drawn]
    return layers


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("alexnetplus_div8_v1", NAMES[2]),
        ("googlenet_div8_v2", NAMES[1]),
        ("vgg16_div8_v1", NAMES[0]),
        ("alexnetplus_full_v1", NAMES[2]),
        ("googlenet_full_v2", NAMES[1]),
    ],
)
@torch.inference_mode()
def test_logits_and_maps_are_an_independent_engine_s(
    file: str, name: str, shared: Path, path: Path
) -> None:
    folder = shared / "oracles/caffe_forward"
    facts = json.loads((folder / "expected.json").read_text())["models"][file]
    width = 1 / facts["width_divisor"]
    layers = drawn_layers(name, width, facts["classes"], facts["weight_seed"])
    if facts["stored"]:
        path = folder / f"{file}.caffemodel"
        for layer, blobs in read_caffemodel(path).items():
            for blob, drawn in zip(blobs, layers[layer], strict=True):
                torch.testing.assert_close(blob.reshape(drawn.shape), drawn)
    else:
        path.write_bytes(encoded(layers, version=int(file[-1])))
    net = create_model(name, weights=path, backbone_args={"width": width}).eval()
    generator = np.random.RandomState(facts["input_seed"])
    pixels = (generator.standard_normal(facts["input_shape"]) * 60).astype(np.float32)
    images = torch.from_numpy(pixels)
    values = np.load(folder / "expected.npz")
    expected = {n.split("/")[1]: torch.from_numpy(values[n]) for n in values if n.startswith(file)}
    assert torch.equal(images[0, :, :4, :4], expected["input_corner"])
    assert sum(p.numel() for p in net.parameters()) == facts["num_params"]

    features = net.features(images)
    logits, maps, _ = net.class_maps(images)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.softmax(1), expected["prob"], rtol=0, atol=1e-5)
    for found, wanted in (
        (features[0, :4], expected["cam_slice_c0_4"]),
        (features[0], expected.get("cam_blob_image0", features[0])),
        (features.mean((-2, -1)), expected["cam_chan_mean"]),
        (maps[0, :5], expected["cam_class0_4"]),
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def broken(change: str) -> Layers:
    _, layers = net_and_file(NAMES[2])
    if change == "missing":
        del layers["conv3"]
    elif change == "extra":
        layers["fc6\n"] = [torch.zeros(2, 2)]
    elif change == "arrays":
        layers["conv2"].append(torch.zeros(3))
    elif change == "shape":
        layers["conv5"][0] = torch.zeros(48, 48, 3, 3)
    elif change == "neck":
        layers["conv7"][0] = torch.zeros(64, 64, 3, 3)
    elif change == "head":
        layers["fc9"][0] = torch.zeros(4, 12)
    return layers


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ("missing", ("another network than camtrain/alexnet-plus-cam", "layer conv3 is missing")),
        ("extra", (r"layer 'fc6\n' is extra",)),
        ("arrays", ("layer conv2 has 3 arrays, not weight and bias",)),
        ("shape", ("conv5.weight (48, 48, 3, 3), (48, 24, 3, 3) expected",)),
        ("neck", ("neck of", "conv2.weight (64, 64, 3, 3), (64, 32, 3, 3) expected")),
        ("head", ("head of", "weight (4, 12), (4, 64) expected")),
    ],
)
def test_what_does_not_fit_is_named(change: str, messages: tuple[str, ...], path: Path) -> None:
    path.write_bytes(encoded(broken(change)))
    with pytest.raises(CamtrainValueError) as error:
        create_model(NAMES[2], weights=path, backbone_args={"width": 0.125})
    for message in (*messages, "w.caffemodel"):
        assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_of_the_networks_are_refused(path: Path) -> None:
    _, layers = net_and_file(NAMES[0])
    path.write_bytes(encoded(layers))
    with pytest.raises(CamtrainValueError, match=r"conv1/7x7_s2 is missing.*; and \d+ more"):
        caffe_weights(path, caffe_layers(NAMES[1]), NAMES[1])


def test_a_caffemodel_fits_the_paper_s_networks_only(path: Path) -> None:
    path.write_bytes(encoded(some_layers()))
    with pytest.raises(CamtrainValueError) as error:
        create_model("torchvision/vgg16", weights=path)
    assert "A .caffemodel fits the paper's networks, camtrain/vgg16-cam" in str(error.value)
    assert "not torchvision/vgg16" in str(error.value)


BAD = [
    (b"", "holds no layer with weights"),
    (b"name: 'net'\nlayer { name: 'conv1' }\n", "cannot be read as Caffe weights"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "cannot be read as Caffe weights"),
    (field(1, b"a net"), "holds no layer with weights"),
    (b"\xff" * 40, "a number in it does not end"),
    (b"\x0b", "unknown kind 3"),
    (b"\xa2\x06\xff\xff\xff\xff\x0f", "a field of 4294967295 bytes begins where 0 are left"),
    (encoded({"fc": [torch.zeros(2, 3)]})[:-4], "is cut off or damaged"),
    (field(100, field(7, field(7, b"\x08" * 80) + bytes([42, 4]) + bytes(4))), "more than 32 axes"),
    (field(100, field(7, field(7, field(1, bytes(40))))), "more than 32 axes"),
    (field(100, field(1, b"fc") + field(7, field(5, bytes(6)))), "'fc' has 6 bytes of numbers"),
    (field(100, field(7, b"")), "has 0 bytes of numbers"),
    (
        field(100, field(7, field(7, field(1, b"\x00\x80\x80\x80\x80\x01")) + field(5, bytes(8)))),
        "has 8 bytes of numbers for an array of the shape (0, 268435456)",
    ),
    (field(100, field(7, field(5, bytes(4)))) * 10_001, "more than 10000 arrays"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_files_are_refused_in_one_sentence(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(CamtrainValueError) as error:
        read_caffemodel(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said(path: Path) -> None:
    with pytest.raises(CamtrainFileNotFoundError, match="which does not exist"):
        create_model(NAMES[0], weights=path)


def test_memory_is_bounded_by_the_file(path: Path) -> None:
    """Shapes and lengths may promise anything; empty parts cost as little as they hold."""
    empty_parts = field(100, field(7, field(7, field(1, b"\x01")) + field(5, b"") * 20_000))
    promises = field(7, field(7, field(1, b"\xff\xff\xff\x7f" * 4)) + field(5, bytes(4)))
    empty_layers = field(100, b"") * 20_000
    for content in (empty_parts, field(100, promises), empty_layers):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(CamtrainValueError):
            read_caffemodel(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * len(content) + 100_000


def read_or_refused(content: bytes, path: Path) -> None:
    """No other exception, and never more numbers than the file can hold."""
    path.write_bytes(content)
    with suppress(CamtrainValueError):
        layers = read_caffemodel(path)
        held = sum(4 * blob.numel() for blobs in layers.values() for blob in blobs)
        assert held <= len(content)


ANY_FILE = st.sampled_from(
    [
        encoded(some_layers(), version=version, style=style)
        for version in (1, 2)
        for style in ("packed", "unpacked")
    ]
)
HYPOTHESIS = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HYPOTHESIS
@given(content=ANY_FILE, part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_or_ends_between_layers(
    content: bytes, part: float, path: Path
) -> None:
    read_or_refused(content[: int(part * len(content))], path)


@HYPOTHESIS
@given(content=ANY_FILE, place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(
    content: bytes, place: float, byte: int, path: Path
) -> None:
    at = int(place * len(content))
    read_or_refused(content[:at] + bytes([byte]) + content[at + 1 :], path)


@HYPOTHESIS
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes, path: Path) -> None:
    read_or_refused(content, path)
    read_or_refused(field(100, field(7, content)), path)
