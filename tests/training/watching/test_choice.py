"""Which pictures are watched, and how they are read."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from camtrain.data import normalize
from camtrain.preprocessing import ChannelOrder, Preprocessing
from camtrain.training import CAMDataModule
from camtrain.training.watching.choice import classes_of, labels_of, read, stratified
from tests.training.conftest import small_module


def test_every_class_is_watched_in_turn() -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 20
    chosen = stratified(labels, 10, seed=0)
    assert [labels[i] for i in chosen] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert len(set(chosen)) == 10
    assert chosen == stratified(labels, 10, seed=0)
    assert chosen != stratified(labels, 10, seed=1)


def test_fewer_pictures_than_asked_for_are_all_watched() -> None:
    assert sorted(stratified([1, 0, 1], 16, seed=0)) == [0, 1, 2]


def test_the_classes_of_a_label() -> None:
    assert classes_of(3) == (3,)
    assert classes_of(torch.tensor([0.0, 1.0, 1.0])) == (1, 2)
    assert classes_of(torch.zeros(3)) == ()
    assert labels_of([(None, 2), (None, torch.zeros(3)), (None, torch.ones(3))]) == [2, -1, 0]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_anybody_s_pictures_are_shown_in_their_own_colours(order: ChannelOrder) -> None:
    net = small_module().net
    net.preprocessing = Preprocessing(size=(24, 32), channel_order=order)
    pixels = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8)
    watched = read([(normalize(pixels, net.preprocessing), 1)], 0, net)
    assert watched is not None
    assert torch.equal(watched.shown, pixels)
    assert watched.path == "picture 0"


def test_huge_pictures_are_watched_smaller_with_their_boxes(photographs: Path) -> None:
    Image.new("RGB", (3000, 1500)).save(photographs / "val/red/huge.png")
    with open(photographs / "boxes.csv", "a") as file:
        file.write("\nval/red/huge.png,300,150,2700,1350,red")
    data = CAMDataModule(root=photographs, size=32, workers=0)
    data.setup("validate")
    dataset = data.datasets["val"]
    place = [Path(p).name for p in dataset.source.paths].index("huge.png")
    watched = read(dataset, place, small_module().net)
    assert watched is not None
    assert watched.size_hw == (512, 1024)
    assert watched.boxes_xyxy.tolist() == [[102, 51, 922, 461]]
    assert watched.image.shape == (3, 32, 32)


def test_a_damaged_picture_is_not_watched(photographs: Path) -> None:
    for path in sorted(photographs.glob("val/*/*.png"))[1:]:
        path.write_bytes(b"no picture")
    data = CAMDataModule(root=photographs, size=32, workers=0, allow_damaged=True, batch_size=8)
    data.setup("validate")
    net = small_module().net
    assert read(data.datasets["val"], 0, net) is not None
    assert read(data.datasets["val"], 1, net) is None
