"""A data folder with everything wrong that can be, and what is said of it."""

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from camtrain import arguments
from camtrain.cli import main
from camtrain.data import SourceOptions, make_sources_without, read_exclude
from camtrain.data.checking.check import check_data
from camtrain.data.checking.report import KINDS, Report
from camtrain.data.tree import Tree, scan
from camtrain.errors import CamtrainValueError


def check(root: Path, **settings: object) -> Report:
    return check_data("folder", SourceOptions(root=root), processes=0, **settings)


def found(report: Report, kind: str) -> list[tuple[str, ...]]:
    return [finding.paths for finding in report.findings if finding.kind == kind]


def details(report: Report, kind: str) -> list[str]:
    return [finding.detail for finding in report.findings if finding.kind == kind]


@pytest.fixture
def damaged(photographs: Path) -> Path:
    """The photographs, 8 + 8 in train, 4 + 4 in val and test, with one of each fault."""
    train = photographs / "train"
    (train / "red/0.png").write_bytes(b"")
    (train / "red/1.png").write_bytes((train / "red/1.png").read_bytes()[:600])
    Image.open(train / "red/2.png").save(train / "red/2.jpg", format="PNG")
    shutil.copy(train / "red/3.png", train / "blue/3b.png")  # another label
    shutil.copy(train / "red/4.png", photographs / "val/red/9.png")  # another split
    Image.open(train / "red/4.png").save(photographs / "test/red/9.bmp")  # another file, too
    shutil.copy(train / "red/5.png", train / "red/5.pngx")
    Image.new("RGB", (40, 20), "green").save(train / "red/small.png")
    with (photographs / "boxes.csv").open("a") as lines:
        lines.write(
            "\ntrain/blue/0.png,9,9,3,3,blue"  # no area
            "\ntrain/blue/1.png,a,9,3,3,blue"  # no number
            "\ntrain/blue/2.png,30,0,59,9,blue"  # the picture is 56 wide
            "\ntrain/blue/3.png,30,0,57,9,blue\n"
        )
    return photographs


def test_every_fault_is_found_and_nothing_else(damaged: Path) -> None:
    report = check(damaged)
    names = {finding.kind for finding in report.findings}
    assert names == set(KINDS) - {"complaint", "missing_class", "layout"}
    assert found(report, "empty") == [("train/red/0.png",)]
    assert found(report, "unreadable") == [("train/red/1.png",)]
    assert "truncated" in details(report, "unreadable")[0]
    bad = {f"train/blue/{number}.png" for number in range(3)}
    assert {path for paths in found(report, "bad_box") for path in paths} == bad
    assert len(found(report, "bad_box")) == 3
    assert found(report, "edge_box") == [("train/blue/3.png",)]
    copies = ("train/red/4.png", "val/red/9.png", "test/red/9.bmp")
    assert found(report, "leakage") == [copies]
    assert details(report, "leakage") == ["1 in train, 1 in val, 1 in test"]
    assert found(report, "contradiction") == [("train/blue/3b.png", "train/red/3.png")]
    assert details(report, "contradiction") == ["blue, red"]
    assert ("train/blue/3b.png", "train/red/3.png") in found(report, "duplicate")
    assert ("train/red/2.jpg", "train/red/2.png") in found(report, "duplicate")
    assert len(found(report, "duplicate")) == 2
    assert found(report, "suffix") == [("train/red/2.jpg",)]
    assert details(report, "suffix") == ["the content is PNG"]
    assert found(report, "ignored") == [("train/red/5.pngx",)]
    assert found(report, "tiny") == [("train/red/small.png",)]
    no_boxes = {path for (path,) in found(report, "no_boxes")}
    train = {f"train/{name}" for name in ("blue/3b.png", "red/2.jpg", "red/small.png")}
    assert no_boxes == train | {"val/red/9.png", "test/red/9.bmp"}
    assert report.unused == {".csv": 1}


def test_the_numbers_of_a_split(damaged: Path) -> None:
    train = check(damaged).splits["train"]
    assert train.pictures == 19
    assert train.classes == {"blue": 9, "red": 10}
    assert train.imbalance == pytest.approx(10 / 9)
    assert train.width == (40, 56, 56)
    assert train.height == (20, 40, 40)
    assert train.aspect == (1.4, 1.4, 2.0)
    assert train.boxes == 16 - 2 + 2  # those of two pictures are not read; two were added
    assert train.with_boxes == 14


def test_a_sound_folder_has_status_0(photographs: Path) -> None:
    report = check(photographs)
    assert report.findings == []
    assert report.status == 0
    assert report.excluded() == {}


def test_after_leaving_the_list_out_no_error_remains(damaged: Path) -> None:
    """The law of the list: whatever was an error is gone, and nothing else."""
    report = check(damaged)
    assert report.status == 1
    errors = {path for finding in report.errors for path in finding.paths}
    assert set(report.excluded()) == errors
    options = SourceOptions(root=damaged)
    with pytest.warns(UserWarning, match=r"Skipped in .*: 1 \.pngx\."):
        _, kept = make_sources_without("folder", options, list(report.excluded()))
    assert {split: len(source) for split, source in kept.items()} == {
        "train": 19 - 5,
        "val": 9,
        "test": 9,
    }
    for source in kept.values():
        for index in range(len(source)):
            picture = source.read(index)
            height, width = picture.image.shape[1:]
            assert (picture.boxes_xyxy[:, 2] <= width + 1).all()
            assert (picture.boxes_xyxy[:, 3] <= height + 1).all()


def test_strict_counts_leakage_and_keeps_the_copy_that_measures(damaged: Path) -> None:
    excluded = check(damaged, strict=True).excluded()
    assert {"train/red/4.png", "val/red/9.png"} <= set(excluded)
    assert "test/red/9.bmp" not in excluded
    assert {"train/blue/3b.png", "train/red/3.png"} <= set(excluded)  # which is right?
    assert "train/red/2.png" not in excluded  # a duplicate is none


def test_a_damaged_split_of_one_folder_is_divided_before(tmp_path: Path) -> None:
    """root/CLASS/*: paths have no split in them, and a copy may land in another split."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    for number in range(11):
        shutil.copy(tmp_path / "a/11.png", tmp_path / f"a/{number}.png")
    report = check(tmp_path)
    [copies] = found(report, "leakage")
    assert sorted(copies) == sorted(f"a/{number}.png" for number in range(12))


def test_classes_without_pictures_and_without_boxes(photographs: Path) -> None:
    shutil.rmtree(photographs / "val/red")
    lines = (photographs / "boxes.csv").read_text().splitlines()
    (photographs / "boxes.csv").write_text("\n".join(x for x in lines if "red" not in x))
    report = check(photographs)
    assert details(report, "missing_class") == ["red"]
    assert [(f.split, f.detail) for f in report.findings if f.kind == "no_boxes"] == [
        ("train", "the whole class red"),
        ("test", "the whole class red"),
    ]
    assert report.splits["val"].classes == {"blue": 4, "red": 0}
    assert report.status == 0


def test_what_fit_refuses_about_folders_is_listed_with_everything_else(damaged: Path) -> None:
    for name in ("train/empty", "train/bare", "val/alien", "test/red", "test/blue"):
        shutil.rmtree(damaged / name, ignore_errors=True)
        (damaged / name).mkdir()
    shutil.copy(damaged / "train/red/3.png", damaged / "val/alien/1.png")
    report = check(damaged)
    split, unknown, empty = details(report, "layout")
    assert split.startswith(f"The test split of {damaged} holds no images")
    assert "has the class alien, unknown to train, which has blue, red" in unknown
    assert empty.startswith("The class bare, empty has no image in the train split")
    assert report.status == 1
    assert found(report, "unreadable") == [("train/red/1.png",)]
    assert report.splits["val"].classes == {"blue": 4, "red": 5, "alien": 1}
    assert not any("bare" in path for path in report.excluded())


def test_a_single_class_is_listed_too(photographs: Path) -> None:
    (photographs / "boxes.csv").unlink()
    for split in ("train", "val", "test"):
        shutil.rmtree(photographs / split / "blue")
    [detail] = details(check(photographs), "layout")
    assert detail.startswith("A classifier needs at least 2 classes")


@pytest.mark.parametrize("verb", ["check-data", "shards"])
def test_the_reading_of_folders_is_named_where_it_takes_long(
    verb: str,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slow(*args: object) -> Tree:
        time.sleep(0.2)
        return scan(*args)

    monkeypatch.setattr(arguments, "_PATIENCE", 0.01)
    monkeypatch.setattr("camtrain.data.readers.folder.scan", slow)
    if verb == "shards":
        pytest.importorskip("webdataset", reason="needs the package webdataset")
    place = ["--exclude", "x.txt"] if verb == "check-data" else ["--to", "out"]
    monkeypatch.chdir(tmp_path)
    assert main([verb, str(photographs), *place]) == 0
    assert f"Reading the folders of {photographs} ...\n" in capsys.readouterr().err


def test_other_sources_are_checked_too() -> None:
    options = SourceOptions(lengths=(30, 10, 10))
    report = check_data("digits", options, processes=0)
    assert [summary.pictures for summary in report.splits.values()] == [30, 10, 10]
    assert report.splits["train"].width == (64, 64, 64)
    assert report.status == 0


def run(root: Path, folder: Path, *args: str) -> int:
    files = ["--exclude", str(folder / "exclude.txt"), "--json", str(folder / "report.json")]
    return main(["check-data", str(root), *files, "--workers", "0", *args])


def test_the_verb_prints_writes_and_tells_by_its_status(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(damaged, tmp_path) == 1
    out = capsys.readouterr().out
    for text in ("train/red/1.png", "error", "max", f"--data.exclude {tmp_path / 'exclude.txt'}"):
        assert text in out
    listed = read_exclude(tmp_path / "exclude.txt")
    assert listed == list(check(damaged).excluded())
    assert (
        "\n# empty: the file has 0 bytes\ntrain/red/0.png\n"
        in (tmp_path / "exclude.txt").read_text()
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == 1
    assert report["counts"]["bad_box"] == 3
    assert report["splits"]["train"]["classes"] == {"blue": 9, "red": 10}
    assert {"kind", "paths", "detail", "split"} == set(report["findings"][0])


def test_the_list_is_written_anew_but_never_over_one_of_somebody_else(
    damaged: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(damaged, tmp_path) == 1
    for path in read_exclude(tmp_path / "exclude.txt"):
        (damaged / path).unlink()
    lines = (damaged / "boxes.csv").read_text().splitlines()
    (damaged / "boxes.csv").write_text("\n".join(lines[:-4]))
    assert run(damaged, tmp_path) == 0
    assert read_exclude(tmp_path / "exclude.txt") == []
    (tmp_path / "exclude.txt").write_text("mine.jpg\n")
    assert run(damaged, tmp_path) == 2
    assert "was not written by camtrain check-data" in capsys.readouterr().err
    assert (tmp_path / "exclude.txt").read_text() == "mine.jpg\n"


def test_a_sound_folder_writes_no_list(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path) == 0
    assert not (tmp_path / "exclude.txt").exists()


def test_strict_and_tiny_are_heard(damaged: Path, tmp_path: Path) -> None:
    for path in check(damaged).excluded():
        (damaged / path).unlink()
    lines = (damaged / "boxes.csv").read_text().splitlines()
    (damaged / "boxes.csv").write_text("\n".join(lines[:-4]))
    assert run(damaged, tmp_path) == 0
    assert run(damaged, tmp_path, "--strict") == 1
    assert run(damaged, tmp_path, "--tiny", "41") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"]["tiny"] == sum(s["pictures"] for s in report["splits"].values())


def test_many_classes_are_abridged() -> None:
    report = check_data("digits", SourceOptions(lengths=(20, 1, 1)), processes=0)
    train = report.splits["train"]
    many = {f"class [{number}]": 100 - number for number in range(30)}
    summary = type(train)(**{**vars(train), "classes": many})
    file = io.StringIO()
    Report("folder", "", {"train": summary}, []).show(Console(file=file, width=80))
    text = file.getvalue()
    assert "class [0]" in text
    assert "class [29]" in text
    assert "class [15]" not in text
    assert "..." in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "does not exist; point camtrain check-data at the folder"),
        ([], "give camtrain check-data FOLDER."),
        ([".", "--source", "nothing"], "must be one of"),
        ([".", "--workers", "-1"], "must be at least 0, got -1 and 32"),
        ([".", "--json", "gone/x.json"], "gone/x.json cannot be written"),
    ],
)
def test_bad_arguments_are_one_line(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check-data", *args]) == 2
    assert message in capsys.readouterr().err


def test_file_names_that_are_no_text_are_listed_too(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"train/red/\xff [bold].png".decode(errors="surrogateescape")
    (photographs / name).write_bytes(b"")
    assert run(photographs, tmp_path) == 1
    assert "train/red/? [bold].png" in capsys.readouterr().out
    assert read_exclude(tmp_path / "exclude.txt") == [name]
    assert json.loads((tmp_path / "report.json").read_text())["findings"][0]["paths"] == [name]
    _, kept = make_sources_without("folder", SourceOptions(root=photographs), [name])
    assert len(kept["train"]) == 16


def test_a_line_break_in_a_name_costs_that_name_alone(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a\nb.png", "c.png"):
        (photographs / "train/red" / name).write_bytes(b"")
    assert run(photographs, tmp_path) == 1
    out = capsys.readouterr().out
    assert "2 errors" in out
    assert r"line break: 'train/red/a\nb.png'; rename" in out
    assert read_exclude(tmp_path / "exclude.txt") == ["train/red/c.png"]


def test_the_list_of_another_data_set_is_kept(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(damaged, tmp_path) == 1
    before = (tmp_path / "exclude.txt").read_text()
    other = shutil.copytree(damaged, tmp_path / "other")
    assert run(other, tmp_path) == 2
    assert f"is the list of {damaged}, another data set" in capsys.readouterr().err
    assert (tmp_path / "exclude.txt").read_text() == before


def test_exif_false_checks_the_pixels_as_they_are_stored(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "green").save(photographs / "train/red/t.png", exif=exif)
    with (photographs / "boxes.csv").open("a") as lines:
        lines.write("\ntrain/red/t.png,0,0,80,40,red\n")
    assert run(photographs, tmp_path) == 1
    assert run(photographs, tmp_path, "--exif", "false") == 0
    capsys.readouterr()
    assert main(["check-data", "--source", "digits", "--exif", "false"]) == 2
    assert "exif must be true for digits" in capsys.readouterr().err


def test_an_interrupt_ends_at_once(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("camtrain.data.checking.reading.examine", interrupted)
    assert main(["check-data", str(photographs), "--workers", "0"]) == 130


def test_a_broken_header_of_the_boxes_is_refused(photographs: Path) -> None:
    (photographs / "boxes.csv").write_text("path,x,y,w,h\n")
    with pytest.raises(CamtrainValueError, match="lacks xmin"):
        check(photographs)
