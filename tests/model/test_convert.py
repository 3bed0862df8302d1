"""Law 2: a classifier that is cam-ready keeps its logits, and is left as it was."""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain.errors import CamtrainError, CamtrainTypeError, CamtrainValueError
from camtrain.model.backbones import build_classifier, every_name
from camtrain.model.catalogue import Entry
from camtrain.model.convert import NotCamReadyError, PooledNorm, convert
from camtrain.model.create import create_model
from camtrain.model.readout import NormKind
from camtrain.preprocessing import Preprocessing
from tests.conftest import at_night

Enliven = Callable[[nn.Module], nn.Module]


class Functional(nn.Module):
    """A classifier whose pooling is whatever function it is given."""

    def __init__(
        self,
        pool: Callable[[Tensor], Tensor],
        *,
        bias: bool = True,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.Identity() if norm is None else norm
        self.fc = nn.Linear(8, 5, bias=bias)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = F.dropout(F.relu(self.conv(images)), 0.5, self.training)
        return self.fc(self.norm(self.pool(features)))


class GlobalAverage(nn.Module):
    """A pooling layer as people write it."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C)."""
        return features.view(features.size(0), features.size(1), -1).mean(dim=2)


class Flattening(Functional):
    """Asks the images for the size of the batch."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        batch = images.shape[0]
        return self.fc(self.pool(F.relu(self.conv(images))).view(batch, -1))


class Reordered(Functional):
    """Its classes are reordered by a buffer of indices."""

    def __init__(self) -> None:
        super().__init__(lambda x: x.mean((2, 3)))
        self.register_buffer("order", torch.tensor([4, 2, 0, 1, 3]))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward(images)[:, self.order]


def weight_normed(classifier: Functional) -> nn.Module:
    nn.utils.parametrizations.weight_norm(classifier.fc)
    with torch.no_grad():
        classifier(torch.zeros(1, 3, 8, 8))
    return classifier


class Shortcut(nn.Module):
    """An empty nn.Sequential for the identity, as in many ResNets, and a head in another one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.shortcut = nn.Sequential()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = F.relu(self.conv(images))
        return self.head(features + self.shortcut(features))


class Branching(nn.Module):
    """Its forward pass depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.conv(images if images.mean() > 0 else -images)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 5),
    )


def torchvision_model(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, **arguments)


def timm_model(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **arguments)


CAM_READY = {
    "resnet18": torchvision_model("resnet18"),
    "densenet121": torchvision_model("densenet121"),
    "googlenet": torchvision_model("googlenet", init_weights=False, transform_input=True),
    "squeezenet1_1": torchvision_model("squeezenet1_1"),
    "mobilenet_v2": torchvision_model("mobilenet_v2"),
    "timm/resnet18": timm_model("resnet18"),
    "timm/mobilenetv2_100": timm_model("mobilenetv2_100", pad_type="same"),
    "timm/efficientnet_b0": timm_model("efficientnet_b0"),
    "timm/test_resnet": timm_model("test_resnet"),
    "convnext_tiny": torchvision_model("convnext_tiny"),  # LayerNorm between pool and linear
    "swin_t": torchvision_model("swin_t"),  # channels last
    "timm/convnext_atto": timm_model("convnext_atto"),
    "timm/convnext_atto_rms": timm_model("convnext_atto_rms"),
    "timm/dla34": timm_model("dla34"),  # a 1x1 convolution after the pooling
    "timm/test_convnext2": timm_model("test_convnext2"),
    "timm/levit_128s": timm_model("levit_128s"),  # BatchNorm, and two heads whose mean counts
    "timm/tresnet_m": timm_model("tresnet_m"),  # pixels are rearranged before the first layer
    "nn.Sequential": sequential,
    "empty shortcut": Shortcut,
    "mean": lambda: Functional(lambda x: x.mean((2, 3))),
    "mean, no bias": lambda: Functional(lambda x: x.mean([-2, -1]), bias=False),
    "mean by keywords": lambda: Functional(lambda x: torch.mean(input=x, dim=(2, 3))),
    "mean with its axes": lambda: Functional(lambda x: x.mean((2, 3), keepdim=True).flatten(1)),
    "mean, columns first": lambda: Functional(lambda x: x.mean(3).mean(2)),
    "mean of flat pixels": lambda: Functional(lambda x: x.flatten(2).mean(-1)),
    "batch size of the images": Flattening,
    "float": lambda: Functional(lambda x: x.float().mean((2, 3)).float()),
    "layer norm without gain": lambda: Functional(
        lambda x: x.mean((2, 3)), norm=nn.LayerNorm(8, elementwise_affine=False)
    ),
    "weight norm": lambda: weight_normed(Functional(lambda x: x.mean((2, 3)))),
    "classes in another order": Reordered,
    "channels last": lambda: Functional(lambda x: x.permute(0, 2, 3, 1).mean((1, 2))),
    "layer norm": lambda: Functional(lambda x: x.mean((2, 3)), norm=nn.LayerNorm(8)),
    "batch norm": lambda: Functional(lambda x: x.mean((2, 3)), norm=nn.BatchNorm1d(8)),
    "a module of its own": lambda: Functional(GlobalAverage()),
    "function": lambda: Functional(lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)),
    "function by keywords": lambda: Functional(
        lambda x: F.adaptive_avg_pool2d(x, output_size=(1, 1)).reshape(x.shape[0], x.shape[1])
    ),
}


LARGE = (
    *("densenet121", "googlenet", "convnext_tiny", "swin_t", "timm/dla34", "timm/tresnet_m"),
    *("timm/efficientnet_b0", "timm/mobilenetv2_100", "timm/resnet18", "timm/convnext_atto_rms"),
)


@pytest.fixture(scope="module", params=at_night(CAM_READY, *LARGE))
def classifier(request: pytest.FixtureRequest, enliven: Enliven) -> nn.Module:
    torch.manual_seed(0)
    return enliven(CAM_READY[request.param]())


def size_of(classifier: nn.Module) -> tuple[int, int]:
    """(H, W) of its images."""
    return (224, 224) if "Levit" in type(classifier).__name__ else (64, 96)


@torch.inference_mode()
def test_law_2_logits_stay_and_law_1_holds(classifier: nn.Module) -> None:
    images, net = torch.randn(2, 3, *size_of(classifier)), convert(classifier)
    logits, maps, _ = net.class_maps(images)
    expected = classifier(images) - net.head.bias  # which says nothing about the picture
    scale = maps.abs().max().item()
    assert expected.diff(dim=0).abs().max() > 1e-3 * scale
    torch.testing.assert_close(logits - net.head.bias, expected, atol=2e-6 * scale, rtol=0)
    assert maps.shape[2] < maps.shape[3] or images.shape[2] == images.shape[3]
    torch.testing.assert_close(maps.mean((-2, -1)), expected, atol=1e-5 * scale, rtol=0)


def test_the_classifier_is_left_as_it_was(classifier: nn.Module) -> None:
    classifier = copy.deepcopy(classifier).train()
    next(classifier.children()).eval()  # a part in another mode
    modes = [module.training for module in classifier.modules()]
    before = copy.deepcopy(classifier.state_dict())
    net = convert(classifier)
    assert net.training
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.zero_()
    after = classifier.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [module.training for module in classifier.modules()] == modes


def test_an_evaluated_classifier_gives_an_evaluating_network() -> None:
    assert not convert(sequential().eval()).training


def test_training_mode_trains_as_the_classifier_does(enliven: Enliven) -> None:
    """BatchNorm counts, functional dropout drops; both stop in evaluation."""
    classifier = torchvision.models.resnet18()
    enliven(classifier).train()
    net, images = convert(classifier), torch.randn(4, 3, 64, 96)
    torch.testing.assert_close(net(images), classifier(images))
    for name in ("bn1", "layer4.1.bn2"):
        found = net.backbone.get_submodule(f"trunk.{name}").running_mean
        torch.testing.assert_close(found, classifier.get_submodule(name).running_mean)


def test_functional_dropout_follows_the_mode_also_in_a_copy() -> None:
    net = copy.deepcopy(convert(Functional(lambda x: x.mean((2, 3)))))
    images = torch.randn(2, 3, 16, 24)
    assert not torch.equal(net.train()(images), net(images))
    assert torch.equal(net.eval()(images), net(images))
    assert not torch.equal(net.train()(images), net(images))


def test_without_a_bias_the_new_one_is_zero() -> None:
    net = convert(Functional(lambda x: x.mean((2, 3)), bias=False))
    assert net.head.bias.shape == (5,)
    assert not net.head.bias.any()


def test_a_convolutional_classifier_gets_the_identity_as_its_head() -> None:
    net = convert(torchvision.models.squeezenet1_1(num_classes=5))
    assert torch.equal(net.head.weight, torch.eye(5))
    assert not net.head.bias.any()
    assert net.class_maps(torch.randn(1, 3, 64, 96)).maps.min() >= 0  # its last layer is a ReLU


@pytest.mark.nightly
def test_googlenet_keeps_its_hidden_normalization_and_drops_its_auxiliary_heads(
    enliven: Enliven,
) -> None:
    classifier = enliven(CAM_READY["googlenet"]())
    net = convert(classifier)
    assert not [name for name in net.state_dict() if "aux" in name]
    plain = copy.deepcopy(classifier)
    plain.transform_input = False
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert not torch.allclose(convert(plain)(images), net(images), atol=1e-4)


def test_names_and_preprocessing_travel_with_the_network() -> None:
    how = Preprocessing(size=(64, 96), mean=(0.5,), std=(0.5,))
    net = convert(sequential(), class_names="abcde", preprocessing=how)
    assert net.class_names == ("a", "b", "c", "d", "e")
    assert net.preprocessing == how
    assert net.recipe is not None
    assert net.recipe["backbone"] == "torch.nn.modules.container.Sequential"


def headless() -> nn.Module:
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network


class Tempered(nn.Module):
    """Has what timm's networks have, and does more."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = timm.create_model(name)
        self.forward_features, self.forward_head = (
            self.network.forward_features,
            self.network.forward_head,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores."""
        return self.network(images).softmax(1)


def test_a_fixed_window_is_averaged_at_its_size_only() -> None:
    torch.manual_seed(0)
    classifier = Functional(lambda x: F.avg_pool2d(x, 7).flatten(1)).eval()
    net = convert(classifier)
    images = torch.randn(2, 3, 14, 14)
    torch.testing.assert_close(net(images), classifier(images))
    with pytest.raises(CamtrainValueError, match="averages a window of 7x7 pixels of the map, got"):
        net(torch.randn(2, 3, 16, 16))


def test_frozen_layers_stay_in_their_mode() -> None:
    classifier = torchvision.models.resnet18().train()
    classifier.bn1.eval()
    assert not convert(classifier).backbone.trunk.bn1.training


def test_torch_s_random_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    convert(torchvision.models.squeezenet1_1())
    classifier = sequential()
    torch.manual_seed(0)
    convert(classifier)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "coatnet_0_rw_224", "test_coatnet"])
def test_attention_trains(name: str) -> None:
    """Its dropout is asked for its probability, never called."""
    net = create_model(f"timm/{name}", 2, weights=None, neck=())
    side = net.preprocessing.size[0]
    assert net.train()(torch.randn(2, 3, side, side)).shape == (2, 2)


REFUSED = [
    (torchvision_model("vgg16"), "VGG is not cam-ready: its linear layer follows classifier.4"),
    (torchvision_model("alexnet"), "AlexNet is not cam-ready: its linear layer follows"),
    (torchvision_model("mobilenet_v3_small"), "its linear layer follows classifier.1"),
    (timm_model("convnext_large_mlp"), "ConvNeXt is not cam-ready: its linear layer follows head."),
    (timm_model("mobilenetv3_small_050"), '("timm/mobilenetv3_small_050", num_classes=...)'),
    (timm_model("cpubone_nano"), "CPUBone is not cam-ready"),  # a norm between two linear layers
    (timm_model("vit_tiny_patch16_224"), "its linear layer reads the class token"),
    (torchvision_model("vgg13", num_classes=7), 'create_model("torchvision/vgg13", num_cl'),
    (torchvision_model("vit_b_16"), "its linear layer reads the class token"),
    (Branching, "The forward pass of Branching cannot be read as a graph"),
    (
        lambda: nn.Sequential(sequential(), nn.Softmax(1)),
        "its last operation is 1, not a torch.nn.",
    ),
    (lambda: Functional(lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1)), "not a global average"),
    (lambda: nn.Linear(3, 5), "it has no convolution"),
    (lambda: Functional(lambda x: x.sum((2, 3))), "not a global average pooling"),
    (lambda: Functional(lambda x: x.sum((2, 3)) / 35), "not a global average pooling"),
    (lambda: headless(), "its last operation is"),
    (lambda: Tempered("resnet18"), "its last operation is"),
    (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        ),
        "its linear layer follows 1, not a global average",
    ),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_what_is_not_cam_ready_is_refused_with_the_reason_and_the_way_out(
    make: Callable[[], nn.Module], reason: str
) -> None:
    with torch.device("meta"):
        classifier = make()
    with pytest.raises(CamtrainValueError) as error:
        convert(classifier)
    assert reason in str(error.value)
    assert "camtrain.create_model" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("resnet18", {}), CamtrainTypeError, "must be a torch.nn.Module, got str; to build a"),
        (
            (sequential(), {"class_names": ["a"]}),
            CamtrainValueError,
            "each of the 5 classes, got 1",
        ),
        ((sequential(), {"stride": 3}), CamtrainValueError, "stride must be one of 1, 2 (the"),
        ((sequential(), {"stride": 4}), CamtrainValueError, "backbone's own is 2), got 4"),
    ],
)
def test_bad_arguments_are_named(
    arguments: tuple[Any, dict[str, Any]], kind: type[CamtrainError], message: str
) -> None:
    classifier, options = arguments
    with pytest.raises(kind) as error:
        convert(classifier, **options)
    assert message in str(error.value)
    assert not isinstance(error.value, NotCamReadyError)


def family_of(name: str) -> str:
    library, model = name.split("/")
    builder = timm.model_entrypoint(model) if library == "timm" else None
    return f"{library}/{builder.__module__ if builder else model.rstrip('0123456789')}"


FAMILIES = defaultdict(list)
for _name in every_name():
    FAMILIES[family_of(_name)].append(_name)


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_law_2_holds_for_the_smallest_network_of_every_family(
    family: str, entry_of: Callable[[str], Entry], enliven: Enliven
) -> None:
    """Every head there is, on the pictures that it was made for."""
    entries = [entry_of(name) for name in FAMILIES[family]]
    ready = [entry for entry in entries if entry.is_cam_ready and entry.parameters < 30e6]
    if not ready:
        pytest.skip("no network of this family has both a head of ours and < 30 M parameters")
    entry = min(ready, key=lambda entry: entry.parameters)
    classifier = build_classifier(entry.name, num_classes=None, in_chans=3, backbone_args={})
    enliven(classifier)
    net, images = convert(classifier), torch.randn(1, 3, *entry.size_hw)
    logits, maps, _ = net.class_maps(images)
    scale = maps.abs().max().item()
    torch.testing.assert_close(logits, classifier(images), atol=1e-5 * scale, rtol=0)
    torch.testing.assert_close(
        maps.mean((-2, -1)) + net.head.bias, logits, atol=1e-5 * scale, rtol=0
    )


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("layer", nn.LayerNorm(6, eps=1e-3, elementwise_affine=False)),
        ("rms", nn.RMSNorm(6, eps=1e-3, elementwise_affine=False)),
    ],
)
def test_the_average_of_what_comes_out_is_the_norm_of_the_average(
    kind: NormKind, norm: nn.Module
) -> None:
    features = 3 * torch.randn(2, 6, 4, 5) + 1
    expected = norm(features.mean((-2, -1)))
    torch.testing.assert_close(PooledNorm(kind, 1e-3)(features).mean((-2, -1)), expected)


def test_the_norm_of_an_image_does_not_depend_on_another() -> None:
    features = torch.randn(2, 6, 4, 5)
    norm = PooledNorm("layer", 1e-6)
    torch.testing.assert_close(norm(features)[:1], norm(features[:1]))


def test_half_precision_is_normalized_in_float32() -> None:
    features = torch.full((1, 6, 4, 5), 300.0, dtype=torch.float16)
    features[:, 0] += 1
    with torch.autocast("cpu", torch.bfloat16):
        found = PooledNorm("layer", 1e-6)(features)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


class _Masked(Functional):
    """Has an argument that may be left out; before, its graph was that of a given one."""

    def __init__(self) -> None:
        super().__init__(lambda features: features.mean((2, 3)))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            images = images * mask.reshape(-1, 1, 1, 1)
        return super().forward(images)


def test_an_argument_that_may_be_left_out_keeps_its_default() -> None:
    network, images = _Masked().eval(), torch.randn(2, 3, 20, 28)
    net = convert(network)
    assert torch.allclose(net(images), network(images), atol=1e-6)
    assert type(network) is _Masked


def test_a_layer_without_a_shape_is_one_sentence() -> None:
    network = Functional(lambda features: features.mean((2, 3)))
    network.fc = nn.LazyLinear(5)
    with pytest.raises(CamtrainValueError, match="layer fc of Functional has no shape before"):
        convert(network)
