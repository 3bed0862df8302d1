"""Validation and test pictures are opened before a training, and good ones only once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from camtrain.cli import main
from camtrain.data import ClutteredDigits, DamagedImageError, Source, SourceOptions, make_sources
from camtrain.data.checking import reading
from camtrain.errors import CamtrainValueError
from camtrain.training.run import opening
from camtrain.training.run.opening import open_pictures
from tests.training.test_damaged import damage

SETTINGS = {"source": "folder", "workers": 0, "exif": True, "allow_damaged": False}


def open_all(root: Path, **settings: Any) -> None:
    sources = make_sources("folder", SourceOptions(root=root))
    open_pictures(sources, {**SETTINGS, **settings}, shows_progress=False)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that were read."""
    examine, paths = reading.examine, []

    def noted(source: Source, index: int, **settings: bool) -> reading.Record:
        paths.append("/".join(Path(source.paths[index]).parts[-3:]))
        return examine(source, index, **settings)

    monkeypatch.setattr(reading, "examine", noted)
    return paths


def test_pictures_of_validation_and_test_are_opened_until_they_change(
    photographs: Path, opened: list[str]
) -> None:
    state = torch.random.get_rng_state()
    open_all(photographs)
    numbers = range(4)
    assert opened == [
        f"{split}/{name}/{number}.png"
        for split in ("val", "test")
        for name in ("blue", "red")
        for number in numbers
    ]
    opened.clear()
    open_all(photographs)
    assert opened == []
    os.utime(photographs / "val/red/1.png", ns=(1, 1))
    Image.new("RGB", (9, 9)).save(photographs / "test/blue/new.png")
    open_all(photographs)
    assert opened == ["val/red/1.png", "test/blue/new.png"]
    assert torch.equal(torch.random.get_rng_state(), state)  # a training draws the same numbers


def test_one_damaged_picture_is_named_and_of_several_the_first(photographs: Path) -> None:
    [blue, red] = damage(photographs, "val", 1)
    with pytest.raises(DamagedImageError) as raised:
        open_all(photographs)
    message = str(raised.value)
    assert message.startswith("2 of 16 validation and test pictures cannot be used (camtrain ")
    assert f"the first: The image {blue} cannot be read (" in message
    assert message.endswith("or give --data.allow_damaged true.")
    shutil.copy(blue.with_stem("1"), blue)
    with pytest.raises(DamagedImageError, match=rf"^The image {red} cannot be read \(.*true\.$"):
        open_all(photographs)
    open_all(photographs, allow_damaged=True)


def test_what_may_be_damaged_in_training_is_not_opened(photographs: Path) -> None:
    damage(photographs, "train", 1)
    open_all(photographs)


def test_a_mask_that_cannot_be_right_is_refused_although_damage_is_allowed(
    photographs: Path,
) -> None:
    mask = photographs / "masks/test/red/1.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"no picture")
    with pytest.raises(CamtrainValueError, match=f"^The mask {mask} cannot be read"):
        open_all(photographs, allow_damaged=True)


def test_after_the_limit_the_rest_is_counted_and_opened_by_the_next_run(
    photographs: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(opening, "_SECONDS", 0.0)
    monkeypatch.setattr(reading, "_BATCH", 5)
    open_all(photographs)
    assert "15 of 16 validation and test pictures were not opened" in capsys.readouterr().out
    monkeypatch.setattr(opening, "_SECONDS", 60.0)
    opened.clear()
    open_all(photographs)
    assert len(opened) == 15
    assert capsys.readouterr().out == ""


def test_pictures_without_files_and_shards_are_not_opened(
    photographs: Path, opened: list[str]
) -> None:
    digits = ClutteredDigits("val", length=2)
    open_pictures({"val": digits}, {**SETTINGS, "source": "digits"}, shows_progress=True)
    open_all(photographs, source="shards")
    assert opened == []


def test_a_cache_that_cannot_be_written_or_read_is_none(
    photographs: Path, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(photographs / "boxes.csv"))  # no folder
    open_all(photographs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/camtrain").mkdir(parents=True)
    (tmp_path / "cache/camtrain/readable_pictures.npy").write_bytes(b"\x93NUMPY\1")
    open_all(photographs)
    open_all(photographs)
    assert len(opened) == 2 * 16


def test_a_refused_training_leaves_no_folder_and_allows_the_next(
    photographs: Path,
    fit_arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [file, _] = damage(photographs, "test", 1)
    assert main(fit_arguments()) == 2
    assert f"the first: The image {file} cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
