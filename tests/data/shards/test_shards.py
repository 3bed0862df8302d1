"""Shards hold what was written, for us and for the webdataset library, wherever they lie."""

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from camtrain.cli import main
from camtrain.data import Source, SourceOptions, make_sources, make_sources_without
from camtrain.data.checking.check import check_data
from camtrain.data.shards import read as shards_read
from camtrain.data.shards.read import shards_listing
from camtrain.data.shards.write import write_shards
from camtrain.data.source import SourcePicture
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from tests.data.shards.conftest import Server, write

pytest.importorskip("webdataset", reason="needs the package webdataset")


def read(folder: object, **settings: object) -> dict[str, Source]:
    return make_sources("shards", SourceOptions(root=str(folder), **settings))


def by_path(source: Source, root: str) -> dict[str, SourcePicture]:
    pictures = [source.read(index) for index in range(len(source))]
    assert [picture.path for picture in pictures] == list(source.paths)
    return {picture.path.removeprefix(root).lstrip("/"): picture for picture in pictures}


def assert_same(photographs: Path, sources: dict[str, Source], root: str) -> None:
    whole = make_sources("folder", SourceOptions(root=photographs))
    assert list(sources) == list(whole)
    for split, source in sources.items():
        expected, found = by_path(whole[split], str(photographs)), by_path(source, root)
        assert source.class_names == whole[split].class_names
        assert sorted(found) == sorted(expected)
        for path, picture in found.items():
            assert torch.equal(picture.image, expected[path].image)
            assert torch.equal(picture.boxes_xyxy, expected[path].boxes_xyxy)
            assert picture.label == expected[path].label
        for index in range(len(source)):
            assert torch.equal(source.boxes(index), source.read(index).boxes_xyxy)
            assert source.labels[index] == source.read(index).label


def test_shards_hold_the_same_pictures(photographs: Path, shards: Path) -> None:
    assert len(list(shards.glob("train-*.tar"))) > 3
    assert_same(photographs, read(shards), str(shards))


def test_the_shards_of_train_are_mixed_and_the_same_each_time(
    photographs: Path, shards: Path, tmp_path: Path
) -> None:
    assert len(set(read(shards)["train"].labels[:6])) == 2
    assert read(shards)["val"].labels == [0, 0, 0, 0, 1, 1, 1, 1]
    again = write(photographs, tmp_path / "again", shard_mb=0.015)
    other = write(photographs, tmp_path / "other", shard_mb=0.015, seed=1)
    for name in sorted(os.listdir(shards)):
        assert (again / name).read_bytes() == (shards / name).read_bytes()
    assert (other / "train-000000.tar").read_bytes() != (shards / "train-000000.tar").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # leaves files open
def test_the_webdataset_library_reads_the_same_samples(photographs: Path, shards: Path) -> None:
    import webdataset

    for split, source in read(shards).items():
        files = [str(path) for path in sorted(shards.glob(f"{split}-*.tar"))]
        samples = list(webdataset.WebDataset(files, shardshuffle=False))
        assert len(samples) == len(source)
        for index, sample in enumerate(samples):
            truth = json.loads(sample["json"])
            assert source.paths[index] == str(shards / truth["path"])
            assert sample["png"] == (photographs / truth["path"]).read_bytes()
            assert truth["labels"] == [source.labels[index]]
            assert truth["classes"] == [source.class_names[source.labels[index]]]
            assert truth["boxes_xyxy"] == source.boxes(index).tolist()
    gc.collect()  # here, where its open files are no error


class Odd:
    """Pictures without files: gray, of several classes, two with a mask."""

    class_names = ("a", "b", "c")
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    paths = ("odd/0", "odd/1", "odd/2")

    def __len__(self) -> int:
        """Three."""
        return 3

    def boxes(self, index: int) -> torch.Tensor:
        """As many as the index says."""
        return torch.arange(4).repeat(index, 1)

    def read(self, index: int) -> SourcePicture:
        """Noise."""
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (1 if index else 3, 7, 9), generator=generator)
        mask = torch.tensor([[0, 1, 255]], dtype=torch.uint8).repeat(7, 3)
        return SourcePicture(
            image.byte(),
            self.labels[index],
            self.boxes(index),
            self.paths[index],
            mask if index else None,
        )


def test_masks_several_labels_and_pictures_without_files(tmp_path: Path) -> None:
    list(write_shards({"train": Odd(), "val": Odd()}, tmp_path / "shards"))
    source = read(tmp_path / "shards")["val"]
    assert torch.equal(torch.as_tensor(source.labels), Odd.labels)
    for index in range(3):
        expected, found = Odd().read(index), source.read(index)
        assert torch.equal(found.image, expected.image.expand(3, -1, -1))
        assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
        assert torch.equal(torch.as_tensor(found.label), expected.label)
        assert (found.mask is None) == (expected.mask is None)
        assert found.mask is None or torch.equal(found.mask, expected.mask)


def test_an_odd_folder_name_is_no_pattern(photographs: Path, tmp_path: Path) -> None:
    folder = write(photographs, tmp_path / "100%d #?x")
    assert_same(photographs, read(folder), str(folder))


def test_shards_behind_a_url_are_fetched_once(
    photographs: Path, shards: Path, server: Server, tmp_path: Path
) -> None:
    sources = read(server.url, shards_cache=tmp_path / "cache")
    assert sum(server.asked.values()) <= 3  # the index and its arrays
    assert_same(photographs, sources, str(Path(server.url)))
    tars = [path.name for path in shards.glob("*.tar")]
    assert {name: server.asked[name] for name in tars} == dict.fromkeys(tars, 1)
    assert_same(
        photographs, read(server.url, shards_cache=tmp_path / "cache"), str(Path(server.url))
    )
    assert {server.asked[name] for name in tars} == {1}


def test_the_cache_is_bounded(photographs: Path, server: Server, tmp_path: Path) -> None:
    limit = 40_000
    sources = read(server.url, shards_cache=tmp_path / "cache", shards_cache_gb=limit / 1e9)
    assert_same(photographs, sources, str(Path(server.url)))
    kept = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar") if path.is_file()]
    assert 0 < sum(kept) <= limit + 16_000  # with the shard that was fetched last


def test_shards_written_anew_are_fetched_anew(
    photographs: Path, shards: Path, server: Server, tmp_path: Path
) -> None:
    read(server.url, shards_cache=tmp_path / "cache")["val"].read(0)
    Image.new("RGB", (40, 30), "green").save(photographs / "val/blue/0.png")
    for file in shards.iterdir():
        file.unlink()
    write(photographs, shards, shard_mb=0.015)
    assert_same(
        photographs, read(server.url, shards_cache=tmp_path / "cache"), str(Path(server.url))
    )


def test_a_list_of_the_folder_leaves_out_the_same_of_the_shards(
    shards: Path, server: Server, tmp_path: Path
) -> None:
    for root in (str(shards), server.url):
        options = SourceOptions(root=root, shards_cache=tmp_path / "cache")
        _, kept = make_sources_without("shards", options, ["train/red/0.png", "val/blue/3.png"])
        assert [len(source) for source in kept.values()] == [15, 7, 8]
        assert len(torch.as_tensor(kept["train"].groups)) == 15


def test_a_relative_folder_is_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards.rename(shards.parent / "a:b")
    monkeypatch.chdir(shards.parent)
    _, kept = make_sources_without("shards", SourceOptions(root="a:b"), ["train/red/0.png"])
    assert len(kept["train"]) == 15
    assert kept["train"].read(0).path.startswith(str(shards.parent / "a:b" / "train"))


def test_a_class_list_may_be_given(shards: Path) -> None:
    sources = read(shards, class_names=("green", "red", "blue"))
    assert sources["val"].labels == [2, 2, 2, 2, 1, 1, 1, 1]


def test_shards_are_checked_like_any_source(shards: Path, server: Server, tmp_path: Path) -> None:
    for root in (str(shards), server.url):
        options = SourceOptions(root=root, shards_cache=tmp_path / "cache")
        report = check_data("shards", options, processes=0)
        assert report.findings == []
        assert report.splits["train"].classes == {"blue": 8, "red": 8}


def test_the_verb_writes_what_the_source_reads(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "train/red/0.png").write_bytes(b"no picture")
    args = ["shards", str(photographs), "--to", str(tmp_path / "out")]
    assert main(args) == 2
    assert "0.png cannot be read" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("train/red/0.png\n")
    args[-1] = str(tmp_path / "out2")
    assert main([*args, "--exclude", str(tmp_path / "list.txt"), "--shard_mb", "0.1"]) == 0
    assert f"--data.source shards --data.root {tmp_path / 'out2'}" in capsys.readouterr().out
    assert len(read(tmp_path / "out2")["train"]) == 15


def edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "index.json").read_text())
        change(content)
        (folder / "index.json").write_text(json.dumps(content))

    return apply


def cut(folder: Path) -> None:
    path = folder / "val-000000.tar"
    path.write_bytes(path.read_bytes()[:-100])


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "index.json").unlink(), "holds no index.json; point --data.root"),
    (lambda folder: (folder / "index.json").write_text("{"), "cannot be read .JSONDecodeError"),
    (edit(lambda content: content.update(camtrain_shards=99)), "have format 99.*update camtrain"),
    (edit(lambda content: content.update(class_names=[1, 2])), "class_names must be a list of"),
    (edit(lambda content: content.update(shards=3)), "cannot be read .TypeError"),
    (edit(lambda content: content.update(arrays="../../dev/zero")), "names files that are no"),
    (edit(lambda content: content["shards"][0].update(samples="8")), "cannot be read .TypeError"),
    (edit(lambda content: content["shards"][0].update(file=5)), "files must be a list of names"),
    (edit(lambda content: content.update(class_names=["red"])), "labels are no numbers of"),
    (edit(lambda content: content["shards"].pop()), "counts .* samples and lists 32"),
    (edit(lambda content: content["shards"][0].update(file="../x")), "names files that are no"),
    (edit(lambda content: content["shards"][0].update(split="all")), "names files that are no"),
    (edit(lambda content: content.update(arrays="gone.npz")), "cannot be read"),
    (cut, r"val-000000.tar must have \d+ bytes, got \d+; copy it again"),
    (lambda folder: (folder / "val-000000.tar").unlink(), "val-000000.tar cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_damaged_shards_are_refused(
    damage: Callable[[Path], object], message: str, shards: Path
) -> None:
    damage(shards)
    with pytest.raises(CamtrainError, match=message):
        read(shards)["val"].read(0)


@pytest.mark.parametrize(("damage", "message"), [BAD[0], BAD[-2], BAD[-1]])
def test_damaged_shards_behind_a_url_are_refused(
    damage: Callable[[Path], object], message: str, shards: Path, server: Server, tmp_path: Path
) -> None:
    damage(shards)
    message = "index.json cannot be read" if "holds no" in message else message
    for _ in range(2):  # what was refused is not kept
        with pytest.raises(CamtrainError, match=message):
            read(server.url, shards_cache=tmp_path / "cache")["val"].read(0)


@pytest.mark.parametrize(
    ("root", "error", "message"),
    [
        ("nowhere", CamtrainFileNotFoundError, "nowhere holds no index.json"),
        ("pipe://touch x", CamtrainValueError, "folder or a URL of http, https"),
        ("http://127.0.0.1:9", CamtrainFileNotFoundError, "cannot be read"),
    ],
)
def test_bad_places_are_refused(root: str, error: type[CamtrainError], message: str) -> None:
    with pytest.raises(error, match=message):
        shards_listing(root)


def test_bad_targets_are_refused(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(CamtrainValueError, match="must be a new or empty folder"):
        write(photographs, photographs)
    with pytest.raises(CamtrainValueError, match="shard_mb must be above 0, got 0"):
        write(photographs, tmp_path / "x", shard_mb=0)


def test_the_remains_of_a_killed_process_are_written_anew(
    photographs: Path, shards: Path, tmp_path: Path
) -> None:
    sources = make_sources("folder", SourceOptions(root=photographs))
    writing = write_shards(sources, tmp_path / "open", root=str(photographs), shard_mb=0.01)
    for _ in range(9):
        next(writing)
    with pytest.raises(CamtrainValueError, match="Another process writes shards"):
        write(photographs, tmp_path / "open")
    killed = shutil.copytree(tmp_path / "open", tmp_path / "killed")
    assert len([*killed.glob("*.tar")]) > 1
    write(photographs, killed, shard_mb=0.015)
    assert {p.name: p.read_bytes() for p in killed.iterdir()} == {
        p.name: p.read_bytes() for p in shards.iterdir()
    }
    writing.close()
    assert not (tmp_path / "open").exists()


def test_a_missing_library_names_the_command(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(shards_read.importlib, "import_module", missing)
    with pytest.raises(CamtrainError, match="run `pip install webdataset`"):
        read(shards)


@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_is_left_of_shards_that_could_not_be_written(
    is_there: bool, photographs: Path, tmp_path: Path
) -> None:
    (photographs / "val/red/3.png").write_bytes(b"no picture")
    folder = tmp_path / "shards"
    if is_there:
        folder.mkdir()
    with pytest.raises(CamtrainError, match=r"3\.png cannot be read"):
        write(photographs, folder)
    assert folder.exists() == is_there
    assert not is_there or not list(folder.iterdir())


# webdataset leaves the closing of a file that could not be written to Python.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("most", [3000, 30_000])
def test_a_full_disk_is_one_sentence_and_nothing_is_left(
    most: int, photographs: Path, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    limit_files(most)
    message = f"{tmp_path}/shards.* cannot be written .* it takes about 0.* make room"
    with pytest.raises(CamtrainError, match=message):
        write(photographs, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
