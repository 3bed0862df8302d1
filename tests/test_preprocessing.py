"""Where a picture lies in the network's input."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Placement, Preprocessing

SIDES = st.integers(1, 400)
SIZES = st.tuples(SIDES, SIDES)


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (Preprocessing(size=(50, 30)), Placement(0.5, 0.1, 0, 0)),
        (Preprocessing(size=(50, 30), resize_mode="crop"), Placement(0.5, 0.5, 0, -60)),
        (
            Preprocessing(size=(50, 30), resize_mode="crop", crop_pct=0.5),
            Placement(1, 1, -25, -135),
        ),
        (Preprocessing(size=(50, 30), resize_mode="pad"), Placement(0.1, 0.1, 20, 0)),
    ],
)
def test_placement_of_a_100_by_300_picture(
    preprocessing: Preprocessing, expected: Placement
) -> None:
    assert preprocessing.placement((100, 300)) == expected


@given(image_hw=SIZES, size=SIZES, crop_pct=st.floats(0.2, 1))
def test_crop_covers_the_input_and_pad_fits_into_it(
    image_hw: tuple[int, int], size: tuple[int, int], crop_pct: float
) -> None:
    crop = Preprocessing(size=size, resize_mode="crop", crop_pct=crop_pct).resized_hw(image_hw)
    pad = Preprocessing(size=size, resize_mode="pad").resized_hw(image_hw)
    assert crop[0] >= size[0]
    assert crop[1] >= size[1]
    assert pad[0] <= size[0]
    assert pad[1] <= size[1]
    assert pad[0] == size[0] or pad[1] == size[1]


def test_lists_become_tuples_so_that_it_can_be_hashed() -> None:
    lists: Any = {"size": [32, 48], "mean": [0.5], "std": [0.25]}
    tuples = Preprocessing(size=(32, 48), mean=(0.5,), std=(0.25,))
    assert Preprocessing(**lists) == tuples
    assert hash(Preprocessing(**lists)) == hash(tuples)


def test_json_round_trip() -> None:
    one = Preprocessing(
        size=(32, 48), mean=(0.5,), std=(0.25,), interpolation="bicubic", resize_mode="pad"
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    other = Preprocessing(channel_order="bgr")
    assert Preprocessing.from_dict(json.loads(json.dumps(other.to_dict()))) == other


def test_rgb_is_written_as_it_was_before_there_was_a_channel_order() -> None:
    values = Preprocessing().to_dict()
    assert "channel_order" not in values
    assert Preprocessing.from_dict(values).channel_order == "rgb"
    assert Preprocessing(channel_order="bgr").to_dict()["channel_order"] == "bgr"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 224)}, "size must be two positive"),
        ({"mean": (0.5,)}, "one number per channel"),
        ({"std": (0.0, 1.0, 1.0)}, "std above 0"),
        ({"interpolation": "lanczos"}, "nearest, bilinear, bicubic, got 'lanczos'"),
        ({"resize_mode": "stretch"}, "squash, crop, pad, got 'stretch'"),
        ({"crop_pct": 0.0}, r"crop_pct must lie in \(0, 1\]"),
        ({"channel_order": "gbr"}, "channel_order must be one of rgb, bgr, got 'gbr'"),
        (
            {"channel_order": "bgr", "mean": (0.5,), "std": (0.5,)},
            "bgr needs a mean and std of 3 channels, got 1",
        ),
    ],
)
def test_bad_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        Preprocessing(**arguments)
