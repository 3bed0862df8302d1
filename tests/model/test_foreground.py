"""The foreground head: what it computes, and that it changes neither logits nor class maps."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import camtrain
from camtrain import CAMNet
from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.header import Description
from camtrain.inference.bundle import read_network, write_bundle
from camtrain.model.create import from_recipe
from camtrain.model.foreground import ForegroundHead, part_logits
from camtrain.model.refine import positive_maps, refine_maps
from camtrain.preprocessing import Preprocessing


def network(**changes: object) -> CAMNet:
    torch.manual_seed(0)
    settings = {"neck": (6,), "backbone_args": {"width": 4}, "weights": None, **changes}
    net = camtrain.create_model("camtrain/digits", 5, **settings)  # type: ignore[arg-type]
    net.preprocessing = Preprocessing((48, 40))
    with torch.no_grad():
        net(torch.rand(4, 3, 48, 40))  # BatchNorm's statistics
    return net.eval()


def trained(net: CAMNet) -> CAMNet:
    """The network after a step of its foreground head, with another weight."""
    assert net.foreground is not None
    with torch.no_grad():
        net.foreground.conv.weight.normal_(generator=torch.Generator().manual_seed(3))
        net.foreground.train()
        net.foreground_maps(torch.rand(4, 3, 48, 40))
    return net.eval()


IMAGES = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(1))


def test_it_is_a_convolution_a_norm_and_a_sigmoid() -> None:
    head = ForegroundHead([1, 1]).eval()
    with torch.no_grad():
        head.conv.weight.copy_(torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1))
        head.norm.running_mean.fill_(1.0)  # type: ignore[union-attr]
        head.norm.running_var.fill_(4.0)  # type: ignore[union-attr]
        head.norm.bias.fill_(0.5)
    vectors = torch.tensor([[[[1.0, 0.0]], [[1.0, 3.0]]]])
    expected = torch.sigmoid(torch.tensor([[[[0.5, 0.5 - 4 / 2]]]]))
    torch.testing.assert_close(head(vectors), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("refine", ["none", "affinity"])
def test_logits_and_class_maps_are_those_without_it(refine: str) -> None:
    plain = network()
    net = trained(copy.deepcopy(plain).add_foreground().set_refine(refine))  # type: ignore[arg-type]
    for image_hw in ((48, 40), (32, 56)):
        images = torch.rand(3, 3, *image_hw)
        with torch.no_grad():
            assert torch.equal(net(images), plain(images))
            output, expected = net.class_maps(images), plain.class_maps(images)
            assert torch.equal(output.maps, expected.maps)
            assert torch.equal(net.display_maps(images).logits, expected.logits)
            foreground = net.foreground_maps(images)
        assert foreground.shape == (3, 1, *output.maps.shape[2:])
        assert foreground.dtype == torch.float32
        assert 0 < float(foreground.min()) < float(foreground.max()) < 1


@torch.no_grad()
def test_shown_are_positive_class_maps_in_the_foreground_and_spread() -> None:
    net = trained(network(foreground=True))
    class_maps, foreground = net.class_maps(IMAGES).maps, net.foreground_maps(IMAGES)
    expected = positive_maps(class_maps) * foreground
    torch.testing.assert_close(net.display_maps(IMAGES).maps, expected)
    net.set_refine("affinity")
    spread = refine_maps(expected, net.backbone_output(IMAGES).vectors)
    output = net.refined_maps(IMAGES)
    torch.testing.assert_close(output.refined_maps, spread)
    assert torch.equal(output.maps, class_maps)
    assert not torch.allclose(spread, network().set_refine("affinity").refined_maps(IMAGES)[3])


def test_a_network_without_one_says_how_to_get_one() -> None:
    with pytest.raises(CamtrainValueError, match=r"add_foreground\(\) and train it"):
        network().foreground_maps(IMAGES)
    with pytest.raises(CamtrainTypeError, match="foreground must be true or false, got 'yes'"):
        network(foreground="yes")


def test_recipe_and_description_build_it_again(tmp_path: Path) -> None:
    net = trained(network(foreground=True))
    again = from_recipe(net.recipe or {})
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval().foreground_maps(IMAGES), net.foreground_maps(IMAGES))
    description = Description.from_dict(net.description.to_dict())
    assert description == net.description
    assert description.foreground
    assert description.kind_of_maps == "class maps in the foreground"
    assert description.to_dict()["format_version"] == 3
    refined = net.set_refine("affinity").description.kind_of_maps
    assert refined.startswith("class maps in the foreground refined by affinity of trunk.")


def test_without_it_files_are_as_before() -> None:
    values = network().description.to_dict()
    assert values["format_version"] == 1
    assert "foreground" not in values["architecture"]
    assert "refine" not in values


@pytest.mark.parametrize("refine", ["none", "affinity"])
def test_a_bundle_holds_it_and_its_layers(refine: str, tmp_path: Path) -> None:
    net = network(foreground=True)
    trained(net.set_refine(refine, ["trunk.relu3"]))  # type: ignore[arg-type]
    write_bundle(tmp_path / "a.safetensors", net.eval())
    again = read_network(tmp_path / "a.safetensors").net
    assert again.description.refinement == {"method": refine, "layers": ["trunk.relu3"]}
    with torch.no_grad():
        assert torch.equal(again.display_maps(IMAGES).maps, net.display_maps(IMAGES).maps)


def test_a_bundle_gives_its_head_to_a_network_that_wants_one(tmp_path: Path) -> None:
    net = network(foreground=True)
    trained(net.set_refine("none", ["trunk.relu3"]))
    write_bundle(tmp_path / "a.safetensors", net.eval())
    settings = {"backbone_args": {"width": 4}, "neck": (6,), "weights": tmp_path / "a.safetensors"}
    again = camtrain.create_model("camtrain/digits", foreground=True, **settings).eval()  # type: ignore[arg-type]
    assert torch.equal(again.foreground_maps(IMAGES), net.foreground_maps(IMAGES))
    plain = camtrain.create_model("camtrain/digits", **settings).eval()  # type: ignore[arg-type]
    assert plain.foreground is None
    assert torch.equal(plain(IMAGES), net(IMAGES))
    write_bundle(tmp_path / "b.safetensors", plain)
    settings["weights"] = tmp_path / "b.safetensors"
    new = camtrain.create_model("camtrain/digits", foreground=True, **settings)  # type: ignore[arg-type]
    assert new.foreground is not None


def test_a_trained_head_keeps_its_layers() -> None:
    net = network(foreground=True).set_refine("affinity", ["trunk.relu3"])
    trained(net)
    layers = net.description.refine_layers
    with pytest.raises(CamtrainValueError, match="foreground head was trained on other layers"):
        net.set_refine("affinity", ["trunk.relu2"])
    assert net.set_refine("none").description.refine_layers == layers
    assert net.set_refine("affinity", ["trunk.relu3"]).description.refine_layers == layers


@pytest.mark.parametrize("pool", ["avg", "lse"])
def test_part_logits_by_hand(pool: str) -> None:
    head = nn.Linear(2, 3)
    net = CAMNet(nn.Identity(), head, pool=pool)  # type: ignore[arg-type]
    features = torch.rand(1, 2, 1, 2)
    foreground = torch.tensor([[[[0.75, 0.5]]]], requires_grad=True)
    maps = net.class_maps(features).maps[0, :, 0]  # (3, 2)

    def pooled(weights: list[float]) -> Tensor:
        shares = torch.tensor(weights) / sum(weights)
        if pool == "avg":
            return (maps * shares).sum(1) + head.bias
        return ((4 * maps).exp() * shares).sum(1).log() / 4 + head.bias

    parts = part_logits(net, features, foreground)
    torch.testing.assert_close(parts.whole[0], pooled([1.0, 1.0]))
    torch.testing.assert_close(parts.whole, net(features))
    torch.testing.assert_close(parts.foreground[0], pooled([0.75, 0.5]))
    torch.testing.assert_close(parts.background[0], pooled([0.25, 0.5]))
    parts.background.sum().backward()
    assert head.weight.grad is None
    assert head.bias.grad is None
    assert foreground.grad is not None


def test_all_foreground_has_finite_gradients() -> None:
    for pool in ("avg", "lse"):
        net = CAMNet(nn.Identity(), nn.Linear(2, 3), pool=pool)  # type: ignore[arg-type]
        foreground = torch.ones(1, 1, 2, 3, requires_grad=True)
        torch.stack(part_logits(net, torch.rand(1, 2, 2, 3), foreground)).sum().backward()
        assert foreground.grad is not None
        assert bool(foreground.grad.isfinite().all())


def test_a_network_that_is_built_gets_one() -> None:
    plain = network()
    expected = plain(IMAGES)
    net = camtrain.create_model(plain, foreground=True)
    assert net is plain
    assert net.foreground is not None
    assert torch.equal(net(IMAGES), expected)
    assert net.add_foreground() is net


def test_a_network_built_by_hand_is_read_with_its_head(tmp_path: Path) -> None:
    def build() -> CAMNet:
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
        return CAMNet(trunk, nn.Linear(5, 2), preprocessing=Preprocessing((24, 20)))

    net = build().add_foreground().eval()
    write_bundle(tmp_path / "a.safetensors", net)
    again = read_network(tmp_path / "a.safetensors", backbone=build).net
    with torch.no_grad():
        assert torch.equal(again.display_maps(IMAGES).maps, net.display_maps(IMAGES).maps)


def test_a_cast_network_has_one() -> None:
    net = trained(network(foreground=True)).bfloat16()
    with torch.no_grad():
        assert net.display_maps(IMAGES).maps.isfinite().all()


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = camtrain.create_model("camtrain/digits", 5, weights=None, foreground=True)
    assert net.foreground is not None
    assert net.foreground.conv.weight.is_meta


@pytest.mark.parametrize(
    "name", ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "timm/test_efficientnet"]
)
def test_backbones_and_token_networks(name: str) -> None:
    net = camtrain.create_model(name, 3, weights=None, neck=(), foreground=True).eval()
    assert net.preprocessing is not None
    images = torch.rand(2, 3, *net.preprocessing.size)
    with torch.no_grad():
        maps = net.display_maps(images).maps
        assert net.foreground_maps(images).shape == (2, 1, *maps.shape[2:])
