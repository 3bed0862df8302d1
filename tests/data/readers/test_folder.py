"""Image folders: splits, classes, errors."""

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.data import ImageFolder, SourceOptions, Split, make_sources, tree
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError


def fill(root: Path, files: Sequence[str]) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        if file.endswith("/"):
            (root / file).mkdir(exist_ok=True)
        else:
            Image.new("RGB", (9, 5), "red").save(root / file, format="PNG")
    return root


def flat(root: Path, counts: dict[str, int]) -> Path:
    return fill(
        root, [f"{name}/{i:03d}.png" for name, count in counts.items() for i in range(count)]
    )


def available_splits(root: Path, **options: float) -> tuple[Split, ...]:
    return tuple(make_sources("folder", SourceOptions(root=root, **options)))


def names_of(source: ImageFolder) -> list[str]:
    """Paths relative to the data folder."""
    return [Path(path).relative_to(source.root).as_posix() for path in source.paths]


THREE_SPLITS = [f"{split}/{name}/1.png" for split in ("train", "val", "test") for name in "ab"]


def test_splits_on_disk_are_read_with_labels_boxes_and_paths(tmp_path: Path) -> None:
    root = fill(tmp_path, [*THREE_SPLITS, "train/b/0.JPG", "masks/train/1.png"])
    (root / "boxes.csv").write_text("path,xmin,ymin,xmax,ymax,class\ntrain/b/1.png,1,2,3,4,b\n")
    assert available_splits(root) == ("train", "val", "test")
    train = ImageFolder(root, "train")
    assert train.class_names == ("a", "b")
    assert names_of(train) == ["train/a/1.png", "train/b/0.JPG", "train/b/1.png"]
    assert train.labels == [0, 1, 1]
    picture = train.read(2)
    assert picture.image.shape == (3, 5, 9)
    assert picture.label == 1
    assert picture.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    assert picture.path == train.paths[2] == str(root / "train/b/1.png")
    assert torch.equal(train.boxes(2), picture.boxes_xyxy)
    assert train.read(0).boxes_xyxy.shape == train.boxes(0).shape == (0, 4)


def test_a_flat_folder_is_divided_stratified_disjoint_and_by_the_seed(tmp_path: Path) -> None:
    root = flat(tmp_path, {"a": 40, "b": 20})
    assert available_splits(root) == ("train", "val", "test")
    parts = {split: ImageFolder(root, split) for split in available_splits(root)}
    assert {
        split: (part.labels.count(0), part.labels.count(1)) for split, part in parts.items()
    } == {
        "train": (28, 14),
        "val": (6, 3),
        "test": (6, 3),
    }
    assert all(
        not set(one.paths) & set(other.paths) for one, other in combinations(parts.values(), 2)
    )
    assert ImageFolder(root, "val").paths == parts["val"].paths
    assert ImageFolder(root, "val", seed=1).paths != parts["val"].paths
    assert available_splits(root, test_fraction=0.0) == ("train", "val")


def test_val_is_split_off_train_where_it_is_missing(tmp_path: Path) -> None:
    root = flat(tmp_path / "train", {"a": 10, "b": 10}).parent
    fill(root, ["test/a/1.png", "test/b/1.png"])
    assert available_splits(root) == ("train", "val", "test")
    train, val = (ImageFolder(root, split, val_fraction=0.3) for split in ("train", "val"))
    assert (len(train), len(val)) == (14, 6)
    assert not set(train.paths) & set(val.paths)
    assert names_of(ImageFolder(root, "test")) == ["test/a/1.png", "test/b/1.png"]


def test_a_test_split_alone_can_be_evaluated(tmp_path: Path) -> None:
    root = fill(tmp_path, ["test/b/1.png", "test/c/1.png"])
    assert available_splits(root) == ("test",)
    assert ImageFolder(root, "test").class_names == ("b", "c")
    given = ImageFolder(root, "test", class_names=["a", "b", "c"])
    assert given.class_names == ("a", "b", "c")
    assert given.labels == [1, 2]
    with pytest.raises(CamtrainFileNotFoundError, match="has no train split, it has test; add"):
        ImageFolder(root, "train")


@pytest.mark.parametrize(
    ("names", "ordered"),
    [(["10", "9", "1"], ("1", "9", "10")), (["10", "9", "b"], ("10", "9", "b"))],
)
def test_purely_numeric_class_names_sort_as_numbers(
    tmp_path: Path, names: list[str], ordered: tuple[str, ...]
) -> None:
    assert ImageFolder(flat(tmp_path, dict.fromkeys(names, 3)), "train").class_names == ordered


def test_numbers_as_class_names_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = flat(tmp_path, dict.fromkeys(["10", "9", "200"], 3))
    for _ in range(2):
        assert ImageFolder(root, "train").class_names == ("9", "10", "200")
    notices = [one.message for one in caplog.records]
    assert notices == ["The class names are numbers and sorted as such: 9, 10, 200."]


def test_folders_in_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    root = fill(tmp_path, [*THREE_SPLITS, "train/a/in/deep/2.png", "train/a/.in/3.png"])
    assert names_of(ImageFolder(root, "train")) == [
        "train/a/1.png",
        "train/a/in/deep/2.png",
        "train/b/1.png",
    ]
    assert ImageFolder(root, "train").labels == [0, 0, 1]


def test_pictures_outside_the_class_folders_are_said(tmp_path: Path) -> None:
    root = fill(tmp_path, [*THREE_SPLITS, "train/1.png", "val/2.png"])
    with pytest.warns(UserWarning, match=r"2 pictures lie in a split of .* in no class folder"):
        assert len(ImageFolder(root, "train")) == 2


# Folders: the splits, or what is asked. Before: two classes, Train and Val; the same; test was left
# out without a word; valid was left out with a warning; val was taken; the classes differed.
SPELLINGS: dict[str, object] = {
    "Train Val": ["train", "val"],
    "training validation TESTING": ["train", "val", "test"],
    "train Test": ["train", "val", "test"],
    "train valid": ["train", "val"],
    "Training": ["train", "val"],
    "train val validation": "folders train, val, validation, .* two are of the same split",
    "Train Val:c": "where each holds the same class folders, but c is not in each; name splits",
    "train Test:c": "but c is not in each; name splits train, val and test, and classes otherwise",
    "valid invalid": ["train", "val", "test"],  # two classes
}


@pytest.mark.parametrize("folders", SPELLINGS)
def test_splits_are_known_by_their_usual_spellings(folders: str, tmp_path: Path) -> None:
    for folder in folders.split():
        top, _, another = folder.partition(":")
        flat(tmp_path / top, dict.fromkeys(["a", "b", *([another] if another else [])], 3))
    expected = SPELLINGS[folders]
    if isinstance(expected, str):
        with pytest.raises(CamtrainValueError, match=expected):
            available_splits(tmp_path)
        return
    assert list(available_splits(tmp_path)) == expected
    classes = ("invalid", "valid") if "invalid" in folders else ("a", "b")
    assert ImageFolder(tmp_path, "train").class_names == classes


def test_a_test_folder_without_classes_is_said(tmp_path: Path) -> None:
    """Before, its pictures were left out without a word."""
    root = fill(tmp_path, ["train/a/1.png", "train/b/1.png", "Test/1.png"])
    with pytest.warns(UserWarning, match="Test is left out, since it holds no class folders"):
        available_splits(root)


def test_a_folder_of_dangling_links_says_so(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").symlink_to("/nowhere/1.jpg")
    sentence = r"holds no images, but 2 links to no file \(1\.jpg, 1\.jpg\); expected"
    with pytest.raises(CamtrainFileNotFoundError, match=sentence):  # before: holds no images
        available_splits(tmp_path)


def test_all_splits_come_from_one_look_at_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    really = tree._scan_disk

    def note(root: Path, tops: Sequence[str]) -> object:
        looked.append(root)
        return really(root, tops)

    monkeypatch.setattr(tree, "_scan_disk", note)
    sources = make_sources("folder", SourceOptions(root=fill(tmp_path, THREE_SPLITS)))
    assert list(sources) == ["train", "val", "test"]
    assert looked == [tmp_path]


def test_masks_lie_beside_the_splits(tmp_path: Path) -> None:
    root = fill(tmp_path, THREE_SPLITS)
    pixels = np.zeros((5, 9), np.uint8)
    pixels[1:3, 2:8] = 255
    (root / "masks" / "test" / "b").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "masks" / "test" / "b" / "1.png")
    test = ImageFolder(root, "test")
    assert test.read(0).mask is None
    assert test.read(1).mask.tolist() == (pixels > 0).astype(int).tolist()
    assert ImageFolder(root, "train").read(1).mask is None


def test_hidden_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    root = fill(tmp_path, [*THREE_SPLITS, "train/a/.2.png", "train/.cache/1.png", "val/.b/1.png"])
    (root / "train/a/notes.txt").write_text("no picture")
    assert names_of(ImageFolder(root, "train")) == ["train/a/1.png", "train/b/1.png"]


def test_a_class_named_like_a_split_is_a_class(tmp_path: Path) -> None:
    """root/train/*.png is a folder of trains, not a split."""
    assert ImageFolder(flat(tmp_path, {"boat": 4, "train": 4}), "train").class_names == (
        "boat",
        "train",
    )


BAD: list[tuple[list[str], Split, type[CamtrainError], str]] = [
    ([], "train", CamtrainFileNotFoundError, "holds no images; expected train/CLASS"),
    (["train/a/", "train/b/"], "train", CamtrainFileNotFoundError, "holds no images"),
    (["1.png"], "train", CamtrainFileNotFoundError, "holds no images"),
    ([*THREE_SPLITS, "train/c/"], "train", CamtrainValueError, "class c has no image in the train"),
    (["a/1.png", "b/1.png", "c/"], "train", CamtrainValueError, "class c has no image"),
    (
        [*THREE_SPLITS, "val/x/1.png"],
        "val",
        CamtrainValueError,
        "class x, unknown to train, which has a, b",
    ),
    ([*THREE_SPLITS, "test/x/1.png"], "test", CamtrainValueError, "test split of .* class x"),
    (["train/a/1.png", "val/a/1.png"], "val", CamtrainValueError, "at least 2 classes.*one, 'a'"),
    (
        ["train/a/1.png", "train/b/1.png", "val/a/"],
        "val",
        CamtrainFileNotFoundError,
        "The val split",
    ),
    (["a/1.png", "b/1.png"], "val", CamtrainFileNotFoundError, "no val split, it has train"),
]


@pytest.mark.parametrize(("files", "split", "error", "message"), BAD)
def test_bad_folders_get_one_clear_sentence(
    tmp_path: Path, files: list[str], split: Split, error: type[CamtrainError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        ImageFolder(fill(tmp_path, files), split)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = re.escape(str(tmp_path / "nowhere"))
    with pytest.raises(
        CamtrainFileNotFoundError, match=f"{where} does not exist; point --data.root"
    ):
        ImageFolder("nowhere", "train")
    with pytest.raises(CamtrainFileNotFoundError, match=where):
        available_splits("nowhere")


def test_a_class_missing_from_val_is_a_warning(tmp_path: Path) -> None:
    root = fill(tmp_path, [*THREE_SPLITS, "train/c/1.png"])
    with pytest.warns(UserWarning, match="has no image of the class c") as caught:
        assert ImageFolder(root, "val").class_names == ("a", "b", "c")
    assert [str(one.message).split(" split")[0] for one in caught] == ["The val", "The test"]


def test_a_given_class_list_must_hold_every_class_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(CamtrainValueError, match="class b, unknown to class_names, which has a, z"):
        ImageFolder(fill(tmp_path, THREE_SPLITS), "test", class_names=["a", "z"])


SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the photographs of {SHARED}")
@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("animals3", {"train": 330, "val": 81, "test": 135}, 3),
        ("person", {"train": 128, "val": 36, "test": 68}, 2),
        ("imagenet_val300", {"test": 300}, 261),
    ],
)
def test_the_shared_photographs(name: str, sizes: dict[Split, int], classes: int) -> None:
    assert available_splits(SHARED / name) == tuple(sizes)
    for split, size in sizes.items():
        folder = ImageFolder(SHARED / name, split)
        assert (len(folder), len(folder.class_names)) == (size, classes)
    picture = folder.read(len(folder) - 1)
    height, width = picture.image.shape[-2:]
    assert len(picture.boxes_xyxy) >= 1
    assert (picture.boxes_xyxy <= picture.boxes_xyxy.new_tensor([width, height] * 2)).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the photographs of {SHARED}")
def test_the_masks_of_the_shared_people_lie_in_their_boxes() -> None:
    folder = ImageFolder(SHARED / "person", "test")
    path = SHARED / "person" / "test" / "person" / "train2017-000000000036.jpg"
    picture = folder.read(folder.paths.index(str(path)))
    assert picture.mask.shape == picture.image.shape[1:]
    is_inside = torch.zeros_like(picture.mask)
    for x0, y0, x1, y1 in picture.boxes_xyxy.tolist():
        is_inside[y0:y1, x0:x1] = 1
    assert picture.mask.sum() > 1000
    assert (picture.mask * is_inside).sum() > 0.99 * picture.mask.sum()
