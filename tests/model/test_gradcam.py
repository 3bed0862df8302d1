"""Grad-CAM: the law on CAM networks, exact values by hand, derivatives, and no trace left."""

import copy
import doctest
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camtrain
from camtrain.errors import CamtrainError, CamtrainTypeError, CamtrainValueError
from camtrain.model import gradcam as gradcam_module
from camtrain.model.gradcam import gradcam
from tests.conftest import at_night

Enliven = Callable[[nn.Module], nn.Module]


def classifier(*, inplace: bool = True) -> nn.Sequential:
    """Two convolutions, BatchNorm and a nonlinear head, so that gradients differ by place."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(8, 4, 1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return classifier()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([[4, 0, 4], [1, 2, 3]])


def test_the_example_prints_what_it_says() -> None:
    failed, attempted = doctest.testmod(gradcam_module)
    assert attempted > 0
    assert failed == 0


# Networks with the layer whose output is the features: neck, a trunk's last layer, or the trunk.
NETWORKS = {
    "digits": ("camtrain/digits", (), "backbone.trunk.relu4"),
    "digits, identity neck": ("camtrain/digits", (), "neck"),
    "digits with neck": ("camtrain/digits", (16,), "neck.relu1"),
    "resnet18": ("torchvision/resnet18", (), "backbone"),
    "timm resnet18": ("timm/resnet18", (), "backbone.trunk.layer4.1"),
    "squeezenet": ("torchvision/squeezenet1_1", (), "backbone"),
    "densenet121": ("torchvision/densenet121", (), "backbone"),
    "vgg16": ("torchvision/vgg16", (8,), "neck"),
}


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("case", at_night(NETWORKS, "densenet121", "vgg16"))
def test_on_a_cam_network_it_is_the_positive_class_map_over_its_area(
    case: str, elementwise: bool, enliven: Enliven
) -> None:
    name, neck, layer = NETWORKS[case]
    torch.manual_seed(0)
    net = camtrain.create_model(name, 6, weights=None, neck=neck)
    enliven(net)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        maps = net.class_maps(images).maps
    expected = maps.relu() / maps[0, 0].numel()
    every = torch.arange(6).expand(2, 6)
    found = gradcam(net, images, layer=layer, classes=every, elementwise=elementwise)
    assert found.shape == maps.shape
    assert found.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.max().item())


def test_an_unconverted_classifier_gives_what_its_conversion_does(enliven: Enliven) -> None:
    resnet = enliven(torchvision.models.resnet18(num_classes=6))
    images, classes = torch.randn(2, 3, 64, 96), torch.tensor([5, 0])
    maps = camtrain.convert(resnet).class_maps(images, classes=classes).maps.detach()
    found = gradcam(resnet, images, layer=resnet.layer4, classes=classes)
    expected = maps.relu() / 6  # 2 x 3 pixels
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.max().item())


def test_by_hand() -> None:
    """One channel is averaged, the other has a weight per place, so the gradients are known."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 3.0, -1.0]]))
    image = torch.tensor([[[[2.0, -4.0]]]])  # A = [2, -4] and [-2, 4]; mean gradients 1 and 1
    classes = torch.tensor([0])
    assert gradcam(model, image, layer="0", classes=classes).tolist() == [[[[0.0, 0.0]]]]
    # Element-wise: 1 x 2 + 3 x -2 and 1 x -4 + -1 x 4; both negative. Of -image: 4 and 8.
    found = gradcam(model, -image, layer="0", classes=classes, elementwise=True)
    assert found.tolist() == [[[[4.0, 8.0]]]]


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("place", [0, 4, 6])
def test_it_agrees_with_finite_differences(
    place: int, elementwise: bool, model: nn.Sequential, images: Tensor
) -> None:
    """In float64, at layers with an in-place change right after them, too."""
    model, images = classifier(inplace=True).double().eval(), images.double()
    layer, rest = model[place], classifier(inplace=False).double().eval()
    rest.load_state_dict(model.state_dict())
    with torch.no_grad():
        activations = rest[: place + 1](images)
        step = 1e-6
        gradients = torch.zeros(2, 3, *activations.shape[1:], dtype=torch.float64)
        for where in torch.cartesian_prod(*map(torch.arange, activations.shape[1:])).tolist():
            ends = []
            for sign in (1, -1):
                moved = activations.clone()
                moved[:, *where] += sign * step
                ends.append(rest[place + 1 :](moved).gather(1, CLASSES))
            gradients[:, :, *where] = (ends[0] - ends[1]) / (2 * step)
    weights = gradients if elementwise else gradients.mean((-2, -1), keepdim=True)
    expected = (weights * activations[:, None]).sum(2).relu()
    found = gradcam(model, images, layer=layer, classes=CLASSES, elementwise=elementwise)
    assert found.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_a_picture_does_not_depend_on_its_neighbours(model: nn.Sequential, images: Tensor) -> None:
    whole = gradcam(model, images, layer="4", classes=CLASSES)
    for index in range(2):
        one = slice(index, index + 1)
        alone = gradcam(model, images[one], layer="4", classes=CLASSES[one])
        torch.testing.assert_close(alone, whole[one])


def test_one_class_per_picture_is_a_column(model: nn.Sequential, images: Tensor) -> None:
    found = gradcam(model, images, layer="4", classes=CLASSES[:, 0])
    assert found.shape == (2, 1, 4, 6)
    assert torch.equal(found, gradcam(model, images, layer="4", classes=CLASSES)[:, :1])
    assert not gradcam(model, images, layer="4", classes=CLASSES[:, :0]).numel()


def test_a_layer_is_its_name(model: nn.Sequential, images: Tensor) -> None:
    found = gradcam(model, images, layer=model[4], classes=CLASSES)
    assert torch.equal(found, gradcam(model, images, layer="4", classes=CLASSES))


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.parametrize(
    "context",
    [nullcontext, torch.no_grad, torch.inference_mode, autocast],
    ids=["plain", "no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_surroundings_change_nothing(
    context: Callable[[], AbstractContextManager[None]],
    is_frozen: bool,
    model: nn.Sequential,
    images: Tensor,
) -> None:
    expected = gradcam(model, images, layer="4", classes=CLASSES)
    model.requires_grad_(not is_frozen)
    with context():
        found = gradcam(model, images.clone(), layer="4", classes=CLASSES)
        assert torch.is_grad_enabled() == (context in (nullcontext, autocast))
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_a_network_made_in_inference_mode_works(images: Tensor) -> None:
    with torch.inference_mode():
        torch.manual_seed(0)
        model = classifier()
    torch.manual_seed(0)
    expected = gradcam(classifier(), images, layer="0", classes=CLASSES)
    assert torch.equal(gradcam(model, images, layer="0", classes=CLASSES), expected)


def test_a_half_precision_network_computes_in_float32(model: nn.Sequential, images: Tensor) -> None:
    half, images = model.bfloat16(), images.bfloat16()
    expected = gradcam(copy.deepcopy(half).float(), images.float(), layer="4", classes=CLASSES)
    found = gradcam(half, images, layer="4", classes=CLASSES)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert half[0].weight.dtype == torch.bfloat16


def state_of(model: nn.Module) -> list[object]:
    return [
        [(module.training, len(module._forward_hooks)) for module in model.modules()],
        [(id(p), p.requires_grad, p.grad, p._version) for p in model.parameters()],
        [(id(b), b._version, b.tolist()) for b in model.buffers()],
    ]


@pytest.mark.parametrize("layer", ["4", "11", "nowhere"])
def test_nothing_is_left_behind_even_after_an_error(
    layer: str, model: nn.Sequential, images: Tensor
) -> None:
    model.train()
    model[1].eval()
    model[0].requires_grad_(False)
    before, kept = state_of(model), images.clone()
    with nullcontext() if layer == "4" else pytest.raises(CamtrainError):
        gradcam(model, images, layer=layer, classes=CLASSES)
    assert state_of(model) == before
    assert torch.equal(images, kept)
    assert not images.requires_grad


class Odd(nn.Module):
    """What a forward pass may do to make Grad-CAM impossible."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.twice = nn.ReLU()
        self.unused = nn.Conv2d(3, 3, 1)
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.aside = nn.Conv2d(3, 3, 1)
        self.detached = nn.Conv2d(3, 3, 1)
        self.pair = Pair()
        self.fc = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = self.twice(self.twice(self.conv(images)))
        features = self.block[0](features) + self.detached(features).detach()
        self.aside(features)
        return self.fc(self.pair(features)[0].mean((2, 3)))


class Pair(nn.Module):
    """A layer with two results."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The same thing twice."""
        return features, features


def call(layer: str | nn.Module, **changes: Any) -> Tensor:
    fitting = {"model": Odd(), "images": torch.randn(2, 3, 8, 12), "classes": torch.zeros(2).int()}
    arguments = fitting | changes
    model, images = arguments.pop("model"), arguments.pop("images")
    return gradcam(model, images, layer=layer, **arguments)


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        ("convv", {}, "layer must name a module of Odd, got 'convv'; near it are conv"),
        ("xyz", {}, "near it are block.0, aside, detached"),
        ("", {}, "layer must give a feature map (B, C, h, w), '' gives (2, 5)"),
        (nn.Conv2d(3, 3, 1), {}, "got a Conv2d that is not inside"),
        ("twice", {}, "layer 'twice' runs more than once"),
        ("unused", {}, "layer 'unused' is not reached by the forward pass of Odd"),
        ("block", {}, "choose another; layers near it are block.0"),
        ("fc", {}, "layer must give a feature map (B, C, h, w), 'fc' gives (2, 5)"),
        ("pair", {}, "'pair' gives tuple"),
        ("aside", {}, "layer 'aside' does not influence the logits"),
        ("detached", {}, "layer 'detached' does not influence the logits"),
        ("conv", {"images": torch.randn(2, 1, 8, 12)}, "cannot classify images of the shape (2, 1"),
        ("conv", {"images": torch.randn(3, 8, 12)}, "(B, in_chans, H, W), got (3, 8, 12)"),
        ("conv", {"classes": torch.tensor([0, 5])}, "classes must lie in 0..4, got 0..5"),
        ("conv", {"classes": torch.tensor([-1, 0])}, "classes must lie in 0..4, got -1..0"),
        ("conv", {"classes": torch.tensor([0])}, "with B = 2, got (1,)"),
        ("0", {"model": nn.Sequential(nn.Conv2d(3, 5, 1))}, "must give logits (B, K), Sequential"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(
    layer: str | nn.Module, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CamtrainValueError) as error:
        call(layer, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        (3, {}, "layer must be the name of a module or the module itself, got int"),
        ("conv", {"model": F.relu}, "model must be a torch.nn.Module, got function"),
        ("conv", {"images": "cat.jpg"}, "images must be a tensor of normalized floats, got str"),
        ("conv", {"images": torch.zeros(2, 3, 8, 8).byte()}, "floats, got torch.uint8"),
        ("conv", {"classes": torch.zeros(2)}, "classes must be a tensor of integers, got"),
        ("conv", {"classes": [0, 1]}, "classes must be a tensor of integers, got list"),
    ],
)
def test_wrong_types_are_named(
    layer: str | nn.Module, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CamtrainTypeError) as error:
        call(layer, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_networks_that_cannot_do_cam_can_do_gradcam(name: str) -> None:
    """MobileNetV3 has layers after its pool; a ViT has one map, its patch embedding's."""
    model = timm.create_model(name, num_classes=5)
    layer = "blocks.5" if "mobile" in name else "patch_embed.proj"
    found = gradcam(model, torch.randn(2, 3, 224, 224), layer=layer, classes=torch.tensor([1, 4]))
    assert found.shape == (2, 1, *((7, 7) if "mobile" in name else (14, 14)))
    assert found.isfinite().all()
