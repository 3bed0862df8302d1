"""Which pictures are watched, and how they are read."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from camtrain.data import normalize
from camtrain.preprocessing import ChannelOrder, Preprocessing
from camtrain.training import CAMDataModule
from camtrain.training.watch.pictures import Candidates, load_picture
from tests.training.conftest import small_module


def test_every_class_is_watched_in_turn() -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 20
    candidates = Candidates(range(73), labels)
    chosen = candidates.stratified(10, seed=0)
    assert [labels[i] for i in chosen] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert len(set(chosen)) == 10
    assert chosen == candidates.stratified(10, seed=0)
    assert chosen != candidates.stratified(10, seed=1)


def test_fewer_pictures_than_asked_for_are_all_watched() -> None:
    assert sorted(Candidates(range(3), [1, 0, 1]).stratified(16, seed=0)) == [0, 1, 2]


class Labelled(list[tuple[None, int]]):
    """Items that need not be read: the labels are known."""

    def __init__(self, labels: object, count: int = 6) -> None:
        super().__init__([(None, place % 2) for place in range(count)])
        self.targets = labels


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        ([(None, 2), (None, torch.zeros(3)), (None, torch.ones(3))], [2, -1, 0]),
        (Labelled([3, 4, 5, 3, 4, 5]), [3, 4, 5, 3, 4, 5]),
        (Labelled(torch.eye(6)), [0, 1, 2, 3, 4, 5]),
        (Labelled(None), [0, 1, 0, 1, 0, 1]),  # then the items are read
        (Labelled(["cat"] * 6), [0, 1, 0, 1, 0, 1]),
        (Labelled([3]), [0, 1, 0, 1, 0, 1]),
        (Subset(Labelled([3, 4, 5, 3, 4, 5]), [5, 0]), [5, 3]),
    ],
)
def test_the_first_class_of_every_picture(dataset: Sequence[object], labels: list[int]) -> None:
    assert list(Candidates.of(dataset).labels) == labels


def test_of_a_large_set_without_labels_pictures_from_all_over_are_read() -> None:
    dataset = [(None, place // 400) for place in range(1200)]
    chosen = Candidates.of(dataset).stratified(6, seed=0)
    assert [dataset[place][1] for place in chosen] == [0, 1, 2, 0, 1, 2]


def test_candidates_are_the_same_for_the_same_data() -> None:
    one, other = Labelled([3, 4, 5, 3, 4, 5]), Labelled([3, 4, 5, 3, 4, 4])
    assert Candidates.of(one).identity == Candidates.of(Labelled(one.targets)).identity
    assert Candidates.of(one).identity != Candidates.of(other).identity


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_anybody_s_pictures_are_shown_in_their_own_colours(order: ChannelOrder) -> None:
    net = small_module().net
    net.preprocessing = Preprocessing(size=(24, 32), channel_order=order)
    pixels = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8)
    watched = load_picture([(normalize(pixels, net.preprocessing), 1)], 0, net)
    assert watched is not None
    assert torch.equal(watched.pixels, pixels)
    assert watched.path == "picture 0"


def test_huge_pictures_are_watched_smaller_with_their_boxes(photographs: Path) -> None:
    Image.new("RGB", (3000, 1500)).save(photographs / "val/red/huge.png")
    with open(photographs / "boxes.csv", "a") as file:
        file.write("\nval/red/huge.png,300,150,2700,1350,red")
    data = CAMDataModule(root=photographs, size=32, workers=0)
    data.setup("validate")
    dataset = data.datasets["val"]
    place = [Path(p).name for p in dataset.source.paths].index("huge.png")
    watched = load_picture(dataset, place, small_module().net)
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
    assert load_picture(data.datasets["val"], 0, net) is not None
    assert load_picture(data.datasets["val"], 1, net) is None
