"""A converted network works unchanged in torch-cam and in pytorch-grad-cam."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

import camtrain
from camtrain import CAMNet
from camtrain.model.trunk import TimmBackbone
from tests.conftest import everyday
from tests.model.nets import AlexNetLike

SIZE_HW = (96, 128)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(1, 3, *SIZE_HW, generator=torch.Generator().manual_seed(0))


def converted() -> CAMNet:
    """A cam-ready network that keeps its head."""
    torch.manual_seed(0)
    return camtrain.convert(torchvision.models.resnet18(num_classes=7).eval())


def with_neck() -> CAMNet:
    """The paper's conversion: a cut, a new convolution, a new head."""
    torch.manual_seed(0)
    net = camtrain.create_model("torchvision/squeezenet1_1", 7, weights=None, neck=(32,))
    return net.eval()


@pytest.mark.parametrize("make", [converted, with_neck])
def test_the_raw_map_of_torch_cam_is_ours(make: Callable[[], CAMNet], images: Tensor) -> None:
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    net = make()
    target = "backbone" if make is converted else "neck"
    expected = net.class_maps(images, classes=torch.tensor([[4, 2]])).maps.detach()
    with methods.CAM(net, target_layer=target, fc_layer="head") as extractor:
        logits = net(images)
        for place, number in enumerate((4, 2)):
            [found] = extractor(number, logits, normalized=False)
            torch.testing.assert_close(found[0], expected[0, place], rtol=1e-5, atol=1e-6)
    assert found.shape[-2] != found.shape[-1]
    # What it normalizes is what `camtrain.heatmaps` normalizes, at the size of the map.
    with methods.CAM(net, target_layer=target, fc_layer="head") as extractor:
        [found] = extractor(4, net(images))
    heat = camtrain.heatmaps(expected, size=(found.shape[-2], found.shape[-1]))
    torch.testing.assert_close(found[0], heat[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [converted, with_neck])
def test_grad_cam_of_pytorch_grad_cam_is_our_map_without_its_negative_part(
    make: Callable[[], CAMNet], images: Tensor
) -> None:
    """Of a linear head on an average, Grad-CAM is CAM divided by the pixels of the map."""
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    net = make()
    layer = net.backbone if make is converted else net.neck
    maps = net.class_maps(images, classes=torch.tensor([[4, 2]])).maps.detach()
    with library.GradCAM(model=net, target_layers=[layer]) as extractor:
        for place, number in enumerate((4, 2)):
            found = extractor(images, [targets.ClassifierOutputTarget(number)], aug_smooth=False)
            assert found.shape == (1, *SIZE_HW)
            # As it does: negative values cut off, min-max at the size of the map, then upsampled.
            positive = maps[:, place : place + 1].clamp_min(0)
            positive = positive - positive.amin()
            positive = positive / (1e-7 + positive.amax())
            expected = torch.nn.functional.interpolate(positive, size=SIZE_HW, mode="bilinear")
            assert (
                torch.corrcoef(
                    torch.stack((torch.from_numpy(found).flatten(), expected.flatten()))
                )[0, 1]
                > 0.999
            )
            assert abs(torch.from_numpy(found) - expected[0]).max() < 0.02


def test_both_leave_the_network_as_it_was(images: Tensor) -> None:
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    net = converted()
    before = net(images).detach()
    with methods.CAM(net, target_layer="backbone", fc_layer="head") as extractor:
        extractor(0, net(images))
    assert torch.equal(net(images).detach(), before)
    assert not any(module._forward_hooks for module in net.modules())


FAMILIES: dict[str, Callable[[], CAMNet]] = {
    "torchvision": lambda: camtrain.create_model("torchvision/squeezenet1_1", 4, weights=None),
    "timm": lambda: camtrain.create_model("timm/test_resnet", 4, weights=None),
    "timm, channels last": lambda: camtrain.create_model("timm/test_convnext", 4, weights=None),
    "camtrain": lambda: camtrain.create_model("camtrain/digits", 4, backbone_args={"width": 4}),
    "own": lambda: camtrain.create_model(AlexNetLike(), 4, neck=(8,)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> CAMNet:
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


TORCH_CAM = ("CAM", "GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM", "ScoreCAM")
WITH_OPTIONS = {"SSCAM": {"num_samples": 1}, "ISCAM": {"num_samples": 1}}


@pytest.mark.parametrize("method", everyday([*TORCH_CAM, *WITH_OPTIONS], "CAM", "GradCAM"))
@pytest.mark.parametrize("layer", [None, "backbone.trunk", "backbone"])
def test_every_method_of_torch_cam_runs(
    family: CAMNet, method: str, layer: str | None, images: Tensor
) -> None:
    """Also with hooks on all layers, by which it finds the last map itself (None)."""
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    if layer == "backbone.trunk" and hasattr(family.backbone, "trunk"):
        is_timm = isinstance(family.backbone, TimmBackbone)
        layer = "backbone" if is_timm else layer  # timm's `forward_features` is a method
    options = {**WITH_OPTIONS.get(method, {}), **({"fc_layer": "head"} if method == "CAM" else {})}
    if method == "CAM":
        layer = "neck"  # the map that the head reads
    shape = {"input_shape": (3, *SIZE_HW)}
    with getattr(methods, method)(family, target_layer=layer, **shape, **options) as extractor:
        pictures = images.clone().requires_grad_()
        [found] = extractor(2, family(pictures))
    h, w = found.shape[-2:]
    assert h < w
    assert found.isfinite().all()


GRAD_CAM = (
    *("GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "EigenCAM"),
    *("EigenGradCAM", "LayerCAM", "RandomCAM", "ScoreCAM", "AblationCAM", "ShapleyCAM", "FEM"),
)


@pytest.mark.parametrize("method", everyday(GRAD_CAM, "GradCAM", "EigenCAM"))
def test_every_method_of_pytorch_grad_cam_runs(family: CAMNet, method: str, images: Tensor) -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    with getattr(library, method)(model=family, target_layers=[family.neck]) as extractor:
        extractor.batch_size = 64
        found = extractor(images, [targets.ClassifierOutputTarget(2)])
    assert found.shape == (1, *SIZE_HW)
    assert np.isfinite(found).all()
