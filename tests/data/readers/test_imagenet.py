"""ImageNet in every layout of it that is met."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from camtrain.data import ListedSource, SourceOptions, Split, make_sources
from camtrain.errors import CamtrainError
from tests.data.trees import picture, text, xml

FISH, BIRD, CRANE = "n01440764", "n02012849", "n03126707"  # sorted by WNID
# The devkit counts in an order of its own, from 1, and lists inner synsets behind the leaves.
DEVKIT = [(1, CRANE, "crane"), (2, FISH, "tench, Tinca tinca"), (3, BIRD, "crane")]
NAMES = ("tench", f"crane ({BIRD})", f"crane ({CRANE})")
VAL = [BIRD, CRANE, FISH, BIRD]  # of ILSVRC2012_val_00000001 and so on


def sources_of(root: Path, **options: object) -> dict[Split, ListedSource]:
    return make_sources("imagenet", SourceOptions(root=root, **options))


def train(root: Path) -> None:
    for wnid in (FISH, BIRD, CRANE):
        for number in (2, 10):
            picture(root / "train" / wnid / f"{wnid}_{number}.JPEG")


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def flat_val(root: Path) -> None:
    for number in range(1, len(VAL) + 1):
        picture(root / "val" / f"{val_name(number)}.JPEG")


def words(root: Path) -> None:
    text(root / "synset_words.txt", *(f"{wnid} {name}" for _, wnid, name in DEVKIT))


def meta(folder: Path, leaves: Sequence[tuple[int, str, str]] = DEVKIT) -> None:
    """``meta.mat`` as MATLAB writes it: a struct array of synsets, (n, 1)."""
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object)]
    synsets = np.zeros((len(leaves) + 1, 1), dtype=[*kinds, ("num_children", object)])
    inner = (len(leaves) + 1, "n00001740", "entity")
    for row, (number, wnid, name) in enumerate([*leaves, inner]):
        children = 0.0 if row < len(leaves) else 2.0
        synsets[row, 0] = (float(number), wnid, name, "a thing", children)
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "meta.mat", {"synsets": synsets})


def truth_of_devkit(root: Path) -> None:
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    meta(folder)
    number = {wnid: str(place) for place, wnid, _ in DEVKIT}
    text(folder / "ILSVRC2012_validation_ground_truth.txt", *(number[wnid] for wnid in VAL))


def truth_by_place(root: Path) -> None:
    """Numbers of ``val.txt`` are places in the sorted WNIDs, in any order of pictures."""
    words(root)
    place = {wnid: n for n, wnid in enumerate(sorted([FISH, BIRD, CRANE]))}
    lines = [f"{val_name(n)}.JPEG {place[wnid]}" for n, wnid in enumerate(VAL, start=1)]
    text(root / "val.txt", *reversed(lines))


def truth_by_wnid(root: Path) -> None:
    words(root)
    lines = [f"val/{val_name(n)}.JPEG {wnid}" for n, wnid in enumerate(VAL, start=1)]
    text(root / "val_list.txt", *lines)


def truth_by_line(root: Path) -> None:
    words(root)
    text(root / "imagenet_2012_validation_synset_labels.txt", *VAL)


def truth_of_kaggle(root: Path) -> None:
    text(root / "LOC_synset_mapping.txt", *(f"{wnid} {name}" for _, wnid, name in DEVKIT))
    lines = [f"{val_name(n)},{wnid} 1 2 30 20 " for n, wnid in enumerate(VAL, start=1)]
    text(root / "LOC_val_solution.csv", "ImageId,PredictionString", *reversed(lines))


@pytest.mark.parametrize(
    "truth", [truth_of_devkit, truth_by_place, truth_by_wnid, truth_by_line, truth_of_kaggle]
)
def test_a_flat_val_gets_its_classes_from_a_list(
    truth: Callable[[Path], None], tmp_path: Path
) -> None:
    train(tmp_path)
    flat_val(tmp_path)
    truth(tmp_path)
    sources = sources_of(tmp_path)
    assert list(sources) == ["train", "val"]
    assert sources["val"].class_names == sources["train"].class_names == NAMES
    assert sources["train"].labels == [0, 0, 1, 1, 2, 2]
    assert sources["val"].labels == [1, 2, 0, 1]
    assert [Path(path).stem for path in sources["val"].paths] == [val_name(n) for n in (1, 2, 3, 4)]
    assert sources["val"].read(0).image.shape == (3, 30, 50)


def test_val_in_class_folders_needs_no_list(tmp_path: Path) -> None:
    train(tmp_path)
    for number, wnid in enumerate(VAL, start=1):
        picture(tmp_path / "val" / wnid / f"{val_name(number)}.JPEG")
    sources = sources_of(tmp_path)
    assert sources["val"].class_names == (FISH, BIRD, CRANE)
    assert sources["val"].labels == [0, 1, 1, 2]


def test_the_layout_of_kaggle(tmp_path: Path) -> None:
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    train(data)
    flat_val(data)
    picture(data / "test" / "ILSVRC2012_test_00000001.JPEG")  # without a class
    truth_of_kaggle(tmp_path)
    # The numbers of this one are those of the lines, not classes.
    text(tmp_path / "ILSVRC/ImageSets/CLS-LOC/val.txt", f"{val_name(1)} 1", f"{val_name(2)} 2")
    sources = sources_of(tmp_path)
    assert {split: len(source) for split, source in sources.items()} == {"train": 6, "val": 4}
    assert sources["val"].labels == [1, 2, 0, 1]
    assert sources["val"].boxes(0).tolist() == [[1, 2, 31, 21]]  # of LOC_val_solution.csv
    assert sources["train"].boxes(0).shape == (0, 4)
    folder = tmp_path / "ILSVRC" / "Annotations" / "CLS-LOC"
    xml(folder / "val" / f"{val_name(1)}.xml", (BIRD, 0, 3, 49, 29), (FISH, 1, 1, 2, 2))
    xml(folder / "train" / FISH / f"{FISH}_10.xml", (FISH, 5, 6, 7, 8), (FISH, 0, 0, 0, 0))
    sources = sources_of(tmp_path)
    assert sources["val"].boxes(0).tolist() == [[0, 3, 50, 30]]  # not that of another class
    assert sources["val"].boxes(1).shape == (0, 4)
    assert sources["train"].boxes(0).tolist() == [[5, 6, 8, 9], [0, 0, 1, 1]]


@pytest.mark.parametrize("place", ["Annotation/{w}/{n}.xml", "bbox/train/{w}/{n}.xml"])
def test_boxes_of_ilsvrc_are_counted_from_0_and_inclusive(place: str, tmp_path: Path) -> None:
    train(tmp_path)
    xml(tmp_path / place.format(w=BIRD, n=f"{BIRD}_2"), (BIRD, 0, 0, 49, 29))
    source = sources_of(tmp_path, val_fraction=0.0)["train"]
    index = next(place for place, path in enumerate(source.paths) if path.endswith("849_2.JPEG"))
    assert source.read(index).boxes_xyxy.tolist() == [[0, 0, 50, 30]]


def test_boxes_beside_flat_val_pictures(tmp_path: Path) -> None:
    """Where the archive of the boxes of val is unpacked beside that of the pictures."""
    flat_val(tmp_path)
    truth_by_place(tmp_path)
    xml(tmp_path / "val" / f"{val_name(2)}.xml", (CRANE, 3, 4, 5, 6))
    assert sources_of(tmp_path)["val"].boxes(1).tolist() == [[3, 4, 6, 7]]


def test_the_class_list_has_also_classes_without_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "val" / BIRD / "1.JPEG")
    words(tmp_path)
    with pytest.warns(UserWarning, match="no image of the class tench, crane"):
        assert sources_of(tmp_path)["val"].labels == [1]


def test_a_partial_folder_takes_the_class_list_of_a_network(shared: Path) -> None:
    names = [f"n{number:08d}" for number in range(1000)]
    root = shared / "data" / "imagenet_val300"
    own = sources_of(root)["test"]
    assert (len(own), len(own.class_names)) == (300, 261)
    whole = sorted({*names[:739], *own.class_names})
    source = sources_of(root, class_names=whole)["test"]
    assert [source.class_names[label] for label in source.labels] == [
        own.class_names[label] for label in own.labels
    ]
    assert len(source.boxes(0)) >= 1


def test_the_devkit_s_numbers_are_those_of_the_ilsvrc_evaluation(
    shared: Path, tmp_path: Path
) -> None:
    """798 validation pictures, and a map from the devkit's numbers to sorted places, of others."""
    oracle = shared / "oracles" / "ilsvrc_eval"
    places = np.load(oracle / "label_map.npz")["ilsvrc_id_to_alphabetical0"].tolist()
    data = np.load(oracle / "data.npz")
    numbers, labels = data["val_index1"].ravel().tolist(), data["labels"].ravel().tolist()
    (tmp_path / "val").mkdir()
    for number in numbers:
        (tmp_path / "val" / f"{val_name(number)}.JPEG").touch()
    lines = ["1"] * max(numbers)
    for number, label in zip(numbers, labels, strict=True):
        lines[number - 1] = str(label)
    text(tmp_path / "data" / "ILSVRC2012_validation_ground_truth.txt", *lines)
    synsets = [(id_, f"n{places[id_]:08d}", f"name {places[id_]}") for id_ in range(1, 1001)]
    meta(tmp_path / "data", synsets)
    assert places[490] == 65  # of ILSVRC2012_val_00000001, in the devkit and in Caffe's val.txt
    source = sources_of(tmp_path, class_names=[f"name {place}" for place in range(1000)])["val"]
    expected = {val_name(n): places[label] for n, label in zip(numbers, labels, strict=True)}
    assert {Path(p).stem: n for p, n in zip(source.paths, source.labels, strict=True)} == expected


def no_list(root: Path) -> None:
    flat_val(root)


def no_meta(root: Path) -> None:
    flat_val(root)
    text(root / "data" / "ILSVRC2012_validation_ground_truth.txt", "1", "2", "3", "1")


def bad_meta(root: Path) -> None:
    no_meta(root)
    (root / "data" / "meta.mat").write_bytes(b"no matrix")


def bad_number(root: Path) -> None:
    flat_val(root)
    truth_of_devkit(root)
    text(root / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "1", "1001")


def short_list(root: Path) -> None:
    flat_val(root)
    words(root)
    text(root / "synset_labels.txt", BIRD, BIRD)


def other_classes(root: Path) -> None:
    """Numbers of 1,000 classes, and folders of three: places would mean other classes."""
    train(root)
    flat_val(root)
    text(root / "val.txt", *(f"{val_name(n)}.JPEG {n}" for n in (1, 2, 3, 999)))


def no_number(root: Path) -> None:
    flat_val(root)
    words(root)
    text(root / "val.txt", f"{val_name(1)}.JPEG 1", f"{val_name(2)}.JPEG")


def no_wnid(root: Path) -> None:
    train(root)
    text(root / "synset_words.txt", f"{FISH} tench", "tench, Tinca tinca")


def unlisted(root: Path) -> None:
    train(root)
    text(root / "synset_words.txt", f"{FISH} tench")


def bad_solution(root: Path) -> None:
    flat_val(root)
    text(root / "LOC_val_solution.csv", "ImageId,PredictionString", f"{val_name(1)},{FISH} 1 2 3")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"must hold train/WNID/\*\.JPEG"),
        (no_list, r"no list names their classes; put one of LOC_val_solution\.csv, val\.txt"),
        (no_meta, r"meta\.mat, which says what they are, does not exist"),
        (bad_meta, r"meta\.mat must hold the synsets of ILSVRC2012, but cannot be read"),
        (bad_number, r"truth\.txt, line 2: expected a whole number from 1 to 3, got '1001'"),
        (short_list, "has 2 pictures, but not ILSVRC2012_val_00000003"),
        (other_classes, r"val\.txt numbers the sorted classes up to 999, but 3 are known"),
        (no_number, r"val\.txt, line 2: expected picture label, got 'ILSVRC2012_val_00000002"),
        (no_wnid, r"synset_words\.txt, line 2: expected a WordNet id .* got 'tench,'"),
        (unlisted, f"pictures of the class {BIRD}, {CRANE}, which its list of 1 classes lacks"),
        (bad_solution, r"LOC_val_solution\.csv, line 2: expected .* x0 y0 x1 y1 of one class"),
    ],
)
def test_damaged_lists_get_one_clear_sentence(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(CamtrainError, match=message) as caught:
        sources_of(tmp_path)
    assert str(tmp_path) in str(caught.value)
