"""What a kill leaves of a prediction, and how it goes on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import camtrain
from camtrain import cli
from camtrain.inference import prediction_folder
from camtrain.inference.prediction_folder import PredictionFolder
from camtrain.model.camnet import CAMNet
from tests.by_two import run_by_two
from tests.conftest import at_night

COUNT = 66  # pictures, one of which is none


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and pictures."""
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 3, neck=(8,), backbone_args={"width": 4})
    folder = tmp_path_factory.mktemp("place")
    preprocessing = camtrain.Preprocessing((32, 32))
    camtrain.Predictor(net, class_names=["a", "b", "c"], preprocessing=preprocessing).save(
        folder / "model.safetensors"
    )
    (folder / "photos").mkdir()
    for number in range(COUNT):
        Image.new("RGB", (24, 20), (number, 3 * number, 90)).save(folder / f"photos/{number}.png")
    (folder / "photos/13.png").write_text("no picture")
    return folder


def predict(place: Path, output: Path, *args: str) -> int:
    files = [str(place / "model.safetensors"), str(place / "photos"), "--output", str(output)]
    return cli.main(["predict", *files, "--batch_size", "4", *args])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, bytes]:
    """The results of a prediction that nothing disturbed."""
    assert predict(place, place / "whole", "--heatmaps") == 1
    files = contents(place / "whole")
    assert len([name for name in files if name.startswith("sheets/")]) == 2
    return files


class Killed(BaseException):
    """Nothing is done after it."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the process die before the N-th file is written, or its lines, or a sheet is over."""

    def arrange(count: int) -> None:
        calls = iter(range(1, count + 1))

        def dying(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **options: Any) -> Any:  # noqa: ANN401
                if next(calls, None) == count:
                    raise Killed
                return function(*args, **options)

            return run

        for name in ("append", "replacing", "write_picture"):
            monkeypatch.setattr(prediction_folder, name, dying(getattr(prediction_folder, name)))
        leave = PredictionFolder.__exit__
        monkeypatch.setattr(
            PredictionFolder,
            "__exit__",
            lambda folder, kind, *rest: None if kind is Killed else leave(folder, kind, *rest),
        )

    return arrange


@pytest.mark.parametrize("count", at_night([2, 60, 214, *range(5, 215, 8)], *range(5, 215, 8)))
def test_what_is_killed_goes_on_to_the_same_files(
    count: int,
    place: Path,
    whole: dict[str, bytes],
    kill: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context():
        kill(count)
        with pytest.raises(Killed):
            predict(place, output, "--heatmaps")
    monkeypatch.undo()
    with (output / "predictions.jsonl").open("ab") as file:
        file.write(b'{"file": "torn')
    lines = (output / "predictions.jsonl").read_bytes().count(b"\n")
    predicted: list[int] = []
    display_maps = CAMNet.display_maps

    def counted(net: CAMNet, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        predicted.append(1)
        return display_maps(net, *args, **options)

    monkeypatch.setattr(CAMNet, "display_maps", counted)
    assert predict(place, output, "--heatmaps", "--resume", "true") == 1
    assert contents(output) == whole
    assert len(predicted) == -(-(COUNT - lines) // 4)  # no picture that has a line
    assert predict(place, output, "--heatmaps", "--resume") == 0
    assert contents(output) == whole


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--heatmaps"], "is not empty; give --resume true to go on with it, or --overwrite"),
        (["--resume", "--batch_size", "5"], "batch_size was 4, got 5; give the same, or --overw"),
        (["--resume", "--heatmaps", "--top", "2"], "top was None, got 2"),
    ],
)
def test_a_prediction_goes_on_only_as_it_began(
    args: list[str],
    message: str,
    place: Path,
    kill: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kill(40)
    with pytest.raises(Killed):
        predict(place, tmp_path / "out", "--heatmaps")
    before = contents(tmp_path / "out")
    assert predict(place, tmp_path / "out", *args) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def _by_two(place: Path, output: Path) -> None:
    os.environ |= {"TORCHELASTIC_RUN_ID": "none", "RANK": os.environ["LOCAL_RANK"]}
    os.environ["WORLD_SIZE"] = "2"
    status = predict(place, output, "--heatmaps")
    assert status == (1 if os.environ["RANK"] == "0" else 0)


def test_two_processes_leave_the_files_of_one(
    place: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    first, second = run_by_two(_by_two, place, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert f"{COUNT - 1} of {COUNT} pictures predicted" in first
    assert "predicted" not in second
