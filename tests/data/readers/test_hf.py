"""Data sets of the Hugging Face Hub, from parquet files that the tests write."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camtrain.data import ListedSource, SourceOptions, Split, make_sources
from camtrain.data.checking.check import check_data
from camtrain.errors import CamtrainError

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")

NAMES = ["cat", "dog"]
CLASS = datasets.ClassLabel(names=NAMES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library keeps goes to the test's folder, and it draws no bars."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(color: str = "red") -> dict[str, Any]:
    content = io.BytesIO()
    Image.new("RGB", (50, 30), color).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def write(
    root: Path, features: dict[str, Any] | None = None, **parts: dict[str, list[Any]]
) -> Path:
    """A parquet file of each part; features of None are left to the file."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for name, columns in parts.items():
        kinds = None if features is None else datasets.Features(features)
        data = datasets.Dataset.from_dict(columns, features=kinds)
        data.to_parquet(root / f"data/{name}-00000-of-00001.parquet")
    return root


def sources_of(root: object, **options: Any) -> dict[Split, ListedSource]:
    return make_sources("hf", SourceOptions(root=root, **options))  # type: ignore[return-value]


def pictures(labels: list[Any], **more: list[Any]) -> dict[str, list[Any]]:
    return {"img": [png() for _ in labels], "fine": labels, **more}


FEATURES = {"img": datasets.Image(), "fine": CLASS}


def test_columns_are_those_of_their_types_and_splits_those_of_the_data(tmp_path: Path) -> None:
    labels = [0, 1, 0, 1, -1]
    parts = {
        "train": pictures(labels[:4]),
        "validation": pictures([1, 0]),
        "test": pictures(labels),
    }
    write(tmp_path / "set", FEATURES, **parts)
    with pytest.warns(UserWarning, match="1 pictures of .*set have no class, and are left out"):
        sources = sources_of(tmp_path / "set")
    assert {split: source.labels for split, source in sources.items()} == {
        **{"train": [0, 1, 0, 1], "val": [1, 0]},
        "test": [0, 1, 0, 1],
    }
    assert sources["val"].class_names == ("cat", "dog")
    assert sources["val"].paths[1] == str(tmp_path / "set/validation/0000001")
    copied = pickle.loads(pickle.dumps(sources["test"]))  # as worker processes get it
    assert copied.read(3).image[:, 0, 0].tolist() == [255, 0, 0]
    assert copied.read(3).size_hw == (30, 50)
    assert copied.boxes(3).shape == (0, 4)


@pytest.mark.parametrize("as_records", [True, False])
def test_objects_have_boxes_of_the_pictures_class(as_records: bool, tmp_path: Path) -> None:
    box, floats = [3.2, 4.0, 7.0, 2.0], datasets.List(datasets.Value("float32"), length=4)
    fields = {"bbox": floats, "category": CLASS}
    records = [{"bbox": box, "category": 1}, {"bbox": [0, 0, 5, 5], "category": 0}]
    lists = {"bbox": [box, [0, 0, 5, 5]], "category": [1, 0]}
    empty: Any = [] if as_records else {"bbox": [], "category": []}
    kind = datasets.List(fields) if as_records else {n: datasets.List(f) for n, f in fields.items()}
    objects = [records if as_records else lists, empty] * 2
    write(
        tmp_path / "set",
        {**FEATURES, "objects": kind},
        train=pictures([1, 1, 0, 0], objects=objects),
    )
    train = sources_of(tmp_path / "set", val_fraction=0)["train"]
    boxes = [train.boxes(row).tolist() for row in range(4)]
    assert boxes == [[[3, 4, 10, 6]], [], [[0, 0, 5, 5]], []]


OBJECTS = {
    "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
    "category": datasets.List(CLASS),
}


@pytest.mark.parametrize("box", [None, [1, None, 5, 5], [1, 2, 3]])
def test_a_box_that_lacks_numbers_is_refused(box: object, tmp_path: Path) -> None:
    objects = [{"bbox": [box], "category": [0]}, {"bbox": [], "category": []}]
    columns = pictures([0, 1], objects=objects)
    write(tmp_path / "set", {**FEATURES, "objects": OBJECTS}, train=columns)
    with pytest.raises(CamtrainError, match="expected x, y, width, height in the bbox of train/0"):
        sources_of(tmp_path / "set", val_fraction=0)


def test_a_box_without_a_class_is_one_of_its_picture(tmp_path: Path) -> None:
    """Also where the number says that there is none, which is no last class."""
    boxes = [[0, 0, 5, 5], [1, 1, 6, 6]]
    objects = [{"bbox": boxes, "category": categories} for categories in ([-1, None], [1, 0])]
    columns = pictures([0, 1, 1], objects=[*objects, {"bbox": None, "category": None}])
    write(tmp_path / "set", {**FEATURES, "objects": OBJECTS}, train=columns)
    train = sources_of(tmp_path / "set", val_fraction=0)["train"]
    assert [len(train.boxes(row)) for row in range(3)] == [2, 1, 0]


def test_a_picture_that_is_missing_is_a_damaged_one(tmp_path: Path) -> None:
    columns = pictures([0, 1, 1])
    columns["img"][1] = None
    write(tmp_path / "set", FEATURES, train=columns)
    options = SourceOptions(root=tmp_path / "set", val_fraction=0)
    report = check_data("hf", options, processes=0)
    assert list(report.excluded()) == ["train/0000001"]


def test_columns_that_are_named_may_be_of_other_types(tmp_path: Path) -> None:
    """Texts, numbers and several labels; pictures that the file does not call so."""
    columns = {
        "a": [png("blue") for _ in range(4)],
        "b": [png("red") for _ in range(4)],
        "text": ["x", "y", "x", "y"],
        "number": [7, 8, 7, 10],
        "tags": [["x", "y"], [], ["x"], ["z"]],
    }
    write(tmp_path / "set", train=columns)
    options = {"path_column": "b", "val_fraction": 0}
    train = sources_of(tmp_path / "set", label_column="text", **options)["train"]
    assert train.labels == [0, 1, 0, 1]
    assert train.read(0).image[:, 0, 0].tolist() == [255, 0, 0]
    train = sources_of(tmp_path / "set", label_column="number", **options)["train"]
    assert train.class_names == ("7", "8", "10")
    train = sources_of(tmp_path / "set", label_column="tags", **options)["train"]
    assert train.labels.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "test", "unlabelled"), {"train": 18, "val": 2, "test": 20}),
        (("everything",), {"train": 14, "val": 4, "test": 2}),  # divided
    ],
)
def test_a_name_of_the_hub_is_asked_for_with_its_configuration(
    names: tuple[str, ...],
    expected: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = datasets.Features(FEATURES)
    part = datasets.Dataset.from_dict(pictures([0, 1] * 10), features=kinds)
    asked: list[tuple[object, ...]] = []

    def load(*args: object) -> dict[str, Any]:
        asked.append(args)
        return dict.fromkeys(names, part)

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.chdir(tmp_path)
    fractions = {"val_fraction": expected["val"] / 20, "test_fraction": 0.1}
    sources = sources_of("ORG/NAME:small", **fractions)
    assert {split: len(source) for split, source in sources.items()} == expected
    sources_of("ORG/NAME")
    assert asked == [("ORG/NAME", "small"), ("ORG/NAME", None)]


def test_check_data_reads_it_to_the_end(tmp_path: Path) -> None:
    columns = pictures([0, 1])
    columns["img"][1] = {"bytes": b"no picture", "path": None}
    write(tmp_path / "set", FEATURES, train=pictures([0, 1]), test=columns)
    options = SourceOptions(root=tmp_path / "set", val_fraction=0)
    report = check_data("hf", options, processes=0)
    assert [finding.kind for finding in report.errors] == ["unreadable"]
    assert list(report.excluded()) == ["test/0000001"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda root: write(root, {**FEATURES, "b": CLASS}, train=pictures([0, 1], b=[0, 1])),
            {},
            "the columns img, fine, b, of which fine, b may be meant by --data.label_column; name",
        ),
        (
            lambda root: write(root, train={"x": [1, 2], "label": [0, 1]}),
            {},
            "of which none may be meant by --data.path_column; name one",
        ),
        (
            lambda root: write(root, FEATURES, train=pictures([0, 1])),
            {"label_column": "coarse"},
            "of which fine may be meant by --data.label_column; got 'coarse'",
        ),
        (
            lambda root: write(root, FEATURES, train=pictures([0, 1])),
            {"objects_column": "boxes"},
            "of which none may be meant by --data.objects_column; got 'boxes'",
        ),
        (
            lambda root: write(root, FEATURES, train=pictures([-1, -1])),
            {},
            "must hold classes, and no picture has one",
        ),
        (
            lambda root: root.mkdir(),
            {},
            r"The data set .*set cannot be read \(.*; --data.root must",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    make: Callable[[Path], object], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "set")
    with pytest.raises(CamtrainError, match=message):
        sources_of(tmp_path / "set", **options)
