"""Laws 1, 4 and 5 for every network, and what `class_maps` returns, by hand."""

import copy
from collections.abc import Callable
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn

from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.maps import PoolName, heatmaps
from camtrain.model.camnet import CAMNet
from camtrain.model.create import create_model
from camtrain.model.refine import Refine
from tests.conftest import at_night

POOLS = [pool for pool in get_args(PoolName) if pool != "gmp"]
NETWORKS = {
    "torchvision/vgg16": {},
    "torchvision/alexnet": {},
    "torchvision/googlenet": {},
    "torchvision/resnet18": {},
    "torchvision/resnet50": {},
    "torchvision/squeezenet1_1": {},
    "torchvision/densenet121": {},
    "torchvision/mobilenet_v2": {},
    "timm/resnet18": {},
    "timm/mobilenetv2_100": {"pad_type": "same"},
    "timm/convnext_atto": {},
    "timm/efficientnet_b0": {},
    "camtrain/digits": {"width": 8},
}


class Case(NamedTuple):
    """A network with random weights, two pictures, and their features, made once."""

    net: CAMNet
    images: Tensor
    features: Tensor


LARGE = (
    *("torchvision/vgg16", "torchvision/resnet50", "torchvision/densenet121", "timm/vgg16"),
    *("torchvision/googlenet", "timm/efficientnet_b0", "timm/mobilenetv2_100"),
)


@pytest.fixture(scope="module", params=at_night(NETWORKS, *(n for n in LARGE if n in NETWORKS)))
def case(request: pytest.FixtureRequest, enliven: Callable[[nn.Module], nn.Module]) -> Case:
    torch.manual_seed(0)
    net = create_model(
        request.param,
        num_classes=7,
        weights=None,
        neck=(32,),
        backbone_args=NETWORKS[request.param],
    )
    enliven(net)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        features = net.features(images)
        # Maps of size one: random networks fade, and the bias alone would prove nothing.
        net.head.weight /= features.std() * net.head.weight.norm(dim=1).mean()
    return Case(net, images, features)


def pooled(maps: Tensor, pool: PoolName) -> Tensor:
    """The definitions of DESIGN.md, law 1, in float64."""
    maps = maps.double()
    if pool == "avg":
        return maps.mean((-2, -1))
    if pool == "max":
        return maps.flatten(2).max(dim=2).values
    return torch.log(torch.exp(4 * maps).mean((-2, -1))) / 4


def assert_law_1(net: CAMNet, logits: Tensor, maps: Tensor) -> None:
    expected = pooled(maps, net.pool) + net.head.bias.double()
    scale = maps.abs().max().item()
    torch.testing.assert_close(logits.double(), expected, atol=1e-5 * scale, rtol=0)
    assert logits.std(dim=1).min() > 0.01 * scale  # not the law of nothing


@pytest.mark.parametrize("pool", POOLS)
@torch.inference_mode()
def test_law_1_pooled_maps_and_bias_are_the_logits(case: Case, pool: PoolName) -> None:
    net, _, features = case
    net.pool = pool
    logits, maps, classes = net.maps_of(features)
    assert maps.shape == (2, 7, *features.shape[2:])
    assert classes.tolist() == [list(range(7))] * 2
    assert_law_1(net, logits, maps)
    assert torch.equal(net.classify(features), logits)


@pytest.mark.parametrize("pool", POOLS)
@torch.inference_mode()
def test_law_4_pool_head_and_maps_are_float32_under_autocast(case: Case, pool: PoolName) -> None:
    net, features = case.net, case.features.bfloat16()
    net.pool = pool
    with torch.autocast("cpu", torch.bfloat16):
        out = net.maps_of(features)
        top = net.maps_of(features, top=2)
    assert {t.dtype for t in (out.logits, out.maps, top.logits, top.maps)} == {torch.float32}
    assert_law_1(net, out.logits, out.maps)
    without = net.maps_of(features.float())
    assert torch.equal(out.logits, without.logits)
    assert torch.equal(out.maps, without.maps)


@torch.inference_mode()
def test_law_5_a_peak_of_the_features_stays_where_it_is(case: Case) -> None:
    net, height, width = case.net, *case.features.shape[2:]
    assert height < width  # like the pictures, 64 x 96
    planted = torch.zeros_like(case.features[:1])
    planted[..., 0, -1] = 1.0
    for maps in (net.maps_of(planted).maps, net.maps_of(planted, top=2).maps):
        rows, columns = maps.abs().sum((0, 1)).nonzero(as_tuple=True)
        assert (rows.tolist(), columns.tolist()) == ([0], [width - 1])
        heat = heatmaps(maps.abs(), size=(64, 96))[0, 0]
        rows, columns = (heat == 1).nonzero(as_tuple=True)
        assert rows.max() < 64 // height
        assert columns.min() >= 96 - 96 // width


@torch.inference_mode()
def test_top_classes_have_the_maps_they_have_among_all(case: Case) -> None:
    net, images, features = case
    net.pool = "avg"
    out = net.class_maps(images, top=3)
    every = net.maps_of(features)
    scale = every.maps.abs().max().item()
    for logits, chosen, maps, expected in zip(
        out.logits, out.classes, out.maps, every.maps, strict=True
    ):
        assert chosen.tolist() == logits.argsort(descending=True)[:3].tolist()
        torch.testing.assert_close(maps, expected[chosen], atol=1e-5 * scale, rtol=0)
    assert torch.equal(net(images), out.logits)


MAP_SIZES = [  # (C, h, w) of the backbone for pictures of 224 x 288
    ("torchvision/vgg16", (512, 14, 18)),
    ("torchvision/alexnet", (256, 13, 17)),
    ("torchvision/googlenet", (832, 14, 18)),
    ("torchvision/resnet18", (512, 7, 9)),
    ("torchvision/resnet50", (2048, 7, 9)),
    ("torchvision/squeezenet1_1", (512, 13, 17)),
    ("torchvision/densenet121", (1024, 7, 9)),
    ("torchvision/mobilenet_v2", (1280, 7, 9)),
    ("timm/resnet18", (512, 7, 9)),
    ("timm/vgg16", (512, 14, 18)),
    ("timm/mobilenetv2_100", (1280, 7, 9)),
    ("timm/convnext_atto", (320, 7, 9)),
    ("timm/efficientnet_b0", (1280, 7, 9)),
    ("camtrain/digits", (128, 56, 72)),
]


@pytest.mark.parametrize(
    ("name", "shape"),
    at_night(MAP_SIZES, *(case for case in MAP_SIZES if case[0] in LARGE)),
)
def test_the_cuts_are_those_of_the_paper(name: str, shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        net = create_model(name, num_classes=5, weights=None)
        out = net.class_maps(torch.empty(2, 3, 224, 288))
        assert net.backbone(torch.empty(2, 3, 224, 288)).shape == (2, *shape)
    assert out.maps.shape == (2, 5, *shape[1:])
    assert next(m for m in net.neck.modules() if isinstance(m, nn.Conv2d)).in_channels == shape[0]


@pytest.mark.parametrize(
    "name", at_night(["torchvision/resnet18", "camtrain/digits"], "torchvision/resnet18")
)
@torch.inference_mode()
def test_a_whole_forward_pass_under_autocast_ends_in_float32(name: str) -> None:
    net = create_model(name, num_classes=7, weights=None, neck=(16,)).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        assert net.features(images).dtype == torch.bfloat16
        assert net(images).dtype == torch.float32
        out = net.class_maps(images)
    expected = out.maps.mean((-2, -1)) + net.head.bias
    torch.testing.assert_close(out.logits, expected, atol=1e-6, rtol=0)


def tiny(pool: PoolName = "avg", *, dropout: float = 0.0) -> CAMNet:
    """Two channels that are the picture, three classes: the first, the second, their difference."""
    net = CAMNet(nn.Identity(), nn.Linear(2, 3), pool=pool, dropout=dropout)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
        net.head.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    return net.eval()


IMAGES = torch.tensor(
    [[[[0.0, 6.0, 0.0], [0, 0, 0]], [[0, 0, 0], [0, 0, 12.0]]], [[[3.0] * 3] * 2, [[1.0] * 3] * 2]]
)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("avg", [[1.5, 2.0, -2.0], [3.5, 1.0, 1.0]]),
        ("max", [[6.5, 12.0, 5.0], [3.5, 1.0, 1.0]]),
        # Pooled before the head, which is why law 1 does not hold: 6 - 12 - 1, not 6 - 1.
        ("gmp", [[6.5, 12.0, -7.0], [3.5, 1.0, 1.0]]),
    ],
)
def test_logits_by_hand(pool: PoolName, expected: list[list[float]]) -> None:
    net = tiny(pool)
    assert net(IMAGES).tolist() == expected
    assert net.class_maps(IMAGES).logits.tolist() == expected


def test_maps_by_hand_and_their_heatmap_peaks_on_the_right() -> None:
    out = tiny().class_maps(IMAGES[:1])
    assert out.maps[0].tolist() == [
        [[0.0, 6.0, 0.0], [0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 12.0]],
        [[0.0, 6.0, 0.0], [0.0, 0.0, -12.0]],
    ]
    heat = heatmaps(out.maps, size=(20, 60))
    assert heat.shape == (1, 3, 20, 60)
    rows, columns = (heat[0, 1] == 1).nonzero(as_tuple=True)
    assert rows.min() >= 15  # the lower right pixel of 2 x 3, at 10 x 20
    assert columns.min() >= 50


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_requested_classes_by_hand(dtype: torch.dtype) -> None:
    net = tiny()
    one = net.class_maps(IMAGES, classes=torch.tensor([1, 0], dtype=dtype))
    assert one.classes.tolist() == [[1], [0]]
    assert one.classes.dtype == torch.int64
    assert one.maps.amax((-2, -1)).tolist() == [[12.0], [3.0]]
    several = net.class_maps(IMAGES, classes=torch.tensor([[2, 0, 2], [0, 1, 2]], dtype=dtype))
    assert several.maps.amax((-2, -1)).tolist() == [[6.0, 6.0, 6.0], [3.0, 1.0, 2.0]]
    assert torch.equal(several.logits, net(IMAGES))


@pytest.mark.parametrize(
    ("top", "classes"),
    [(1, [[1], [0]]), (2, [[1, 0], [0, 1]]), (9, [[1, 0, 2], [0, 1, 2]])],
)
def test_top_is_best_first_and_at_most_all(top: int, classes: list[list[int]]) -> None:
    out = tiny().class_maps(IMAGES, top=top)
    assert out.classes[0].tolist() == classes[0]
    assert sorted(out.classes[1].tolist()) == classes[1]  # its second and third are equal
    assert out.maps.shape == (2, min(top, 3), 2, 3)


def test_an_empty_batch_has_empty_maps() -> None:
    net, none = tiny(), torch.zeros(0, 2, 2, 3)
    assert net.class_maps(none).maps.shape == (0, 3, 2, 3)
    assert net.class_maps(none, top=2).maps.shape == (0, 2, 2, 3)
    assert net.class_maps(none, classes=torch.zeros(0, dtype=torch.int64)).maps.shape == (
        0,
        1,
        2,
        3,
    )


@pytest.mark.parametrize("pool", [*POOLS, "gmp"])
def test_dropout_acts_in_training_only_and_never_on_the_maps(pool: PoolName) -> None:
    net, plain = tiny(pool, dropout=0.5), tiny(pool)
    assert torch.equal(net(IMAGES), plain(IMAGES))
    net.train()
    torch.manual_seed(0)
    logits = torch.stack([net(IMAGES) for _ in range(20)])
    assert logits.std(dim=0).max() > 0
    assert torch.equal(net.class_maps(IMAGES).maps, plain.class_maps(IMAGES).maps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_cast_as_a_whole_still_ends_in_float32(dtype: torch.dtype) -> None:
    net = create_model("camtrain/digits", 7, weights=None, neck=(16,)).eval().to(dtype)
    with torch.inference_mode():
        out = net.class_maps(torch.randn(2, 3, 32, 48, dtype=dtype))
    assert out.maps.dtype == out.logits.dtype == torch.float32
    expected = out.maps.mean((-2, -1)) + net.head.bias.float()
    torch.testing.assert_close(out.logits, expected, atol=1e-6, rtol=0)


def test_gradients_reach_every_parameter() -> None:
    net = create_model("camtrain/digits", 7, weights=None, neck=(16,), pool="lse")
    net(torch.randn(2, 3, 32, 48)).logsumexp(1).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_export_of_maps_keeps_the_batch_size_free() -> None:
    class Maps(nn.Module):
        def __init__(self, net: CAMNet) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.net.class_maps(images, top=2))

    net = tiny()
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(Maps(net), (IMAGES,), dynamic_shapes=(dynamic,))
    more = torch.randn(5, 2, 2, 3)
    for found, expected in zip(program.module()(more), net.class_maps(more, top=2), strict=True):
        assert torch.equal(found, expected)


def test_names_of_classes() -> None:
    net = CAMNet(nn.Identity(), nn.Linear(2, 3), class_names=["a", "b", "c"])
    assert net.class_names == ("a", "b", "c")
    assert copy.deepcopy(net).class_names == net.class_names
    with pytest.raises(CamtrainValueError, match="one name for each of the 3 classes, got 2"):
        net.name_classes(["a", "b"])


ONE = torch.tensor([0, 0])


@pytest.mark.parametrize(
    ("top", "classes", "kind", "message"),
    [
        (1, ONE, CamtrainValueError, "top and classes exclude each other"),
        (0, None, CamtrainValueError, "top must be at least 1, got 0"),
        (None, ONE[:1], CamtrainValueError, "(B,) or (B, k) with B = 2, got (1,)"),
        (None, ONE[:, None, None], CamtrainValueError, "(B,) or (B, k) with B = 2, got (2, 1, 1)"),
        (None, ONE + 3, CamtrainValueError, "classes must lie in 0..2, got 3..3"),
        (None, ONE - 1, CamtrainValueError, "classes must lie in 0..2, got -1..-1"),
        (None, ONE.float(), CamtrainTypeError, "tensor of integers, got torch.float32"),
        (None, ONE.bool(), CamtrainTypeError, "tensor of integers, got torch.bool"),
        (None, [0, 0], CamtrainTypeError, "tensor of integers, got list"),
    ],
)
def test_bad_requests_are_named(
    top: int | None, classes: Tensor | None, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        tiny().class_maps(IMAGES, top=top, classes=classes)
    assert message in str(error.value)


@pytest.mark.parametrize(("in_chans", "channels"), [(1, 3), (3, 1)])
def test_images_of_other_channels_are_refused_in_one_sentence(in_chans: int, channels: int) -> None:
    net = create_model("camtrain/digits", 2, in_chans=in_chans, backbone_args={"width": 2})
    message = rf"must be \(B, {in_chans}, H, W\), got \(2, {channels}, 32, 40\); give"
    with pytest.raises(CamtrainValueError, match=message):
        net(torch.zeros(2, channels, 32, 40))


def test_images_of_every_type_of_floats_give_the_same_logits() -> None:
    net = create_model("camtrain/digits", 2, neck=(), backbone_args={"width": 2}).eval()
    images = torch.rand(2, 3, 28, 28)
    expected = net(images)
    torch.testing.assert_close(net(images.double()), expected)
    torch.testing.assert_close(net(images.half()), expected, atol=1e-2, rtol=1e-2)
    with torch.inference_mode():
        unrecorded = images.clone()
    torch.testing.assert_close(net(unrecorded), expected)
    net.train()(unrecorded).sum().backward()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), r"got \(1, 3, 28, 28\) of torch.uint8"),
        (torch.zeros(3, 28, 28), r"got \(3, 28, 28\) of torch.float32"),
        ([0.5], r"got \[0.5\]; camtrain.Predictor takes pictures"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images: Tensor, message: str) -> None:
    net = create_model("camtrain/digits", 2, neck=(), backbone_args={"width": 2})
    with pytest.raises(CamtrainTypeError, match=message):
        net(images)


@pytest.mark.parametrize("refine", ["none", "affinity"])
def test_images_that_are_too_small_are_one_sentence(refine: Refine) -> None:
    net = create_model("camtrain/digits", 2, neck=(), backbone_args={"width": 2}).set_refine(refine)
    message = r"^images of 1x16 pixels are too small for this network \(.*\); set a larger size\.$"
    for run in (net.eval(), net.display_maps):
        with pytest.raises(CamtrainValueError, match=message):
            run(torch.zeros(1, 3, 1, 16))
