"""Affinity refinement: by hand, against loops, and its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import camtrain
from camtrain import CAMNet
from camtrain.errors import CamtrainTypeError, CamtrainValueError
from camtrain.model import refine
from camtrain.model.refine import BackboneOutput, _signs, refine_maps, stage_vectors


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(class_map: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The docstring of ``refine_maps``, place by place, in float64."""
    places = class_map.size
    flat, unit = class_map.reshape(-1), vectors.reshape(len(vectors), -1)
    affinity = np.zeros((places, places))
    for i in range(places):
        for j in range(places):
            affinity[i, j] = max(float(unit[:, i] @ unit[:, j]), 0.0) ** 3
        affinity[i] /= affinity[i].sum()
    start = np.maximum(flat - min(flat.mean(), 0.0), 0.0)
    spread = start.copy()
    for _ in range(4):
        spread = 0.98 * affinity @ spread + 0.02 * start
    floor = spread.min() + 0.75 * (spread.mean() - spread.min())
    return np.maximum(spread - floor, 0.0).reshape(class_map.shape)


@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0])
def test_it_is_what_its_docstring_says(offset: float) -> None:
    maps = numbers(2, 3, 4, 5) + offset  # H != W
    vectors = stage_vectors([numbers(2, 6, 4, 5, seed=1), numbers(2, 3, 4, 5, seed=2)], (4, 5))
    refined = refine_maps(maps, vectors)
    for image in range(2):
        for one in range(3):
            expected = by_loops(maps[image, one].double().numpy(), vectors[image].double().numpy())
            np.testing.assert_allclose(refined[image, one].numpy(), expected, atol=1e-5)


def test_similarity_is_the_mean_of_the_stages_cosines() -> None:
    stages = [numbers(1, 5, 3, 4), numbers(1, 7, 3, 4, seed=1)]
    flat = stage_vectors(stages, (3, 4)).flatten(2)
    cosines = [F.cosine_similarity(s.flatten(2)[0, :, 2], s.flatten(2)[0, :, 9], 0) for s in stages]
    torch.testing.assert_close((flat.mT @ flat)[0, 2, 9], torch.stack(cosines).mean())


def test_many_channels_are_hashed_and_keep_their_similarities() -> None:
    stage = numbers(1, 4000, 4, 6).relu()  # alike, as features are
    stage[:, :, 0, 0] = stage[:, :, 1, 1] + 0.3 * stage[:, :, 0, 0]
    vectors = stage_vectors([stage], (4, 6))
    assert vectors.shape[1] == 160
    flat, exact = vectors.flatten(2), F.normalize(stage.flatten(2), dim=1)
    difference = flat.mT @ flat - exact.mT @ exact
    assert float(difference.abs().max()) < 4 / 160**0.5  # four standard deviations
    assert abs(float(difference.mean())) < 0.02
    assert torch.equal(vectors, stage_vectors([stage], (4, 6)))
    # Written down, since thresholds of shipped networks depend on them.
    assert list(_signs(12)) == [-1, -1, 1, 1, -1, -1, -1, -1, 1, -1, 1, -1]


def test_stages_of_another_size_are_resized() -> None:
    stage = numbers(1, 4, 6, 8)
    quarters = F.normalize(F.avg_pool2d(stage, 2), dim=1)
    torch.testing.assert_close(stage_vectors([stage], (3, 4)), quarters)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30)
def test_laws(seed: int, height: int, width: int) -> None:
    maps = numbers(1, 2, height, width, seed=seed)
    vectors = stage_vectors([numbers(1, 3, height, width, seed=seed + 1)], (height, width))
    refined = refine_maps(maps, vectors)
    assert refined.shape == maps.shape
    assert bool((refined >= 0).all())
    torch.testing.assert_close(refine_maps(4 * maps, vectors), 4 * refined)
    swapped = refine_maps(maps.mT, vectors.mT)  # neither axis is special
    torch.testing.assert_close(swapped, refined.mT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(refine_maps(maps[:, :1], vectors), refined[:, :1])


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_map_shows_nothing(value: float) -> None:
    vectors = stage_vectors([numbers(1, 3, 4, 5)], (4, 5))
    refined = refine_maps(torch.full((1, 1, 4, 5), value), vectors)
    assert float(refined.max()) <= 1e-5
    dead = stage_vectors([torch.zeros(1, 3, 4, 5)], (4, 5))  # no place is like any
    assert bool(refine_maps(numbers(1, 1, 4, 5), dead).isfinite().all())


def test_large_maps_are_refined_a_few_pictures_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, vectors = numbers(5, 2, 4, 6), stage_vectors([numbers(5, 3, 4, 6, seed=1)], (4, 6))
    expected = refine_maps(maps, vectors)
    monkeypatch.setattr(refine, "_MOST_PAIRS", 2 * 24**2)
    torch.testing.assert_close(refine_maps(maps, vectors), expected)


def test_a_backbone_output_is_packed_and_unpacked() -> None:
    backbone_output = BackboneOutput(numbers(2, 3, 4, 5), numbers(2, 6, 4, 5, seed=1))
    again = BackboneOutput.unpacked(backbone_output.packed(), 6)
    assert torch.equal(again.features, backbone_output.features)
    assert torch.equal(again.vectors, backbone_output.vectors)
    plain = BackboneOutput(backbone_output.features, backbone_output.features[:, :0])
    assert plain.packed() is backbone_output.features


def net(pool: str = "avg", neck: tuple[int, ...] = (6,)) -> CAMNet:
    torch.manual_seed(0)
    made = camtrain.create_model(
        "camtrain/digits", 5, neck=neck, pool=pool, backbone_args={"width": 4}
    )
    with torch.no_grad():
        made(torch.rand(4, 3, 32, 40))
    return made.eval()


@pytest.mark.parametrize("pool", ["avg", "max", "lse", "gmp"])
def test_logits_and_class_maps_stay_what_they_were(pool: str) -> None:
    refining, images = net(pool), numbers(2, 3, 40, 56)
    with torch.no_grad():
        before = refining.class_maps(images, top=3)
        after = refining.set_refine("affinity").refined_maps(images, top=3)
        plain = refining.class_maps(images, top=3)
        forward = refining(images)
    for name in ("logits", "maps", "classes"):
        assert torch.equal(getattr(after, name), getattr(before, name))
        assert torch.equal(getattr(plain, name), getattr(before, name))
    assert torch.equal(forward, before.logits)
    assert after.refined_maps.shape == before.maps.shape
    assert not torch.equal(after.refined_maps, after.maps)


def test_display_maps_are_class_maps_or_refined_maps() -> None:
    network, images = net(), numbers(2, 3, 40, 56)
    labels = torch.tensor([1, 4])
    with torch.no_grad():
        for expected in (network.class_maps(images, classes=labels).maps, None):
            if expected is None:
                network.set_refine("affinity")
                expected = network.refined_maps(images, classes=labels).refined_maps
            neck_output = network.apply_neck(network.backbone_output(images))
            for given in (images, neck_output):
                assert torch.equal(network.display_maps(given, classes=labels).maps, expected)
            assert neck_output.vectors.shape[1] == network.vector_channels


@pytest.mark.parametrize("pool", ["avg", "max", "lse"])
def test_display_maps_are_exported_with_free_sizes(pool: str) -> None:
    class DisplayMaps(nn.Module):
        def __init__(self, net: CAMNet) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.net.display_maps(images, top=2))

    network, auto = net(pool), torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(
            DisplayMaps(network),
            (numbers(2, 3, 40, 56),),
            dynamic_shapes=({0: auto, 2: auto, 3: auto},),
            strict=False,
        )
        images = numbers(3, 3, 64, 48)
        for given, expected in zip(
            program.module()(images), network.display_maps(images, top=2), strict=True
        ):
            torch.testing.assert_close(given, expected, atol=1e-6, rtol=1e-6)
    assert "autocast" not in str(program.graph)


def test_a_network_cast_as_a_whole_refines_in_float32() -> None:
    some = net().set_refine("affinity").bfloat16()
    with torch.no_grad():
        refined = some.refined_maps(numbers(1, 3, 40, 56).bfloat16()).refined_maps
    assert refined.dtype == torch.float32


def test_what_cannot_be_refined_is_said() -> None:
    some, images = net(), numbers(1, 3, 32, 32)
    with pytest.raises(CamtrainValueError, match=r"no refined maps; call net\.set_refine"):
        some.refined_maps(images)
    with pytest.raises(CamtrainValueError, match="refine must be one of none, affinity, got 'crf'"):
        some.set_refine("crf")  # type: ignore[arg-type]
    with pytest.raises(CamtrainValueError, match="refine_layers is for refine=affinity"):
        some.set_refine("none", ["trunk.relu3"])
    with pytest.raises(CamtrainTypeError, match="refine_layers must be a list of names"):
        some.set_refine("affinity", "trunk.relu3")
    some.set_refine("affinity")
    with pytest.raises(CamtrainValueError, match="exclude each other"):
        some.refined_maps(images, top=1, classes=torch.tensor([1]))
    with pytest.raises(CamtrainTypeError, match="tensor of integers"):
        some.refined_maps(images, classes=torch.tensor([1.0]))
    with pytest.raises(CamtrainValueError, match="exclude each other"):
        some.display_maps(images, top=1, classes=torch.tensor([1]))
