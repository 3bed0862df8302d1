"""Smaller strides are exact: every pixel of the old map is found again in the new, larger one."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError
from camtrain.model.convert import convert
from camtrain.model.create import create_model
from camtrain.model.stride import DilatedAvgPool2d, set_stride, stride_of
from tests.conftest import everyday

Enliven = Callable[[nn.Module], nn.Module]


def slowed(backbone: nn.Module, stride: int) -> nn.Module:
    slow = copy.deepcopy(backbone)
    set_stride(slow, stride, in_chans=3)
    return slow


def assert_found_again(
    backbone: nn.Module, stride: int, *, own: int, images: Tensor, first: int = 0
) -> None:
    """Every ``own / stride``-th pixel of the larger map is a pixel of the map there was."""
    slow, step = slowed(backbone, stride), own // stride
    assert (stride_of(backbone, 3), stride_of(slow, 3)) == (own, stride)
    with torch.inference_mode():
        expected, larger = backbone(images), slow(images)
    found = larger[..., first::step, first::step]
    assert found.shape == expected.shape
    scale = expected.abs().max().item()
    assert expected.std() > 1e-3 * scale
    torch.testing.assert_close(found, expected, atol=1e-4 * scale, rtol=0)


EXACT = [  # name, stride, the backbone's own
    ("torchvision/resnet18", 16, 32),
    ("torchvision/resnet18", 4, 32),
    ("torchvision/resnet50", 16, 32),
    ("torchvision/mobilenet_v2", 16, 32),
    ("torchvision/mobilenet_v2", 8, 32),
    ("torchvision/densenet121", 16, 32),
    ("torchvision/googlenet", 8, 16),
    ("torchvision/googlenet", 4, 16),
    ("torchvision/squeezenet1_1", 8, 16),
    ("torchvision/vgg16", 8, 16),
    ("timm/convnext_atto", 16, 32),
    ("camtrain/digits", 2, 4),
    ("camtrain/digits", 1, 4),
]


SIZES = [(64, 96), (95, 67)]


@pytest.mark.parametrize(
    ("name", "stride", "own", "size"),
    everyday(
        [(*case, size) for case in EXACT for size in SIZES],
        ("torchvision/resnet18", 4, 32, SIZES[1]),
        ("torchvision/mobilenet_v2", 8, 32, SIZES[0]),
        ("torchvision/googlenet", 8, 16, SIZES[1]),
        ("torchvision/squeezenet1_1", 8, 16, SIZES[0]),
        ("timm/convnext_atto", 16, 32, SIZES[1]),
        ("camtrain/digits", 2, 4, SIZES[0]),
        ("camtrain/digits", 1, 4, SIZES[1]),
    ),
)
def test_dilation_is_exact(
    name: str, stride: int, own: int, size: tuple[int, int], enliven: Enliven
) -> None:
    torch.manual_seed(0)
    net = enliven(create_model(name, 2, weights=None, neck=()))
    assert_found_again(net.backbone, stride, own=own, images=torch.randn(1, 3, *size))


POOLED = itertools.product(
    ("torchvision/densenet121", "timm/resnet26d"), (16, 8, 4), ((64, 96), (128, 64))
)


@pytest.mark.parametrize(
    ("name", "stride", "size"), everyday(POOLED, ("timm/resnet26d", 16, (64, 96)))
)
def test_average_poolings_are_dilated_exactly(
    name: str, stride: int, size: tuple[int, int], enliven: Enliven
) -> None:
    torch.manual_seed(0)
    net = enliven(create_model(name, 2, weights=None, neck=()))
    assert_found_again(net.backbone, stride, own=32, images=torch.randn(1, 3, *size))


@settings(max_examples=60)
@given(
    size=st.tuples(*[st.integers(6, 12)] * 2),
    kernel=st.integers(1, 3),
    is_padded=st.booleans(),
    ceil_mode=st.booleans(),
    counts_padding=st.booleans(),
)
def test_average_poolings_of_every_kind_are_dilated_exactly(
    size: tuple[int, int], kernel: int, is_padded: bool, ceil_mode: bool, counts_padding: bool
) -> None:
    """The new map has every window of the old one, and at the far border some that it had not."""
    padding = kernel // 2 if is_padded and kernel % 2 and not ceil_mode else 0
    pool = nn.AvgPool2d(kernel, 2, padding, ceil_mode, counts_padding)
    images = torch.randn(2, 3, *size)
    old = pool(images)
    found = DilatedAvgPool2d(pool, 1)(images)[..., ::2, ::2][..., : old.shape[2], : old.shape[3]]
    torch.testing.assert_close(found, old)


@pytest.mark.parametrize("stride", [16, 8])
def test_dilation_is_exact_with_padding_at_the_end_only(stride: int, enliven: Enliven) -> None:
    """TensorFlow's padding: the old pixels are the last of each group instead of the first."""
    torch.manual_seed(0)
    net = create_model(
        "timm/mobilenetv2_100", 2, weights=None, neck=(), backbone_args={"pad_type": "same"}
    )
    images = torch.randn(1, 3, 64, 96)
    first = 32 // stride - 1
    assert_found_again(enliven(net).backbone, stride, own=32, images=images, first=first)


@pytest.mark.nightly
@pytest.mark.parametrize("stride", [16, 8])
def test_a_converted_googlenet_is_dilated_exactly(stride: int, enliven: Enliven) -> None:
    """Its last max poolings are padded, and their padding outgrows half their kernel."""
    torch.manual_seed(0)
    net = convert(enliven(torchvision.models.googlenet(weights=None, init_weights=False)))
    assert_found_again(net.backbone, stride, own=32, images=torch.randn(1, 3, 64, 96))


@settings(max_examples=60)
@given(
    size=st.tuples(*[st.integers(12, 40)] * 2),
    kernel=st.tuples(*[st.integers(1, 3)] * 2),
    is_padded=st.booleans(),
    ceil_mode=st.booleans(),
    stride=st.sampled_from([1, 2]),
)
def test_max_poolings_of_every_kind_are_dilated_exactly(
    size: tuple[int, int],
    kernel: tuple[int, int],
    is_padded: bool,
    ceil_mode: bool,
    stride: int,
) -> None:
    padding = tuple(side // 2 for side in kernel) if is_padded else 0
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(kernel, 2, padding, ceil_mode=ceil_mode),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.MaxPool2d(3, 1, 1, ceil_mode=ceil_mode),
    )
    assert_found_again(backbone, stride, own=4, images=torch.randn(1, 3, *size))


def test_weights_and_their_names_stay() -> None:
    net = create_model("torchvision/googlenet", 2, weights=None)
    slow = slowed(net.backbone, 4)
    assert list(slow.state_dict()) == list(net.backbone.state_dict())
    for found, expected in zip(slow.parameters(), net.backbone.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "stride", "hw"),
    [
        ("torchvision/resnet18", None, (7, 9)),
        ("torchvision/resnet18", 32, (7, 9)),
        ("torchvision/resnet18", 16, (14, 18)),
        ("torchvision/resnet18", 8, (28, 36)),
        ("torchvision/resnet18", 1, (224, 288)),
        ("torchvision/vgg16", 16, (14, 18)),
        ("timm/efficientnet_b0", 16, (14, 18)),
        ("camtrain/digits", 4, (56, 72)),
    ],
)
def test_create_model_reaches_the_stride(
    name: str, stride: int | None, hw: tuple[int, int]
) -> None:
    with torch.device("meta"):
        net = create_model(name, 5, weights=None, stride=stride)
        assert net.class_maps(torch.empty(1, 3, 224, 288)).maps.shape == (1, 5, *hw)


class Shared(nn.Module):
    """One pooling layer that runs twice, at different strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.fc(self.pool(F.relu(self.pool(self.conv(images)))).mean((2, 3)))


class PooledByFunction(nn.Module):
    """Steps inside a function, which has no stride to take away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.fc(F.max_pool2d(self.conv(images), 2).mean((2, 3)))


def mirrored() -> nn.Module:
    convs = (nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect") for _ in range(1))
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


IMPOSSIBLE: list[tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = [
    (
        torchvision.models.resnet18,
        64,
        ("one of 1, 2, 4, 8, 16, 32 (the backbone's own is 32)", "64"),
    ),
    (torchvision.models.resnet18, 12, ("got 12",)),
    (torchvision.models.resnet18, 0, ("got 0",)),
    (lambda: timm.create_model("levit_128s"), 8, ("images of one size", "camtrain models")),
    (lambda: timm.create_model("swin_s3_tiny_224"), 8, ("images of one size",)),
    (torchvision.models.swin_t, 16, ("steps inside an operation", "choose stride 32")),
    (Shared, 1, ("trunk.pool (MaxPool2d) is used more than once",)),
    (PooledByFunction, 1, ("inside an operation that is not a layer, so 2 is what remains",)),
    (mirrored, 1, ("trunk.0 (Conv2d) can neither lose its stride nor be dilated",)),
]


@pytest.mark.parametrize(("make", "stride", "messages"), IMPOSSIBLE)
def test_what_cannot_be_had_is_said(
    make: Callable[..., Any], stride: int, messages: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        classifier = make()
    with pytest.raises(CamtrainValueError) as error:
        convert(classifier, stride=stride)
    assert "stride" in str(error.value)
    for message in messages:
        assert message in str(error.value)
