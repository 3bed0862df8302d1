"""Caches on disk: whole or not there, and never left behind for good."""

import errno
import os
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from camtrain.training.cache import store
from camtrain.training.cache.store import ArraySpec

KEY = "0123456789abcdef0123"
SPECS = {"vectors": ArraySpec((3, 2, 4), "float32"), "maps": ArraySpec((1, 2, 4, 2, 3), "float16")}


def make(folder: Path, value: float = 1.0) -> None:
    part = store.part_folder(folder, uuid4().hex)
    lock = store.create_part(part, SPECS)
    arrays = store.open_part(part, SPECS)
    for array in arrays.values():
        array[:] = value
    for array in arrays.values():
        array.flush()
    store.finish_part(part, folder, {"dtype": "float16"})
    os.close(lock)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / KEY
    assert not store.is_complete(folder)
    make(folder, 2.5)
    assert store.is_complete(folder)
    arrays, about = store.open_arrays(folder)
    assert about["dtype"] == "float16"
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == SPECS
    assert all((array == 2.5).all() for array in arrays.values())
    with pytest.raises(ValueError, match="read-only"):
        arrays["vectors"][0] = 0
    assert [path.name for path in folder.parent.iterdir()] == [KEY]


def test_an_unfinished_cache_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / KEY
    part = store.part_folder(folder, "one")
    lock = store.create_part(part, SPECS)
    assert not store.is_complete(folder)
    store.finish_part(part, None, {})
    os.close(lock)
    assert list(tmp_path.iterdir()) == []


def test_of_two_runs_with_one_key_both_go_on(tmp_path: Path) -> None:
    make(tmp_path / KEY, 1.0)
    arrays, _ = store.open_arrays(tmp_path / KEY)
    make(tmp_path / KEY, 1.0)
    assert (arrays["vectors"] == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


def test_processes_that_share_a_name_share_a_part(tmp_path: Path) -> None:
    folder = tmp_path / KEY
    parts = [store.part_folder(folder, name) for name in ("a", "a", "b")]
    assert parts[0] == parts[1] != parts[2]


def test_space_is_reserved_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, f"No space left for {length} bytes")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"No space left for \d+ bytes"):
        store.create_part(store.part_folder(tmp_path / KEY, "a"), SPECS)
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_killed_and_the_unused_left_is_removed(tmp_path: Path) -> None:
    dead, alive = (store.part_folder(tmp_path / KEY, name) for name in ("dead", "alive"))
    os.close(store.create_part(dead, SPECS))  # as the kernel does for the killed
    lock = store.create_part(alive, SPECS)
    used, unused = tmp_path / KEY, tmp_path / KEY[::-1]
    make(used)
    make(unused)
    long_ago = time.time() - 31 * 24 * 3600
    for folder in (used, unused):
        os.utime(folder / "about.json", (long_ago, long_ago))
    store.open_arrays(used)  # notes that it is used
    others = [tmp_path / "mine", tmp_path / f"{KEY}.jpg"]
    for folder in others:
        folder.mkdir()
        (folder / "about.json").touch()
        os.utime(folder / "about.json", (long_ago, long_ago))
    store.remove_unused(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, used, *others])
    os.close(lock)
    store.remove_unused(tmp_path / "nowhere")


def test_the_folder_is_given_or_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_folder(None) == tmp_path / "camtrain" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_folder(None) == Path.home() / ".cache" / "camtrain" / "features"
    assert store.cache_folder(tmp_path / "a") == tmp_path / "a"


def test_the_size_of_an_array_is_known_before_it_is_made() -> None:
    assert SPECS["maps"].nbytes == np.zeros((1, 2, 4, 2, 3), np.float16).nbytes
