"""Every augmentation gives the size, and does what its name says."""

from typing import Any

import pytest
import torch

from camtrain.data import AUGMENTATIONS, Augmentation, resize
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(28, 42))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_gives_bytes_of_the_size(name: str, channels: int) -> None:
    image = torch.randint(0, 256, (channels, 50, 37), dtype=torch.uint8)
    augmented = Augmentation(name, PREPROCESSING)(image)
    assert augmented.shape == (3, 28, 42)
    assert augmented.dtype == torch.uint8


def test_none_is_the_resize_and_flip_mirrors_it_half_of_the_time() -> None:
    image = torch.randint(0, 256, (3, 50, 37), dtype=torch.uint8)
    plain = resize(image, PREPROCESSING)
    assert torch.equal(Augmentation("none", PREPROCESSING)(image), plain)
    torch.manual_seed(0)
    flip = Augmentation("flip", PREPROCESSING)
    mirrored = [torch.equal(flip(image), plain.flip(-1)) for _ in range(100)]
    assert 30 < sum(mirrored) < 70


def test_paper_cuts_a_window_out_of_the_enlarged_picture() -> None:
    image = torch.randint(0, 256, (3, 50, 37), dtype=torch.uint8)
    large = resize(image, Preprocessing(size=(32, 48)))
    windows = large.unfold(1, 28, 1).unfold(2, 42, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    cut = Augmentation("paper", PREPROCESSING)(image)
    assert any(torch.equal(window, side) for window in windows for side in (cut, cut.flip(-1)))


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        CamtrainValueError, match="none, flip, light, imagenet, paper, wsol, got 'heavy'"
    ):
        Augmentation("heavy", PREPROCESSING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"auto_augment": "autoaugment"},
            "trivialaugment, or None, got 'autoaugment'",
        ),
        ({"hide_and_seek": 1.0}, r"probability in \[0, 1\), got 1.0"),
        ({"name": "wsol", "preprocessing": Preprocessing(resize_mode="pad")}, "squash.*got pad"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        Augmentation(**{"name": "none", "preprocessing": PREPROCESSING, **settings})


def test_wsol_warps_where_paper_keeps_what_the_resize_mode_says() -> None:
    image = torch.randint(0, 256, (3, 50, 37), dtype=torch.uint8)
    crop = Preprocessing(size=(28, 42), resize_mode="crop")
    seen = {}
    for name, settings in (("wsol", PREPROCESSING), ("paper", PREPROCESSING), ("paper", crop)):
        torch.manual_seed(2)
        seen[name, settings.resize_mode] = Augmentation(name, settings)(image)
    assert torch.equal(seen["wsol", "squash"], seen["paper", "squash"])
    assert not torch.equal(seen["wsol", "squash"], seen["paper", "crop"])
