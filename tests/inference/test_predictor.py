"""The predictor computes what the network computes, over the picture as it was given."""

import copy
import doctest
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camtrain
from camtrain.data import prepare
from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainTypeError,
    CamtrainValueError,
)
from camtrain.inference import predictor as predictor_module
from camtrain.inference.bundle import read_network
from camtrain.inference.prediction import Prediction
from camtrain.inference.predictor import Predictor
from camtrain.localization import auto_threshold
from camtrain.maps import CAMOutput, picture_heatmaps
from camtrain.model.camnet import CAMNet
from camtrain.model.create import create_model
from camtrain.model.refine import RefinedOutput
from camtrain.preprocessing import Preprocessing, ResizeMode

MODES = get_args(ResizeMode)
SIZES_HW = [(37, 50), (64, 48), (20, 90), (64, 48), (55, 33)]


def picture(height: int, width: int, *, seed: int = 0) -> Tensor:
    """Noise of several grains, (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    fine = torch.rand(3, height, width, generator=generator)
    return ((0.7 * smooth + 0.3 * fine) * 255).byte()


def array_of(image: Tensor) -> np.ndarray[Any, Any]:
    return image.permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def net() -> CAMNet:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 6, neck=(8,), backbone_args={"width": 4})
    net.name_classes(["ant", "bee", "cat", "dog", "eel", "fox"])
    net.preprocessing = Preprocessing(size=(32, 40))
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 32, 40))  # BatchNorm meets pictures once
    return net.eval()


@pytest.fixture(scope="module")
def predictor(net: CAMNet) -> Predictor:
    return Predictor(net)


def planted_net(preprocessing: Preprocessing, *, cell: int = 8) -> CAMNet:
    """Its maps are known: class ``bright`` is the mean colour of each cell, ``dark`` its opposite.

    The bias says ``bright`` whatever the picture.
    """
    head = nn.Linear(3, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 3) / 3)
        head.bias.copy_(torch.tensor([0.0, 100.0]))
    return CAMNet(
        nn.AvgPool2d(cell), head, class_names=["dark", "bright"], preprocessing=preprocessing
    )


def same(found: Prediction, expected: Prediction, *, atol: float = 1e-5) -> None:
    """Everything but the path agrees; there are as many boxes, but one may turn with a rounding."""
    assert found.names == expected.names
    assert found.classes == expected.classes
    assert found.size_hw == expected.size_hw
    assert found.threshold == expected.threshold
    assert torch.equal(found.image, expected.image)
    assert found.scores == pytest.approx(expected.scores, abs=atol)
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, rtol=0, atol=10 * atol)
    assert len(found.boxes) == len(expected.boxes)


@pytest.mark.parametrize("mode", MODES)
def test_it_computes_what_the_network_computes_on_prepared_pictures(
    mode: ResizeMode, net: CAMNet
) -> None:
    """Law 6, in the resize mode that evaluation used."""
    net = copy.deepcopy(net)  # which gets another preprocessing here
    preprocessing = Preprocessing(size=(32, 40), resize_mode=mode)
    predictor = Predictor(net, preprocessing=preprocessing)
    images = [picture(*size_hw, seed=seed) for seed, size_hw in enumerate(SIZES_HW)]
    predictions = list(predictor(images, top=6, method="max"))
    assert len(predictions) == len(images)
    for prediction, image in zip(predictions, images, strict=True):
        with torch.no_grad():
            out = net.class_maps(prepare(image, preprocessing)[None])
        probabilities = out.logits[0].softmax(0)
        order = list(prediction.classes)
        assert order == out.logits[0].argsort(descending=True).tolist()
        assert prediction.scores == pytest.approx(probabilities[order].tolist(), abs=1e-6)
        assert sum(prediction.scores) == pytest.approx(1)
        size_hw = (image.shape[1], image.shape[2])
        heat = picture_heatmaps(out.maps[0, order], preprocessing, size_hw, method="max")
        torch.testing.assert_close(prediction.heatmaps, heat, rtol=0, atol=1e-4)


def test_a_prediction_holds_the_picture_and_what_belongs_to_it(predictor: Predictor) -> None:
    image = picture(37, 50)
    [found] = predictor(image, top=3, threshold=0.4)
    assert found.size_hw == (37, 50)
    assert torch.equal(found.image, image)
    assert found.path is None
    assert found.threshold == 0.4
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    assert found.names == tuple(names[number] for number in found.classes)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert found.heatmaps.shape == (3, 37, 50)
    assert found.heatmaps.dtype == torch.float32
    assert found.heatmaps.amin((1, 2)).tolist() == [0, 0, 0]
    assert found.heatmaps.amax((1, 2)).tolist() == [1, 1, 1]
    assert not found.heatmaps.is_inference()  # so that it may meet autograd
    for boxes, heatmap in zip(found.boxes, found.heatmaps, strict=True):
        assert torch.equal(boxes, camtrain.boxes_from_heatmap(heatmap, threshold=0.4))


def test_each_heatmap_may_have_its_own_threshold_and_be_cut(
    predictor: Predictor, tmp_path: Path
) -> None:
    image = picture(37, 50)
    [found] = predictor(image, top=3, threshold="auto", split_peaks=True)
    assert (found.threshold, found.is_calibrated) == ("auto", False)
    for boxes, heatmap in zip(found.boxes, found.heatmaps, strict=True):
        expected = camtrain.boxes_from_heatmap(heatmap, auto_threshold(heatmap), split=True)
        assert torch.equal(boxes, expected)
    assert predictor.net is not None
    Predictor(predictor.net, threshold="auto").save(tmp_path / "auto.safetensors")
    loaded = camtrain.load(tmp_path / "auto.safetensors")
    assert (loaded.threshold, loaded.description.calibrated_threshold) == ("auto", None)
    [whole], [again] = loaded(image), predictor(image, threshold="auto")
    assert all(map(torch.equal, whole.boxes, again.boxes))


def test_batch_size_does_not_matter_and_order_is_that_of_the_inputs(predictor: Predictor) -> None:
    images = [picture(*size_hw, seed=seed) for seed, size_hw in enumerate(SIZES_HW)]
    expected = list(predictor(images, batch_size=1))
    assert [prediction.size_hw for prediction in expected] == SIZES_HW
    for batch_size in (2, 3, 8):
        found = list(predictor(images, batch_size=batch_size))
        for one, other in zip(found, expected, strict=True):
            same(one, other)


@pytest.mark.parametrize(("top", "count"), [(1, 1), (5, 5), (6, 6), (50, 6)])
def test_top_is_at_most_the_number_of_classes(top: int, count: int, predictor: Predictor) -> None:
    [found] = predictor(picture(20, 30), top=top)
    lengths = map(len, (found.names, found.scores, found.classes, found.heatmaps, found.boxes))
    assert list(lengths) == [count] * 5


def test_every_kind_of_input_is_the_same_picture(predictor: Predictor, tmp_path: Path) -> None:
    image = picture(37, 50)
    array = array_of(image)
    pil = Image.fromarray(array)
    file = tmp_path / "a.png"
    pil.save(file)
    [expected] = predictor(image)
    inputs = [file, str(file), image, pil, np.asarray(pil), array]  # asarray: read-only
    inputs += [array[:, :, ::-1].copy()[:, :, ::-1]]  # negative strides, as of BGR turned to RGB
    found = list(predictor(inputs))
    assert len(found) == len(inputs)
    for one in found:
        same(one, expected)
    assert [one.path for one in found] == [str(file)] * 2 + [None] * (len(inputs) - 2)
    for one in inputs:  # alone, without a list around it
        [alone] = predictor(one)
        same(alone, expected)
    for many in (tuple(inputs), iter(inputs), (one for one in inputs)):
        assert len(list(predictor(many))) == len(inputs)
    assert list(predictor([])) == []


def test_floats_are_the_same_picture_but_for_the_rounding_of_a_resize(predictor: Predictor) -> None:
    image = picture(37, 50)
    array = array_of(image) / 255
    [expected] = predictor(image)
    [precise] = predictor(image / 255)
    same(precise, expected, atol=3e-3)
    for one in (array, array.astype(np.float32), array.astype(">f8"), image.double() / 255):
        [found] = predictor(one)
        same(found, precise)
    [found] = predictor((image / 255).requires_grad_())
    same(found, precise)
    for half in (array.astype(np.float16), (image / 255).half(), (image / 255).bfloat16()):
        [found] = predictor(half)
        assert found.scores == pytest.approx(expected.scores, abs=3e-3)


def test_odd_tensors_and_arrays_are_the_same_picture(predictor: Predictor, tmp_path: Path) -> None:
    image = picture(48, 40).float() / 255
    [expected] = predictor(image)
    array = array_of(image)
    np.save(tmp_path / "a.npy", array)
    Image.fromarray(array_of(picture(48, 40))).save(tmp_path / "a.png")
    with torch.inference_mode():
        unrecorded = image.clone()
    odd = [
        *(image.double(), image.clone().requires_grad_(), unrecorded, nn.Parameter(image)),
        *(array.astype(">f8"), np.asfortranarray(array), np.repeat(array, 2, 1)[:, ::2]),
        *(array[::-1, ::-1][::-1, ::-1], np.load(tmp_path / "a.npy", mmap_mode="r")),
    ]
    for found in predictor(odd):
        same(found, expected)
    [entry] = [entry for entry in os.scandir(tmp_path) if entry.name == "a.png"]
    same(next(predictor(entry)), next(predictor(picture(48, 40))))
    torch.set_default_dtype(torch.float64)
    try:
        same(next(predictor(array)), expected)
        net = create_model("camtrain/digits", 3, neck=(), backbone_args={"width": 2})
        assert len(list(Predictor(net)([array, image]))) == 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_error_of_a_generator_comes_after_its_pictures(predictor: Predictor) -> None:
    def pictures() -> Iterator[Tensor]:
        yield from (picture(48, 40), picture(48, 40))
        raise ZeroDivisionError

    predictions = predictor(pictures(), batch_size=1)
    next(predictions)
    with pytest.raises(ZeroDivisionError):
        list(predictions)


def test_gray_pictures_of_every_kind_are_the_same_picture(predictor: Predictor) -> None:
    gray = picture(37, 50)[:1]
    array = gray[0].numpy()
    [expected] = predictor(gray.expand(3, -1, -1))
    for one in (gray, array, array[:, :, None], array / 255, Image.fromarray(array)):
        [found] = predictor(one)
        assert found.scores == pytest.approx(expected.scores, abs=3e-3)
        torch.testing.assert_close(found.heatmaps, expected.heatmaps, rtol=0, atol=3e-2)
        assert found.overlay().size == (50, 37)


def test_a_tensor_of_four_axes_is_a_batch(predictor: Predictor) -> None:
    images = torch.stack([picture(37, 50, seed=seed) for seed in range(3)])
    for found, image in zip(predictor(images), images, strict=True):
        [expected] = predictor(image)
        same(found, expected)


def test_pictures_are_read_when_they_are_asked_for(predictor: Predictor, tmp_path: Path) -> None:
    read = []

    def images() -> Iterator[Tensor]:
        for seed in range(6):
            read.append(seed)
            yield picture(20, 30, seed=seed)

    predictions = predictor(images(), batch_size=2)
    assert read == []
    next(predictions)
    next(predictions)
    assert read == [0, 1, 2, 3]  # one batch ahead
    next(predictions)
    assert read == [0, 1, 2, 3, 4, 5]

    Image.fromarray(array_of(picture(20, 30))).save(tmp_path / "good.png")
    good = tmp_path / "good.png"
    predictions = predictor([good, good, tmp_path / "bad.png"], batch_size=2)
    assert [next(predictions).path, next(predictions).path] == [str(good)] * 2
    with pytest.raises(CamtrainFileNotFoundError, match=r"bad\.png does not exist"):
        next(predictions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top must be an integer of at least 1, got 0"),
        ({"top": 2.0}, "top must be an integer of at least 1, got 2.0"),
        ({"top": True}, "top must be an integer of at least 1, got True"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": "2"}, "batch_size must be an integer of at least 1, got '2'"),
        ({"largest_side": 0}, "largest_side must be an integer of at least 1, got 0"),
        ({"threshold": [0.3]}, r"threshold must lie in \[0, 1\), got \[0.3\]"),
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\), got 1.0"),
        ({"threshold": "otsu"}, r"threshold must lie in \[0, 1\) or be auto, got 'otsu'"),
        ({"threshold": float("nan")}, r"threshold must lie in \[0, 1\), got nan"),
        ({"method": "softmax"}, "method must be one of minmax, max, ivr, got 'softmax'"),
    ],
)
def test_options_are_checked_at_once(
    options: dict[str, Any], message: str, predictor: Predictor
) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        predictor("a/picture/that/nobody/reads.png", **options)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (None, CamtrainTypeError, "must be a path, a PIL image, an array"),
        (3, CamtrainTypeError, "got int"),
        ([3.5], CamtrainTypeError, "got float"),
        (b"a.jpg", CamtrainTypeError, "got bytes"),
        ([["a.jpg"]], CamtrainTypeError, "got list"),
        (np.zeros((3, 20, 30), np.uint8), CamtrainValueError, "ndarray of shape (3, 20, 30)"),
        (np.zeros((20, 30, 4), np.uint8), CamtrainValueError, "ndarray of shape (20, 30, 4)"),
        (np.zeros((2, 20, 30, 3), np.uint8), CamtrainValueError, "shape (2, 20, 30, 3)"),
        (np.zeros(5, np.uint8), CamtrainValueError, "shape (5,)"),
        (np.zeros((0, 30, 3), np.uint8), CamtrainValueError, "shape (0, 30, 3)"),
        (np.zeros((20, 30, 3), np.int64), CamtrainValueError, "type int64"),
        (np.zeros((20, 30), np.uint16), CamtrainValueError, "type uint16"),
        (np.zeros((20, 30), bool), CamtrainValueError, "type bool"),
        (np.array(["a.jpg", "b.jpg"]), CamtrainValueError, "ndarray of shape (2,)"),
        (torch.zeros(20, 30, 3), CamtrainValueError, "Tensor of shape (20, 30, 3)"),
        (torch.zeros(20, 30), CamtrainValueError, "Tensor of shape (20, 30)"),
        ([torch.zeros(2, 3, 20, 30)], CamtrainValueError, "Tensor of shape (2, 3, 20, 30)"),
        (torch.zeros(3, 20, 30, dtype=torch.int64), CamtrainValueError, "type torch.int64"),
        (torch.full((3, 20, 30), 1.01), CamtrainValueError, "never normalized, got 1.01 to 1.01"),
        (torch.full((3, 20, 30), -0.1), CamtrainValueError, "never normalized, got -0.1 to -0.1"),
        (torch.full((3, 20, 30), torch.nan), CamtrainValueError, "never normalized, got nan"),
        (np.full((20, 30, 3), 255.0), CamtrainValueError, "never normalized, got 255 to 255"),
        ("missing/a.jpg", CamtrainFileNotFoundError, "missing/a.jpg does not exist"),
        ("missing/*.jpg", CamtrainFileNotFoundError, "No file fits the pattern missing/*.jpg"),
        (Path(__file__).parent, CamtrainFileNotFoundError, "holds no pictures (.jpg "),
        ("https://a.org/b.jpg", CamtrainValueError, "https://a.org/b.jpg is an address"),
        (Path("http://a.org/b.jpg"), CamtrainValueError, "is an address"),
        (Path(__file__), CamtrainValueError, "cannot be read"),
    ],
)
def test_bad_inputs_are_named(
    bad: object,
    error: type[CamtrainError],
    message: str,
    predictor: Predictor,
) -> None:
    with pytest.raises(error) as raised:
        list(predictor(bad))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


PLANTED = [  # image_hw, preprocessing, box: its edges lie on those of the input's cells of 8 pixels
    ((96, 160), Preprocessing((48, 40)), (32, 32, 96, 64)),
    ((160, 96), Preprocessing((40, 48)), (32, 64, 64, 128)),
    ((96, 160), Preprocessing((48, 64), resize_mode="crop"), (48, 32, 80, 80)),
    ((192, 64), Preprocessing((80, 64), resize_mode="crop"), (16, 72, 48, 120)),
    ((64, 128), Preprocessing((48, 48), resize_mode="crop", crop_pct=0.75), (56, 24, 72, 40)),
    ((80, 160), Preprocessing((64, 64), resize_mode="pad"), (40, 20, 80, 60)),
    ((160, 80), Preprocessing((64, 48), resize_mode="pad"), (20, 40, 60, 120)),
]


@pytest.mark.parametrize(("image_hw", "preprocessing", "box"), PLANTED)
def test_a_planted_square_is_found_where_it_is_in_the_original(
    image_hw: tuple[int, int], preprocessing: Preprocessing, box: tuple[int, int, int, int]
) -> None:
    x0, y0, x1, y1 = box
    image = torch.zeros(3, *image_hw, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    [found] = Predictor(planted_net(preprocessing))(image, threshold=0.5)
    assert found.names == ("bright", "dark")
    assert found.size_hw == image_hw
    assert found.heatmaps.shape == (2, *image_hw)
    assert found.boxes[0].tolist() == [list(box)]
    rows, columns = found.heatmaps[0].eq(1).nonzero(as_tuple=True)
    assert y0 <= rows.min() <= rows.max() < y1
    assert x0 <= columns.min() <= columns.max() < x1


@pytest.mark.parametrize(
    ("image_hw", "preprocessing", "seen_xyxy"),
    [
        ((96, 160), Preprocessing((48, 64), resize_mode="crop"), (16, 0, 144, 96)),
        ((192, 64), Preprocessing((80, 64), resize_mode="crop"), (0, 56, 64, 136)),
        ((64, 128), Preprocessing((48, 48), resize_mode="crop", crop_pct=0.75), (40, 8, 88, 56)),
        ((80, 160), Preprocessing((64, 64), resize_mode="pad"), (0, 0, 160, 80)),
    ],
)
def test_a_cropped_border_is_exactly_zero_and_padding_is_left_out(
    image_hw: tuple[int, int],
    preprocessing: Preprocessing,
    seen_xyxy: tuple[int, int, int, int],
) -> None:
    x0, y0, x1, y1 = seen_xyxy
    ramp = torch.arange(image_hw[0])[:, None] + torch.arange(image_hw[1])
    image = (ramp * 255 // ramp.max()).byte().expand(3, -1, -1)
    [found] = Predictor(planted_net(preprocessing))(image)
    assert found.heatmaps.shape == (2, *image_hw)
    assert found.heatmaps.amax((1, 2)).tolist() == [1, 1]
    inside = found.heatmaps[:, y0:y1, x0:x1]
    assert inside.gt(0).float().mean() > 0.9
    outside = found.heatmaps.clone()
    outside[:, y0:y1, x0:x1] = 0
    assert outside.eq(0).all()
    for brightness, darkness in zip(*inside, strict=True):  # a ramp and its opposite
        torch.testing.assert_close(brightness, 1 - darkness, rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", [0, 77, 255])
@pytest.mark.parametrize("mode", MODES)
def test_a_constant_map_shows_nothing_in_every_resize_mode(mode: ResizeMode, level: int) -> None:
    """Without a head that tells classes apart; a uniform picture is not uniform once padded."""
    net = planted_net(Preprocessing((48, 40), resize_mode=mode))
    nn.init.zeros_(net.head.weight)
    image = torch.full((3, 50, 77), level, dtype=torch.uint8)
    for method in ("minmax", "max", "ivr"):
        [found] = Predictor(net)(image, method=method)
        assert found.heatmaps.shape == (2, 50, 77)
        assert found.heatmaps.eq(0).all()
        assert [boxes.shape for boxes in found.boxes] == [(0, 4)] * 2
        assert found.overlay().size == (77, 50)


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_a_uniform_picture_shows_nothing(mode: ResizeMode) -> None:
    net = planted_net(Preprocessing((48, 40), resize_mode=mode))
    [found] = Predictor(net)(torch.full((3, 50, 77), 77, dtype=torch.uint8))
    assert found.heatmaps.eq(0).all()
    assert found.boxes[0].shape == (0, 4)


def test_overlay_is_the_picture_under_the_heatmap_of_its_rank(predictor: Predictor) -> None:
    [found] = predictor(picture(37, 50), top=2)
    drawn = [found.overlay(), found.overlay(0), found.overlay(rank=1)]
    for one in drawn:
        assert isinstance(one, Image.Image)
        assert one.mode == "RGB"
        assert one.size == (50, 37)
    assert drawn[0].tobytes() == drawn[1].tobytes()
    assert drawn[1].tobytes() != drawn[2].tobytes()
    assert found.overlay(colormap="jet").tobytes() != drawn[0].tobytes()
    with pytest.raises(CamtrainValueError, match="colormap must be one of"):
        found.overlay(colormap="rainbow")


def test_save_and_load_predict_the_same(net: CAMNet, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    predictor = Predictor(net, threshold=0.3, scores={"val/acc1": 0.75})
    predictor.save(path)
    loaded = camtrain.load(str(path))
    assert loaded.threshold == 0.3
    assert loaded.scores == {"val/acc1": 0.75}
    assert loaded.preprocessing == predictor.preprocessing
    images = [picture(*size_hw, seed=seed) for seed, size_hw in enumerate(SIZES_HW)]
    for found, expected in zip(loaded(images), predictor(images), strict=True):
        assert found.scores == expected.scores
        assert found.threshold == expected.threshold == 0.3
        assert torch.equal(found.heatmaps, expected.heatmaps)
        for boxes, expected_boxes in zip(found.boxes, expected.boxes, strict=True):
            assert torch.equal(boxes, expected_boxes)
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert read_network(again).description.scores == {"val/acc1": 0.75}
    assert again.read_bytes() == path.read_bytes()


def test_what_is_given_to_the_predictor_is_saved_with_the_network(tmp_path: Path) -> None:
    net = camtrain.create_model("camtrain/digits", 2, neck=(), backbone_args={"width": 1})
    preprocessing = Preprocessing((16, 24), (0.1,) * 3, (0.9,) * 3, resize_mode="pad")
    Predictor(net, class_names=["hay", "needle"], preprocessing=preprocessing).save(
        tmp_path / "model.safetensors"
    )
    loaded = camtrain.load(tmp_path / "model.safetensors")
    assert loaded.net.class_names == ("hay", "needle")
    assert loaded.preprocessing == preprocessing
    assert loaded.threshold == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preprocessing": None}, "preprocessing must be given"),
        ({"class_names": ["one"]}, "class_names must hold one name for each of the 2"),
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\)"),
        ({"threshold": -0.1}, r"threshold must lie in \[0, 1\)"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused(arguments: dict[str, Any], message: str) -> None:
    net = planted_net(Preprocessing())
    net.preprocessing = arguments.get("preprocessing", net.preprocessing)
    with pytest.raises(CamtrainValueError, match=message):
        Predictor(net, **arguments)


def test_a_network_without_names_says_numbers() -> None:
    net = planted_net(Preprocessing((48, 40)))
    net.class_names = None
    [found] = Predictor(net)(picture(20, 30))
    assert found.names == ("1", "0")


def test_the_example_prints_what_it_says() -> None:
    failed, attempted = doctest.testmod(predictor_module)
    assert attempted > 0
    assert failed == 0


def test_classes_that_are_asked_for_come_best_first(predictor: Predictor) -> None:
    image = picture(37, 50)
    [every] = predictor(image, top=6)
    for wanted in (
        *(["cat", "ant", "fox"], [2, 0, 5], ["cat", 0, 5]),
        *(torch.tensor([2, 0, 5]), np.array([2, 0, 5]), iter([2, 0, 5]), {2, 0, 5}),
    ):
        [found] = predictor(image, classes=wanted)
        assert set(found.names) == {"cat", "ant", "fox"}
        assert list(found.scores) == sorted(found.scores, reverse=True)
        for rank, number in enumerate(found.classes):
            place = every.classes.index(number)
            assert found.scores[rank] == pytest.approx(every.scores[place], abs=1e-6)
            heat = every.heatmaps[place]
            torch.testing.assert_close(found.heatmaps[rank], heat, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "classes must be a list of at least one"),
        ("cat", "classes must be a list of at least one"),
        (1, "classes must be a list of at least one"),
        (torch.tensor(1), "classes must be a list of at least one"),
        ([[0, 1]], "classes must be a list of at least one"),
        (torch.tensor([0.0]), "classes must be a list of at least one"),
        (["kat"], "There is no class 'kat'; the names next to it are cat"),
        (["zzzzzz"], "the names next to it are ant, bee, cat, dog, eel, ..."),
        ([6], "classes must lie in 0..5, got 6"),
        ([-1], "classes must lie in 0..5, got -1"),
        (["cat", 2], "classes must differ from one another"),
    ],
)
def test_classes_that_cannot_be_are_refused_at_once(
    classes: Any,  # noqa: ANN401
    message: str,
    predictor: Predictor,
) -> None:
    with pytest.raises(CamtrainValueError) as error:
        predictor("unread.png", classes=classes)
    assert message in str(error.value)


def test_a_name_of_two_classes_asks_for_a_number() -> None:
    net = planted_net(Preprocessing((48, 40)))
    predictor = Predictor(net, class_names=["crane", "crane"])
    with pytest.raises(CamtrainValueError, match=r"name of the classes \[0, 1\]; give a number"):
        predictor(picture(20, 30), classes=["crane"])
    with pytest.raises(CamtrainValueError, match="top and classes exclude each other"):
        predictor(picture(20, 30), classes=[0], top=1)


def test_flips_are_the_mean_of_the_picture_and_its_mirror_image(predictor: Predictor) -> None:
    image = picture(37, 50)
    assert predictor.net is not None
    straight = prepare(image, predictor.preprocessing)
    with torch.no_grad():
        out = predictor.net.class_maps(torch.stack((straight, straight.flip(-1))))
    logits, maps = out.logits.mean(0), (out.maps[0] + out.maps[1].flip(-1)) / 2
    [found] = predictor(image, top=6, tta="flip")
    assert list(found.classes) == logits.argsort(descending=True).tolist()
    assert found.scores == pytest.approx(logits.softmax(0).sort(descending=True).values.tolist())
    heat = picture_heatmaps(maps[list(found.classes)], predictor.preprocessing, (37, 50))
    torch.testing.assert_close(found.heatmaps, heat, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_ten_crops_find_the_planted_square_where_it_is(mode: ResizeMode) -> None:
    """The crops have the size of the network's input; their maps cover the wider picture."""
    sizes: list[tuple[int, ...]] = []
    # Black is 0: the authors take the absolute value of each crop's map.
    black = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    net = planted_net(Preprocessing((56, 56), resize_mode=mode, crop_pct=0.875, **black))
    net.backbone.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape))
    image = torch.zeros(3, 128, 192, dtype=torch.uint8)
    image[:, 40:88, 72:120] = 255
    [found] = Predictor(net)(image, classes=["bright"], threshold=0.6, tta="tencrop")
    assert sizes == [(10, 3, 56, 56)]
    assert found.heatmaps.shape == (1, 128, 192)
    x0, y0, x1, y1 = found.boxes[0][0].tolist()
    intersection = (min(x1, 120) - max(x0, 72)) * (min(y1, 88) - max(y0, 40))
    union = (x1 - x0) * (y1 - y0) + 48 * 48 - intersection
    assert intersection / union > 0.6


def test_what_cannot_be_read_is_handed_over_in_its_turn(
    predictor: Predictor, tmp_path: Path
) -> None:
    for name in ("a", "c", "e"):
        Image.fromarray(array_of(picture(20, 30))).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("no picture")
    inputs = [tmp_path / f"{name}.png" for name in "abcde"] + [np.zeros(5), tmp_path / "a.png"]
    for batch_size in (1, 2, 3, 8):
        story: list[Any] = []

        def on_error(item: object, error: CamtrainError, story: list[Any] = story) -> None:
            story.append((item, error))

        for prediction in predictor(inputs, batch_size=batch_size, on_error=on_error):
            story.append(prediction.path)
        assert [story[0], story[2], story[4], story[6]] == [
            str(tmp_path / f"{name}.png") for name in "acea"
        ]
        for (item, error), expected in zip((story[1], story[3], story[5]), (1, 3, 5), strict=True):
            assert item is inputs[expected]
            assert isinstance(error, CamtrainError)
        assert len(story) == 7
    everything = predictor([tmp_path / "b.png"] * 3, on_error=lambda *_: None)
    assert list(everything) == []


def test_what_comes_before_a_bad_file_is_predicted_before_the_error(
    predictor: Predictor, tmp_path: Path
) -> None:
    found = predictor([picture(20, 30), picture(30, 20), tmp_path / "none.png", picture(20, 20)])
    assert [next(found).size_hw, next(found).size_hw] == [(20, 30), (30, 20)]
    with pytest.raises(CamtrainFileNotFoundError, match=r"none\.png does not exist"):
        next(found)


def test_memory_does_not_grow_with_the_number_of_pictures(predictor: Predictor) -> None:
    """At no time are there more pictures and predictions than two batches hold."""
    made: list[weakref.ref[Any]] = []
    most = 0

    def images() -> Iterator[np.ndarray[Any, Any]]:
        for seed in range(60):
            image = array_of(picture(20, 30, seed=seed))
            made.append(weakref.ref(image))
            yield image

    for prediction in predictor(images(), batch_size=4, top=1):
        made.append(weakref.ref(prediction))
        most = max(most, sum(one() is not None for one in made))
    assert most <= 2 * 2 * 4 + 2


def test_the_threads_end_with_the_predictions_even_if_nobody_takes_them_all(
    predictor: Predictor,
) -> None:
    before, cores = threading.active_count(), torch.get_num_threads()
    found = predictor((picture(20, 30, seed=seed) for seed in range(50)), batch_size=2)
    next(found)
    assert threading.active_count() > before
    del found
    gc.collect()
    assert threading.active_count() == before
    assert torch.get_num_threads() == cores


class OnlyTheBest:
    """A network of somebody else: it gives the maps of its best two classes and no others."""

    class_names, preprocessing, task = ("a", "b", "c"), Preprocessing((16, 24)), "multilabel"
    top = 2

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """Maps whose values are their class."""
        if top is None or top > 2 or classes is not None:
            raise CamtrainValueError("This file holds the maps of its best 2 classes only.")
        logits = torch.tensor([[0.0, 3.0, -1.0]]).repeat(len(images), 1)
        chosen = logits.topk(top).indices
        ramp = torch.linspace(0, 1, 6).repeat(len(images), top, 4, 1)
        return CAMOutput(logits, ramp * (1 + chosen[:, :, None, None]), chosen)


class OwnRefined(OnlyTheBest):
    """One that refines its maps."""

    refine = "affinity"

    def refined_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> RefinedOutput:
        """Maps that are mirrored."""
        output = self.class_maps(images, top=top, classes=classes)
        return RefinedOutput(*output, output.maps.flip(-1))


def test_any_network_behind_the_door_is_predicted_with(tmp_path: Path) -> None:
    predictor = Predictor(OnlyTheBest(), threshold=0.5)
    assert predictor.net is None
    [found] = predictor(picture(20, 30), top=2)
    assert found.names == ("b", "a")
    assert found.scores == pytest.approx((0.952574, 0.5))  # each a sigmoid
    assert found.boxes[0].tolist() == [[15, 0, 30, 20]]
    assert next(predictor(picture(20, 30))).names == found.names  # no more than there are
    with pytest.raises(CamtrainValueError, match="best 2 classes only"):
        list(predictor(picture(20, 30), top=3))
    with pytest.raises(CamtrainValueError, match="cannot become a bundle"):
        predictor.save(tmp_path / "model.safetensors")
    assert next(Predictor(OnlyTheBest(), refine="none")(picture(20, 30))).names == found.names
    with pytest.raises(CamtrainValueError, match="computes what it was exported with"):
        Predictor(OnlyTheBest(), refine="affinity")
    [refined] = Predictor(OwnRefined(), threshold=0.5, refine="affinity")(picture(20, 30))
    assert refined.boxes[0].tolist() == [[0, 0, 15, 20]]


def test_an_image_that_is_used_again_is_taken_as_it_was(predictor: Predictor) -> None:
    buffer = np.zeros((40, 56, 3), np.uint8)
    pictures = [np.random.default_rng(n).integers(0, 256, (40, 56, 3), np.uint8) for n in range(3)]

    def frames() -> Iterator[np.ndarray]:
        for picture in pictures:
            buffer[:] = picture
            yield buffer

    seen = [prediction.scores for prediction in predictor(frames())]
    assert seen == [prediction.scores for prediction in predictor(pictures)]


def test_a_pil_image_that_cannot_be_read_is_an_error_of_its_turn(
    predictor: Predictor, tmp_path: Path
) -> None:
    file = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:4000])
    good, errors = np.zeros((40, 56, 3), np.uint8), []
    with Image.open(file) as cut:
        found = list(predictor([cut, good], on_error=lambda _, error: errors.append(str(error))))
    assert len(found) == 1
    assert "PIL image cannot be read" in errors[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_large_picture_has_smaller_heatmaps_and_boxes_of_its_own_pixels(mode: ResizeMode) -> None:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 4, neck=(8,), backbone_args={"width": 4})
    preprocessing = camtrain.Preprocessing((32, 40), resize_mode=mode)
    predictor = camtrain.Predictor(net, preprocessing=preprocessing)
    picture = torch.randint(0, 256, (3, 300, 450), dtype=torch.uint8)
    [whole] = predictor(picture)
    [small] = predictor(picture, largest_side=90)
    assert small.image.shape == (3, 60, 90)
    assert small.heatmaps.shape == (4, 60, 90)
    assert (small.size_hw, small.scores, small.names) == ((300, 450), whole.scores, whole.names)
    largest = zip(small.boxes, whole.boxes, strict=True)
    assert all((a[0] - b[0]).abs().max() <= 5 for a, b in largest)  # pixels of 5 x 5
    [same] = predictor(picture, largest_side=450)
    assert torch.equal(same.heatmaps, whole.heatmaps)


def test_a_picture_whose_heatmaps_fail_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net = camtrain.create_model("camtrain/digits", 4, neck=(8,), backbone_args={"width": 4})
    predictor = camtrain.Predictor(net, preprocessing=camtrain.Preprocessing((32, 40)))

    def fail(maps: Tensor, preprocessing: object, size_hw: tuple[int, int], **rest: Any) -> Tensor:
        if size_hw == (50, 50):
            raise RuntimeError("not enough memory")
        return picture_heatmaps(maps, preprocessing, size_hw, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr("camtrain.inference.prediction.picture_heatmaps", fail)
    pictures = [torch.rand(3, side, side) for side in (40, 50, 60)]
    errors: list[str] = []
    predictions = predictor(pictures, on_error=lambda _, error: errors.append(str(error)))
    assert [prediction.size_hw for prediction in predictions] == [(40, 40), (60, 60)]
    [message] = errors
    assert message.startswith("The picture in memory cannot be predicted (RuntimeError: not enough")
