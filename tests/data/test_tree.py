"""Finding pictures below a folder, and when the index of them is used again."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from camtrain.data import tree
from camtrain.data.tree import Tree, list_below, scan, subfolders

FILES = [
    "b/2.JPG",
    "b/10.png",
    "b/in/1.webp",
    "a/1.jpg",
    "0.gif",
    "a/.1.jpg",
    ".c/1.jpg",
    "a/1.txt",
]


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def settle(root: Path) -> None:
    """Let all folders be a minute old."""
    for folder, _, _ in os.walk(root):
        stamp = os.stat(folder).st_mtime - 60
        os.utime(folder, (stamp, stamp))


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are really scanned, where even small trees are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tree, "_WORTH_CACHING", 1)
    scanned: list[Path] = []
    really = tree._scan_disk

    def note(root: Path, tops: Sequence[str]) -> object:
        scanned.append(root)
        return really(root, tops)

    monkeypatch.setattr(tree, "_scan_disk", note)
    return scanned


def contents(found: Tree) -> tuple[list[str], list[str], list[int], bool]:
    return list(found.folders), list(found.paths), found.counts.tolist(), found.has_xml


def test_pictures_are_found_at_any_depth_and_in_order(tmp_path: Path) -> None:
    found = contents(scan(touch(tmp_path, *FILES)))
    paths = ["0.gif", "a/1.jpg", "b/10.png", "b/2.JPG", "b/in/1.webp"]
    assert found == (["", "a", "b", "b/in"], paths, [1, 1, 2, 1], False)
    assert list(scan(tmp_path, ["b", "a"]).paths) == paths[1:]
    (tmp_path / "a" / "1.xml").touch()
    (tmp_path / "a" / "folder.jpg").mkdir()
    assert scan(tmp_path, ["a"]).has_xml
    assert list(scan(tmp_path, ["a"]).folders) == ["a", "a/folder.jpg"]
    assert not scan(tmp_path, ["b"]).has_xml


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "data/a/1.jpg", "else/b/2.jpg", "else/3.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "else" / "b", target_is_directory=True)
    (tmp_path / "data" / "a" / "3.jpg").symlink_to(tmp_path / "else" / "3.jpg")
    (tmp_path / "data" / "a" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data", target_is_directory=True)
    skipped = r"1 links to a folder that holds them \(up\), 1 links to no file \(lost\.jpg\)"
    with pytest.warns(UserWarning, match=skipped):  # before: nothing was said
        assert list(scan(tmp_path / "data").paths) == ["a/1.jpg", "a/3.jpg", "b/2.jpg"]


# Links by place and target: before, each was "OSError: Too many levels of symbolic links".
CIRCLES = {
    "to itself": ({"a/me": "me"}, "links to no file (me)"),
    "a picture to itself": ({"a/me.jpg": "me.jpg"}, "links to no file (me.jpg)"),
    "to each other": ({"a/x": "../b", "b/y": "../a"}, "links to a folder that holds them (y, x)"),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_circles_of_links_are_left_out_and_named(name: str, tmp_path: Path) -> None:
    links, sentence = CIRCLES[name]
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    for place, target in links.items():
        (tmp_path / place).symlink_to(target)
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        assert {"a/1.jpg", "b/1.jpg"} <= set(scan(tmp_path).paths)


def test_the_index_is_used_until_a_folder_changes(tmp_path: Path, scans: list[Path]) -> None:
    root = touch(tmp_path / "data", *FILES)
    settle(root)
    before = contents(scan(root))
    assert len(scans) == 1
    assert contents(scan(root)) == before
    assert len(scans) == 1

    touch(root, "b/in/2.jpg")
    assert contents(scan(root))[1] == [*before[1], "b/in/2.jpg"]
    assert len(scans) == 2
    settle(root)
    (root / "b" / "in" / "1.webp").rename(root / "b" / "in" / "0.webp")
    settle(root)
    after = contents(scan(root))
    assert after[1][-2:] == ["b/in/0.webp", "b/in/2.jpg"]
    del scans[:]
    assert contents(scan(root)) == after
    assert scans == []
    (root / "a" / "1.jpg").unlink()
    (root / "a" / ".1.jpg").unlink()
    (root / "a" / "1.txt").unlink()
    (root / "a").rmdir()
    assert list(scan(root).folders) == ["", "b", "b/in"]


def test_a_folder_that_has_just_changed_is_not_remembered(
    tmp_path: Path, scans: list[Path]
) -> None:
    """A second change may get the same time stamp."""
    root = touch(tmp_path / "data", *FILES)
    scan(root)
    scan(root)
    assert len(scans) == 2


def test_other_folders_have_another_index(tmp_path: Path, scans: list[Path]) -> None:
    for name in ("one", "two"):
        touch(tmp_path / name, f"{name}/1.jpg")
        settle(tmp_path / name)
        assert list(scan(tmp_path / name).paths) == [f"{name}/1.jpg"]
    assert list(scan(tmp_path / "one", ["one"]).paths) == ["one/1.jpg"]
    assert list(scan(tmp_path / "one").paths) == ["one/1.jpg"]


@pytest.mark.parametrize("content", [b"", b"no index", b"PK\x03\x04 cut off"])
def test_a_damaged_index_is_written_anew(content: bytes, tmp_path: Path, scans: list[Path]) -> None:
    root = touch(tmp_path / "data", *FILES)
    settle(root)
    before = contents(scan(root))
    [index] = (tmp_path / "cache" / "camtrain" / "trees").iterdir()
    index.write_bytes(content)
    assert contents(scan(root)) == before
    assert len(scans) == 2
    scan(root)
    assert len(scans) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, scans: list[Path]) -> None:
    root = touch(tmp_path / "data", *FILES)
    settle(root)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert contents(scan(root)) == contents(scan(root))
    assert len(scans) == 2


def test_small_trees_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = touch(tmp_path / "data", *FILES)
    settle(root)
    scan(root)
    assert not (tmp_path / "cache").exists()


def test_pictures_that_nothing_reads_are_named(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "a/y.svg", "b/z.SVG", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"Skipped in .*: 2 \.svg \(y\.svg, z\.SVG; draw it as a"):
        assert list(scan(tmp_path).paths) == ["a/x.jpg"]


def test_what_is_left_out_is_said_in_every_run(tmp_path: Path, scans: list[Path]) -> None:
    """Before, the second run took the index, and said nothing; `.tga` was never named."""
    root = touch(tmp_path / "data", "a/1.jpg", "a/2.jfif", "a/2.tga", "a/boxes.csv")
    settle(root)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"Skipped in .*: 1 \.tga\."):
            assert list(scan(root).paths) == ["a/1.jpg", "a/2.jfif"]


def test_what_a_disk_holds_for_repairs_is_no_class(tmp_path: Path) -> None:
    """Only root may read it; before, it ended ``fit`` with a traceback, or was an empty class."""
    root = touch(tmp_path, "a/1.jpg", "b/1.jpg", "lost+found/1.jpg")
    assert list(scan(root).paths) == ["a/1.jpg", "b/1.jpg"]
    assert subfolders(root) == ["a", "b"]
    assert len(list_below(root).pictures) == 2
