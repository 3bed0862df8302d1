"""Files are written whole or not at all, and only half-written ones are deleted."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from camtrain import files
from camtrain.data import DamagedImageError, read_exclude, read_image
from camtrain.data.lists import lines_of
from camtrain.data.tree import describe_skipped, list_below, scan
from camtrain.errors import CamtrainOSError, CamtrainValueError


def test_a_file_is_replaced_when_it_is_complete_and_nothing_is_left_of_one_that_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with suppress(KeyError), files.replacing(path) as part:
        assert part.suffix == ".onnx"
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    with files.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["new", "new/deep", ""])
def test_a_place_is_writable_where_a_folder_can_be_made_and_nothing_is_left_there(
    name: str, tmp_path: Path
) -> None:
    files.check_writable(tmp_path / name, "--output")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/proc/x", "/proc/x/y", "{file}/x"])
def test_a_place_without_room_for_files_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = Path(path.format(file=tmp_path / "file"))
    with pytest.raises(CamtrainValueError, match=f"--output must name a place .* got {place} "):
        files.check_writable(place, "--output")


def test_a_duplicate_follows_no_later_replacement_of_its_source(tmp_path: Path) -> None:
    source, path = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    for text in ("first", "second"):
        files.write_text(source, text)
        files.duplicate(source, path)
        files.duplicate(source, path)
        assert path.read_text() == text
        assert sorted(tmp_path.iterdir()) == [path, source]
    files.write_text(source, "third")
    assert path.read_text() == "second"


def test_only_half_written_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "cams").mkdir()
    path = tmp_path / "cams" / "epoch_001.jpg"
    parts = [path.with_name(".epoch_001.jpg.part")]  # of an older camtrain
    for name in ("cams/epoch_001.jpg", "metrics.csv", "stop"):
        with files.replacing(tmp_path / name) as part:
            part.touch()
            parts.append(part)
    remaining = {tmp_path / "cams", *(tmp_path / n for n in ("cams/epoch_001.jpg", "metrics.csv"))}
    remaining |= {tmp_path / name for name in ("stop", ".notes.partial", "a.part", ".parts.txt")}
    for file in [*parts, *(remaining - {tmp_path / "cams"})]:
        file.touch()
    files.remove_parts(tmp_path)
    assert set(tmp_path.rglob("*")) == remaining


HOLDING = """
import os, sys, time
from pathlib import Path
from camtrain.files import locked
with locked(Path(sys.argv[1]), ""):
    if os.fork() == 0:  # a worker, which outlives its parent
        print("held", flush=True)
    time.sleep(60)
"""


def test_a_dead_process_holds_no_lock_and_neither_do_its_children(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, process_group=0
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(CamtrainValueError, match="in use"), files.locked(tmp_path, "in use"):
            pass
        holder.kill()
        holder.wait()
        with files.locked(tmp_path, "in use"):
            os.killpg(holder.pid, signal.SIGKILL)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with the number of no user; before, a RuntimeError."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(OSError, match="Not a directory"):
        files.user_cache().mkdir()


# What the writers of files make of a full disk: their own errors, and none names the file.
NUMBERS = torch.arange(100_000)
WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda path: torch.save({"a": NUMBERS}, path),
    "safetensors": lambda path: safetensors.torch.save_file({"a": NUMBERS}, path),
    "numpy": lambda path: np.save(path, NUMBERS.numpy()),
    "zip": lambda path: np.savez(path, a=NUMBERS.numpy()),
    "bytes": lambda path: path.write_bytes(bytes(100_000)),
}
SUFFIXES = {"numpy": "npy", "zip": "npz"}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_finds_no_room_is_one_sentence_and_the_one_before_stays(
    writer: str, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    path = tmp_path / f"file.{SUFFIXES.get(writer, 'bin')}"
    path.write_text("before")
    limit_files(20_000)
    message = f"{path} cannot be written \\(File too large: .* are free, it takes about 0.0 MB\\)"
    with pytest.raises(CamtrainOSError, match=message), files.replacing(path) as part:
        WRITERS[writer](part)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_larger_than_the_disk_is_not_begun(tmp_path: Path) -> None:
    with (
        pytest.raises(CamtrainOSError, match=r"No space left .* it takes about 1000000000\.0 GB"),
        files.replacing(tmp_path / "last.ckpt", needed=10**18),
    ):
        raise AssertionError


def test_an_error_that_is_none_of_the_system_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^mine$"), files.replacing(tmp_path / "a"):
        raise RuntimeError("mine")


def test_a_line_is_added_whole_or_not_at_all(
    tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    path = tmp_path / "lines.jsonl"
    files.append(path, b"first\n")
    limit_files(20)
    with pytest.raises(CamtrainOSError, match=r"lines\.jsonl cannot be written"):
        files.append(path, bytes(100))
    files.append(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """``--json /dev/stdout``, as root."""
    os.mkfifo(path := tmp_path / "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(path, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert path.is_fifo()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_is_never_cut_off(
    suffix: str, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    """Before, Pillow said nothing where a full disk took only a part of a small file."""
    path = tmp_path / f"sheet.{suffix}"
    limit_files(700)
    with pytest.raises(CamtrainOSError, match="File too large"):
        files.write_picture(path, Image.effect_noise((200, 200), 9))
    assert list(tmp_path.iterdir()) == []
    files.write_picture(path, Image.new("L", (8, 8)))
    with Image.open(path) as image:
        assert image.format == {"jpg": "JPEG", "png": "PNG"}[suffix]


def special_files(folder: Path) -> list[Path]:
    """A pipe, a socket, a link to a device without an end, and a link to itself."""
    pipe, device, circle = folder / "pipe.jpg", folder / "device.jpg", folder / "circle.jpg"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    circle.symlink_to(circle)
    name = folder / "socket.jpg"
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):  # its path is short
        server.bind(name.name)
    return [pipe, name, device, circle]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Before, a pipe was waited for without end, and a device filled the memory."""
    for path in special_files(tmp_path):
        with pytest.raises(OSError, match=r"no regular file|No such device|symbolic links"):
            files.open_regular(path)
        with pytest.raises(DamagedImageError, match="cannot be read"):
            read_image(path)
        for read in (files.read_utf8, read_exclude, lambda path: list(lines_of(path, "path"))):
            with pytest.raises(OSError):  # noqa: PT011
                read(path)
    tree = scan(tmp_path, [""])
    assert list(tree.paths) == []
    unread = list_below(tmp_path).pictures
    assert describe_skipped(unread) == (
        "1 links to no file (circle.jpg), "
        "3 pipes, sockets or devices (device.jpg, pipe.jpg, socket.jpg)"
    )


def test_the_room_for_a_file_is_known_before_its_folder_is_there(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "not" / "yet") > 0


def test_an_error_of_the_writer_adds_nothing_to_a_file_that_is_written_in_place(
    tmp_path: Path,
) -> None:
    (tmp_path / "lines").write_text("a")
    with pytest.raises(ZeroDivisionError), files.writing(tmp_path / "lines"):
        _ = 1 / 0
    assert (tmp_path / "lines").read_text() == "a"
