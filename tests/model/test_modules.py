"""Networks of the user: all kinds convert with every law, or are refused in one sentence."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camtrain
from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.model.modules import import_path_of
from tests.model.nets import (
    NETWORKS,
    REFUSED,
    AlexNetLike,
    Branching,
    LeNet,
    ResNetLike,
    ResNetWithTwoLayers,
    lazy,
)

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def pictures(net: Any) -> Tensor:  # noqa: ANN401
    return IMAGES[:, : net.recipe["in_chans"]]


def first_weight(net: Any) -> Tensor:  # noqa: ANN401
    return net.backbone.trunk.get_parameter("features.0.weight")


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_converts_with_law_1(name: str) -> None:
    build, cut, channels = NETWORKS[name]
    torch.manual_seed(0)
    network = build()
    before, modes = state_of(network), [module.training for module in network.modules()]
    net = camtrain.create_model(network, 3, neck=(7,)).eval()
    assert (net.backbone.cut, net.neck[0].in_channels) == (cut, channels)
    with torch.inference_mode():
        output = net.class_maps(pictures(net))
    h, w = output.maps.shape[2:]
    assert h < w
    assert output.logits.abs().sum() > 0
    pooled = output.maps.mean((2, 3)) + net.head.bias
    torch.testing.assert_close(pooled, output.logits, rtol=1e-5, atol=1e-6)
    # The module is left as it was, and its weights are kept.
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())
    plain = {n.removeprefix("module.").removeprefix("_orig_mod."): t for n, t in before.items()}
    weights = net.backbone.trunk.state_dict()
    assert all(torch.equal(tensor, plain[n].to(tensor.dtype)) for n, tensor in weights.items())
    # A gradient reaches the first layer.
    net.train()(pictures(net)).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in net.backbone.parameters())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_in_one_sentence(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(CamtrainError) as error:
        camtrain.create_model(build(), 3)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantized_network_is_refused() -> None:
    network = torch.ao.quantization.quantize_dynamic(AlexNetLike(), {nn.Linear})
    with pytest.raises(CamtrainValueError, match=r"is quantized, so .* give the network that was"):
        camtrain.create_model(network, 3)


def test_the_trunk_gives_what_the_network_computes_before_its_head() -> None:
    network = AlexNetLike().eval()
    net = camtrain.create_model(network, 3, neck=()).eval()
    with torch.inference_mode():
        expected = network.features[:5](IMAGES)
        assert torch.equal(net.backbone(IMAGES), expected)
    assert not hasattr(net.backbone.trunk, "classifier")


def test_a_network_that_branches_on_values_is_cut_at_a_submodule() -> None:
    network = Branching().eval()
    net = camtrain.create_model(network, 3, cut="body", neck=()).eval()
    with torch.inference_mode():
        for images in (IMAGES, 255 * IMAGES):
            expected = network.body(network.stem(IMAGES))
            torch.testing.assert_close(net.backbone(images), expected)
    assert not any(name.startswith("backbone.trunk.fc") for name in net.state_dict())
    assert torch.equal(copy.deepcopy(net)(IMAGES), net(IMAGES))


def test_cut_stride_pool_dropout_and_task_mean_what_they_mean_for_names() -> None:
    network = AlexNetLike()
    net = camtrain.create_model(
        network, 3, cut="features.1", neck=(4,), neck_norm="batch", pool="lse", dropout=0.2,
        task="multilabel",
    ).eval()  # fmt: skip
    output = net.class_maps(IMAGES)
    assert output.maps.shape == (2, 3, 16, 24)
    assert (net.task, net.dropout.p) == ("multilabel", 0.2)
    larger = camtrain.create_model(ResNetLike(), 3, stride=2, neck=()).eval()
    assert larger.class_maps(IMAGES).maps.shape[2:] == (32, 48)
    refined = camtrain.create_model(ResNetLike(), 3, neck=()).set_refine("affinity")
    assert refined.refined_maps(IMAGES).refined_maps.shape == (2, 3, 16, 24)
    with pytest.raises(CamtrainValueError, match=r"a layer of AlexNetLike, got 'feature.3'. Did"):
        camtrain.create_model(network, 3, cut="feature.3")


def test_a_cam_ready_module_keeps_its_head_and_its_logits() -> None:
    network = ResNetLike().eval()
    net = camtrain.create_model(network, neck=()).eval()
    with torch.inference_mode():
        torch.testing.assert_close(net(IMAGES), network(IMAGES))
        torch.testing.assert_close(camtrain.convert(network)(IMAGES), network(IMAGES))


def test_other_channels_are_fitted_by_timms_rule() -> None:
    network = AlexNetLike()
    net = camtrain.create_model(network, 3, in_chans=1, neck=()).eval()
    weight = network.features[0].weight
    assert torch.allclose(first_weight(net), weight.sum(1, keepdim=True))
    assert net(IMAGES[:, :1]).shape == (2, 3)


def test_weights_none_draws_new_ones_and_a_file_is_loaded(tmp_path: Any) -> None:  # noqa: ANN401
    network, other = AlexNetLike(), AlexNetLike()
    net = camtrain.create_model(network, 3, weights=None, neck=())
    assert not torch.equal(first_weight(net), network.features[0].weight)
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    net = camtrain.create_model(network, weights=tmp_path / "weights.pt", neck=())
    assert torch.equal(first_weight(net), other.features[0].weight)
    assert net.head.out_features == 5
    torch.save(ResNetLike().state_dict(), tmp_path / "wrong.pt")
    with pytest.raises(CamtrainValueError, match="holds weights of another architecture"):
        camtrain.create_model(network, 3, weights=tmp_path / "wrong.pt")


def test_a_class_and_an_import_path_build_with_backbone_args() -> None:
    path = import_path_of(LeNet)
    assert path == "tests.model.nets.LeNet"
    assert camtrain.create_model(lazy, 3, neck=()).head.in_features == 8
    for backbone in (LeNet, path):
        net = camtrain.create_model(backbone, 3, backbone_args={"width": 4}, neck=())
        assert (net.head.in_features, net.recipe["in_chans"]) == (8, 1)
        assert (net.recipe["backbone"], net.recipe["backbone_args"]) == (path, {"width": 4})


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("tests.model.nets.LeNett", "tests.model.nets has no LeNett; the nearest is LeNet."),
        ("tests.model.netz.LeNet", "tests.model has no netz; the nearest is nets."),
        ("torchvison.models.alexnet", "There is no module torchvison; the nearest is torchvision."),
        ("tests.model.nets.NETWORKS", "NETWORKS is a dict"),
        (3, "backbone must be the name of a network, a torch.nn.Module, or a class"),
        (dict, "backbone must build a torch.nn.Module, builtins.dict gives a dict"),
    ],
)
def test_a_wrong_backbone_says_what_is_missing_and_what_is_near(
    backbone: Any,  # noqa: ANN401
    message: str,
) -> None:
    with pytest.raises(CamtrainError) as error:
        camtrain.create_model(backbone, 3)
    assert message in str(error.value)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(CamtrainValueError, match=r"backbone_args do not fit .*unexpected keyword"):
        camtrain.create_model(LeNet, 3, backbone_args={"depth": 4})
    with pytest.raises(CamtrainValueError, match="must be empty for a module, which is built"):
        camtrain.create_model(LeNet(), 3, backbone_args={"width": 4})
    net = camtrain.create_model(LeNet(), 3)
    assert camtrain.create_model(net, 3) is net
    with pytest.raises(CamtrainValueError, match="num_classes=4 comes too late for a CAM network"):
        camtrain.create_model(net, 4)


def test_convert_names_the_call_that_works() -> None:
    classifier = ResNetWithTwoLayers()
    with pytest.raises(CamtrainValueError) as error:
        camtrain.convert(classifier)
    assert str(error.value).endswith("use camtrain.create_model(classifier, num_classes=...).")
