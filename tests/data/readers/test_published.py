"""Data sets in the layouts that they are published in: Places, CUB, INRIA person, MNIST."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camtrain.data import ListedSource, SourceOptions, Split, make_sources
from camtrain.errors import CamtrainError
from tests.data.trees import idx, picture, text

Make = Callable[[Path], object]


def sources_of(name: str, root: Path, **options: Any) -> dict[Split, ListedSource]:
    return make_sources(name, SourceOptions(root=root, **options))


def below(root: Path, source: ListedSource) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in source.paths]


PLACES = [
    "/a/airfield 0",
    "/a/apartment_building/outdoor 1",
    "/b/bazaar/indoor 2",
]


def places365(root: Path, lists: str = "", train: str = "data_256", val: str = "val_256") -> None:
    text(root / lists / "categories_places365.txt", *PLACES)
    pictures = ["/a/airfield/00000001.jpg 0", "/a/apartment_building/outdoor/00000001.jpg 1"]
    pictures += ["/b/bazaar/indoor/00000009.jpg 2"]
    text(root / lists / "places365_train_standard.txt", *pictures)
    names = [f"Places365_val_0000000{number}.jpg" for number in range(3)]
    text(root / lists / "places365_val.txt", *(f"{name} {n}" for n, name in enumerate(names)))
    for line in pictures:
        picture(root / train / line.split()[0].lstrip("/"))
    for name in names:
        picture(root / val / name)


@pytest.mark.parametrize(
    ("lists", "train", "val"),
    [
        ("", "data_256", "val_256"),
        ("", "data_256_standard", "val_256"),
        ("filelist_places365-standard", "data_large", "val_large"),
    ],
)
def test_places365(lists: str, train: str, val: str, tmp_path: Path) -> None:
    places365(tmp_path, lists, train, val)
    sources = sources_of("places365", tmp_path)
    assert list(sources) == ["train", "val"]
    assert sources["val"].class_names == (
        "airfield",
        "apartment_building/outdoor",
        "bazaar/indoor",
    )
    assert sources["train"].labels == sources["val"].labels == [0, 1, 2]
    assert (
        below(tmp_path, sources["train"])[1] == f"{train}/a/apartment_building/outdoor/00000001.jpg"
    )
    assert below(tmp_path, sources["val"])[2] == f"{val}/Places365_val_00000002.jpg"
    assert sources["train"].read(2).image.shape == (3, 30, 50)


def test_places365_without_the_list_of_val_splits_val_off_train(tmp_path: Path) -> None:
    places365(tmp_path)
    (tmp_path / "places365_val.txt").unlink()
    lines = [f"/a/airfield/0000000{n}.jpg 0" for n in range(1, 9)]
    lines += [f"/b/bazaar/indoor/0000000{n}.jpg 2" for n in range(1, 9)]
    text(tmp_path / "places365_train_standard.txt", *lines)
    with pytest.warns(UserWarning, match="no image of the class apartment_building/outdoor"):
        sources = sources_of("places365", tmp_path)
    assert {split: len(source) for split, source in sources.items()} == {"train": 14, "val": 2}


def places205(root: Path) -> None:
    lists = root / "trainvalsplit_places205"
    text(lists / "categoryIndex_places205.csv", "/a/abbey 0", "/i/ice_skating_rink/outdoor 1")
    images = root / "data" / "vision" / "torralba" / "deeplearning" / "images256"
    names = ["a/abbey/gsun_0003.jpg", "i/ice_skating_rink/outdoor/gsun_00ff.jpg"]
    for split, order in (("train", (0, 1)), ("val", (1,))):
        text(lists / f"{split}_places205.csv", *(f"{names[n]} {n}" for n in order))
    for name in names:
        picture(images / name)


@pytest.mark.filterwarnings("ignore:The val split")
def test_places205(tmp_path: Path) -> None:
    places205(tmp_path)
    sources = sources_of("places205", tmp_path)
    assert sources["train"].class_names == ("abbey", "ice_skating_rink/outdoor")
    assert sources["train"].labels == [0, 1]
    assert sources["val"].labels == [1]
    assert sources["val"].paths[0].endswith("images256/i/ice_skating_rink/outdoor/gsun_00ff.jpg")
    assert sources["val"].read(0).image.shape == (3, 30, 50)


CUB_IMAGES = [
    "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
    "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0082_524.jpg",
]


def cub(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    text(folder / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")
    text(folder / "images.txt", *(f"{n} {path}" for n, path in enumerate(CUB_IMAGES, start=1)))
    text(folder / "image_class_labels.txt", "1 1", "2 1", "4 2", "3 2")
    text(folder / "train_test_split.txt", "1 0", "2 1", "3 1", "4 0")
    boxes = ["1 60.0 27.0 325.0 304.0", "2 139.0 30.0 153.0 264.0", "3 1.5 2.0 0.2 10.0"]
    text(folder / "bounding_boxes.txt", *boxes, "4 0.0 112.0 388.0 186.0")
    for path in CUB_IMAGES:
        picture(folder / "images" / path)
    return folder


def test_cub(tmp_path: Path) -> None:
    folder = cub(tmp_path)
    for root in (tmp_path, folder):
        sources = sources_of("cub", root)
        assert list(sources) == ["train", "test"]  # a class of one picture has none for val
        assert sources["test"].class_names == ("Black footed Albatross", "Laysan Albatross")
        assert below(folder / "images", sources["test"]) == [CUB_IMAGES[0], CUB_IMAGES[3]]
        assert sources["test"].labels == sources["train"].labels == [0, 1]
    # As in the WSOL benchmark's list of the same picture: 60,27,385,331.
    assert sources["test"].boxes(0).tolist() == [[60, 27, 385, 331]]
    assert sources["train"].boxes(1).tolist() == [[2, 2, 3, 12]]  # at least a pixel
    assert sources["test"].read(1).boxes_xyxy.tolist() == [[0, 112, 388, 298]]


INRIA = """# PASCAL Annotation Version 1.00

Image filename : "Train/pos/crop001011.png"
Image size (X x Y x C) : 1124 x 826 x 3
Database : "The INRIA Rhône-Alpes Annotated Person Database"
Objects with ground truth : 2 { "PASperson" "PASperson" }
# Top left pixel co-ordinates : (0, 0)
Center point on object 1 "PASperson" (X, Y) : (344, 235)
Bounding box for object 1 "PASperson" (Xmin, Ymin) - (Xmax, Ymax) : (164, 176) - (433, 784)

Bounding box for object 2 "PASperson" (Xmin, Ymin) - (Xmax, Ymax) : (530, 167) - (760, 773)"""


def inria(root: Path) -> Path:
    folder = root / "INRIAPerson"
    for part, count in (("Train", 10), ("Test", 3)):
        for number in range(count):
            picture(folder / part / "pos" / f"crop{number:06d}.png")
            picture(folder / part / "neg" / f"no_person__no_bike_{number:03d}.jpg")
        text(folder / part / "pos.lst", f"{part}/pos/crop000000.png")
    picture(folder / "train_64x128_H96" / "pos" / "window.png")
    text(folder / "Test/annotations/crop000001.txt", *INRIA.splitlines(), encoding="latin-1")
    return folder


def test_inria(tmp_path: Path) -> None:
    folder = inria(tmp_path)
    for root in (tmp_path, folder):
        sources = sources_of("inria", root, val_fraction=0.2)
        assert {split: len(source) for split, source in sources.items()} == {
            "train": 16,
            "val": 4,
            "test": 6,
        }
    test = sources["test"]
    assert test.class_names == ("not_person", "person")
    person = test.paths.index(str(folder / "Test" / "pos" / "crop000001.png"))
    assert test.labels[person] == 1
    assert test.boxes(person).tolist() == [[164, 176, 434, 785], [530, 167, 761, 774]]
    assert all(
        not len(test.boxes(index)) and (label == 1) == ("/pos/" in path)
        for index, (path, label) in enumerate(zip(test.paths, test.labels, strict=True))
        if index != person
    )


def test_inria_of_two_folders_is_divided(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / "Pos" / f"{number}.png")
        picture(tmp_path / "Neg" / f"{number}.png")
    assert list(sources_of("inria", tmp_path)) == ["train", "val", "test"]


def mnist(root: Path, ending: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 10)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 5, 7), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, values in arrays.items():
        idx(root / f"{name}{ending}", values)
    return arrays


@pytest.mark.parametrize(
    ("folder", "ending"), [("", ""), ("MNIST/raw", ""), ("raw", ".gz"), ("", ".gz")]
)
def test_mnist_from_local_files(folder: str, ending: str, tmp_path: Path) -> None:
    arrays = mnist(tmp_path / folder, ending)
    sources = sources_of("mnist", tmp_path, val_fraction=0.25)
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 30,
        "val": 10,
        "test": 10,
    }
    assert sorted(sources["val"].labels) == list(range(10))
    assert sources["test"].class_names == tuple("0123456789")
    for index in (0, 9):
        found = sources["test"].read(index)
        assert found.image[0].tolist() == arrays["t10k-images-idx3-ubyte"][index].tolist()
        assert found.image.shape == (1, 5, 7)
        assert found.label == index
        assert found.path == sources["test"].paths[index]
        assert found.boxes_xyxy.shape == (0, 4)
    assert len({*sources["train"].paths, *sources["val"].paths, *sources["test"].paths}) == 50


def test_mnist_is_downloaded_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are those of the test, so that no network is needed."""

    def download(root: Path, *, train: bool, download: bool) -> None:
        assert download
        mnist(root / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    assert len(sources_of("mnist", tmp_path)["test"]) == 10


def test_without_a_network_mnist_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", fail)
    with pytest.raises(CamtrainError, match=r"\(no network\); put train-images-idx3-ubyte, train"):
        sources_of("mnist", tmp_path)


def damaged(make: Make, file: str, *lines: str) -> Make:
    def both(root: Path) -> None:
        make(root)
        text(root / file, *lines)

    return both


def without(make: Make, file: str) -> Make:
    def both(root: Path) -> None:
        make(root)
        (root / file).unlink()

    return both


def mnist_of(file: str, content: bytes) -> Make:
    def both(root: Path) -> None:
        mnist(root)
        (root / file).unlink(missing_ok=True)
        (root / file).write_bytes(content)

    return both


def fewer_labels(root: Path) -> None:
    mnist(root)
    idx(root / "train-labels-idx1-ubyte", np.zeros(39))


BAD: list[tuple[str, Make, str]] = [
    ("places365", lambda root: None, r"lacks categories_places365\.txt \(or filelist_places365"),
    ("places365", without(places365, "places365_train_standard.txt"), "the list of the train pict"),
    (
        "places365",
        without(places365, "data_256/a/airfield/00000001.jpg"),
        r"places365_train_standard\.txt names .*00000001\.jpg first, which does not exist",
    ),
    (
        "places365",
        damaged(places365, "places365_val.txt", "a.jpg 0", "b.jpg 3"),
        r"places365_val\.txt, line 2: expected a whole number from 0 to 2, got '3'",
    ),
    (
        "places365",
        damaged(places365, "places365_val.txt", "a.jpg 0", "b.jpg"),
        r"line 2: expected path label, got 'b\.jpg'; correct the line",
    ),
    ("places365", damaged(places365, "places365_val.txt"), r"val\.txt must have lines .* is empty"),
    (
        "places365",
        damaged(places365, "categories_places365.txt", "/a/airfield 0", "/b/bazaar 2"),
        "must number its 2 classes from 0 without gaps",
    ),
    (
        "places205",
        without(places205, "trainvalsplit_places205/categoryIndex_places205.csv"),
        r"lacks categoryIndex_places205\.csv .*the list of the classes",
    ),
    ("cub", lambda root: None, r"lacks images\.txt, the list image_id path of CUB"),
    ("cub", without(cub, "CUB_200_2011/bounding_boxes.txt"), r"lacks bounding_boxes\.txt"),
    (
        "cub",
        damaged(cub, "CUB_200_2011/image_class_labels.txt", "1 1", "2 1"),
        r"image_class_labels\.txt must have a line for every picture .* lacks 2 of them, fir.* 3",
    ),
    (
        "cub",
        damaged(cub, "CUB_200_2011/image_class_labels.txt", "1 0", "2 1", "3 2", "4 2"),
        r"image_class_labels\.txt, line 1: expected a whole number from 1 to 2, got '0'",
    ),
    (
        "cub",
        damaged(
            cub, "CUB_200_2011/bounding_boxes.txt", *(f"{n} 1.0 2.0 x 4.0" for n in range(1, 5))
        ),
        r"bounding_boxes\.txt, line 1: expected numbers, got 1\.0, 2\.0, x, 4\.0",
    ),
    ("inria", lambda root: None, "must hold pictures in Train/pos, Train/neg"),
    ("mnist", without(mnist, "t10k-labels-idx1-ubyte"), r"lacks t10k-labels-idx1-ubyte or .*\.gz"),
    ("mnist", fewer_labels, "as many labels as pictures, got 39 and 40"),
    (
        "mnist",
        mnist_of("train-images-idx3-ubyte", bytes([0, 0, 8, 3]) + bytes(9)),
        "must be an idx file of 3 dimensions of bytes, but begins with 00000803 and is 13 bytes",
    ),
    (
        "mnist",
        mnist_of("train-images-idx3-ubyte", b"<html>"),
        "begins with 3c68746d and is 6 bytes",
    ),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD)
def test_damaged_data_sets_get_one_clear_sentence(
    name: str, make: Make, message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(CamtrainError, match=message) as caught:
        sources_of(name, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_packed_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    mnist(tmp_path, ".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CamtrainError, match=r"images-idx3-ubyte\.gz cannot be unpacked"):
        sources_of("mnist", tmp_path)
