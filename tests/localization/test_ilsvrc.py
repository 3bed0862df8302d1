"""flat_errors and read_predictions: the official program's numbers, by hand, and bad files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from camtrain.localization import flat_errors, read_predictions


@pytest.mark.parametrize("blacklist", ["no_blacklist", "with_blacklist"])
@pytest.mark.parametrize("way", ["tensor", "file", "unsigned"])
def test_the_errors_of_the_official_program(
    shared: Path, tmp_path: Path, blacklist: str, way: str
) -> None:
    folder = shared / "oracles" / "ilsvrc_eval"
    data = np.load(folder / "data.npz")
    predictions = torch.from_numpy(data["pred"]).reshape(-1, 5, 5)
    rows, truth = data["gt_boxes"][:, 0], data["gt_boxes"][:, 1:]
    if way == "file":
        np.savetxt(tmp_path / "predictions.txt", data["pred"], fmt="%.17g")
        predictions = read_predictions(tmp_path / "predictions.txt")
    if way == "unsigned":  # as the official file of the truth is read when one is not careful
        truth = truth.astype(np.uint16)
    is_blacklisted = torch.zeros(len(predictions), dtype=torch.bool)
    is_blacklisted[data["blacklist0"]] = blacklist == "with_blacklist"
    found = flat_errors(
        predictions,
        torch.from_numpy(data["labels"]),
        boxes_xyxy=[torch.from_numpy(truth[rows == row]) for row in range(len(predictions))],
        blacklisted=is_blacklisted,
    )
    for k, expected in enumerate(json.loads((folder / "expected.json").read_text())[blacklist]):
        assert found.classification[k] == pytest.approx(expected["cls_error"], abs=1e-12)
        assert found.localization[k] == pytest.approx(expected["clsloc_error"], abs=1e-12)


def errors(guesses: list[list[float]], truth: list[list[int]], label: int = 3) -> tuple[float, ...]:
    """The localization errors of one picture."""
    predictions = torch.full((1, 5, 5), -1.0)
    predictions[0, : len(guesses)] = torch.tensor(guesses).reshape(-1, 5)
    boxes_xyxy = [torch.tensor(truth).reshape(-1, 4)]
    return flat_errors(predictions, torch.tensor([label]), boxes_xyxy=boxes_xyxy).localization


TRUTH = [[0, 0, 9, 7]]  # 10 x 8 pixels


@pytest.mark.parametrize(
    ("guesses", "expected"),
    [
        ([[3, 0, 0, 9, 3]], (0, 0, 0, 0, 0)),  # exactly one half
        ([[3, 0, 0, 9, 2]], (1, 1, 1, 1, 1)),
        ([[3, 0, 0, 7, 9]], (0, 0, 0, 0, 0)),  # 64 of 96
        ([[2, 0, 0, 9, 7], [3, 0, 0, 9, 7]], (1, 0, 0, 0, 0)),
        ([[3, 50, 50, 60, 60], [3, 0, 0, 9, 7]], (1, 0, 0, 0, 0)),  # one label, guessed twice
        ([[3, 0, 0, -1, -1]], (1, 1, 1, 1, 1)),  # the empty box
        ([[3, 9, 7, 0, 0]], (1, 1, 1, 1, 1)),  # edges the wrong way round
        ([], (1, 1, 1, 1, 1)),
    ],
)
def test_guesses_by_hand(guesses: list[list[float]], expected: tuple[int, ...]) -> None:
    assert errors(guesses, TRUTH) == expected


def test_any_truth_box_will_do() -> None:
    assert errors([[3, 0, 0, 9, 7]], [[40, 40, 50, 50], *TRUTH]) == (0.0,) * 5


def test_a_missing_guess_is_no_guess_of_a_label() -> None:
    assert errors([], TRUTH, label=-1) == (1.0,) * 5


def test_pictures_without_boxes_leave_localization_only() -> None:
    assert str(errors([[3, 0, 0, 9, 7]], [])[0]) == "nan"
    predictions = torch.zeros(2, 5, 5)
    truth = [torch.zeros(0, 4), torch.tensor([[0, 0, 0, 0]])]
    found = flat_errors(predictions, torch.tensor([1, 0]), boxes_xyxy=truth)
    assert found.classification == (0.5,) * 5
    assert found.localization == (0.0,) * 5


def test_nothing_counted_is_nan() -> None:
    found = flat_errors(torch.zeros(0, 5, 5), torch.zeros(0), boxes_xyxy=[])
    assert np.isnan(found.classification + found.localization).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": torch.zeros(2, 25)}, "predictions must be (n, 5, 5), got (2, 25)"),
        ({"labels": torch.zeros(3)}, "got 2, (3,) and 2"),
        ({"boxes_xyxy": []}, "got 2, (2,) and 0"),
        ({"blacklisted": torch.tensor([True])}, "one bool per picture, (2,), got (1,)"),
        ({"blacklisted": torch.tensor([0, 1])}, "of torch.int64"),
        ({"iou_threshold": 0.0}, "iou_threshold must lie in"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    good = {
        "predictions": torch.zeros(2, 5, 5),
        "labels": torch.zeros(2),
        "boxes_xyxy": [torch.zeros(1, 4)] * 2,
    }
    with pytest.raises(CamtrainValueError) as error:
        flat_errors(**(good | arguments))
    assert message in str(error.value)


def test_fewer_guesses_and_none_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.txt"
    path.write_text("7 1 2 3 4  12 5 6 7.5 8\n\n" + "1 0 0 9 9 " * 5 + "\n")
    predictions = read_predictions(path)
    assert predictions.shape == (3, 5, 5)
    assert predictions[:, :, 0].tolist() == [[7, 12, -1, -1, -1], [-1] * 5, [1] * 5]
    assert predictions[0, 1].tolist() == [12, 5, 6, 7.5, 8]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 4", "got 4 numbers"),
        ("1 0 0 9 9 " * 6, "up to 5 groups of 5 numbers, label xmin ymin xmax ymax, got 30"),
        ("cat 0 0 9 9", "numbers separated by blanks, got 'cat'"),
        ("1 0 0 nan 9", "got 'nan'"),
        ("1,0,0,9,9", "got '1,0,0,9,9'"),
        ("1.5 0 0 9 9", "a label must be a whole number from 0, got 1.5"),
        ("-1 0 0 9 9", "got -1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "predictions.txt"
    path.write_text(f"1 0 0 9 9\n{line}\n")
    with pytest.raises(CamtrainValueError) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(CamtrainFileNotFoundError, match="nowhere"):
        read_predictions(tmp_path / "nowhere.txt")
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(CamtrainError, match="picture is not a text file"):
        read_predictions(tmp_path / "picture")
