"""The report: what it holds, that it goes on, and how large it becomes."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from camtrain.training.watching.report import Report
from tests.training.conftest import quiet_trainer, small_module
from tests.training.watching.views import view

SCORES = {"val/loss": torch.tensor(0.5), "val/acc1": torch.tensor(0.75)}


def content_of(path: Path) -> dict[str, Any]:
    """What the page shows."""
    found = re.search(r'id="content">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def written(tmp_path: Path, epochs: range, **settings: Any) -> Report:
    report = Report(tmp_path / "run" / "report.html", "turbo")
    for epoch in epochs:
        report.add(view(epoch, **settings))
        if epoch:
            report.score(epoch, SCORES)
        report.write(quiet_trainer(max_epochs=9), small_module())
    return report


def test_every_epoch_is_in_it(tmp_path: Path) -> None:
    written(tmp_path, range(4))
    content = content_of(tmp_path / "run" / "report.html")
    assert content["title"] == "run"
    assert content["state"].startswith("epoch 3 of 9, written ")
    assert [epoch["epoch"] for epoch in content["epochs"]] == [0, 1, 2, 3]
    assert [len(epoch["looks"]) for epoch in content["epochs"]] == [3] * 4
    assert len(content["mistakes"]) == 2
    loss, accuracy = content["curves"]
    assert (loss["title"], accuracy["title"]) == ("loss", "accuracy")
    assert accuracy["series"][0]["points"] == [[1, 0.75], [2, 0.75], [3, 0.75]]
    assert content["classes"]["matrix"] is not None
    assert content["settings"]["Network (--model)"]["backbone"] == "camtrain/digits"
    assert content["settings"]["Versions"]["torch"] == torch.__version__.partition("+")[0]
    assert content["colormap"]["name"] == "turbo"
    for chart in content["maps"]:
        assert [sum(counts) for _, counts in chart["density"]] == [30] * 3


def test_a_look_is_what_was_seen(tmp_path: Path) -> None:
    written(tmp_path, range(2))
    content, seen = content_of(tmp_path / "run" / "report.html"), view(1)
    look, expected = content["epochs"][1]["looks"][2], seen.looks[2]
    assert expected.true is not None
    assert look["true"]["name"] == "raccoon"
    assert look["predicted"]["name"] == "leopard"
    assert (look["is_right"], look["is_located"]) == (False, False)
    assert look["true"]["map"]["hw"] == [4, 5]
    class_map = expected.true.class_map
    raw = [class_map.min().item(), class_map.max().item(), class_map.mean().item()]
    assert look["true"]["map"]["range"] == pytest.approx(raw, rel=1e-5)
    assert look["predicted"]["boxes"] == [[round(1 / 60, 5), 0.05, 0.5, 37 / 40]]
    assert content["pictures"][2]["boxes"] == [[round(10 / 60, 5), 0.125, round(40 / 60, 5), 0.5]]
    assert content["pictures"][2]["covered"] == [0, 0, 1, 1]


def test_a_resumed_training_goes_on_and_forgets_what_came_after(tmp_path: Path) -> None:
    written(tmp_path, range(4))
    whole = content_of(tmp_path / "run" / "report.html")
    report = Report(tmp_path / "run" / "report.html", "turbo")
    report.load(2)  # epoch 3 is going to be trained again
    report.add(view(3))
    report.score(3, SCORES)
    report.write(quiet_trainer(max_epochs=9), small_module())
    again = content_of(tmp_path / "run" / "report.html")
    again.pop("state"), whole.pop("state")
    assert again == whole


def test_an_epoch_without_a_validation_has_scores_only(tmp_path: Path) -> None:
    report = written(tmp_path, range(2))
    report.score(2, {"train/loss": torch.tensor(0.25)})
    report.write(quiet_trainer(), small_module())
    content = content_of(tmp_path / "run" / "report.html")
    assert [epoch["epoch"] for epoch in content["epochs"]] == [0, 1]
    assert content["curves"][0]["series"][0]["points"] == [[2, 0.25]]
    assert json.loads((tmp_path / "run" / "report" / "epoch_002.json").read_text())["looks"] is None
    report.load(2)
    report.write(quiet_trainer(), small_module())
    assert content_of(tmp_path / "run" / "report.html")["epochs"] == content["epochs"]


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    report = written(tmp_path, range(1))
    broken = view(1)
    assert broken.looks[0].true is not None
    broken.looks[0].true.class_map[0, 0] = math.nan
    report.add(broken)
    report.score(1, {"val/loss": torch.tensor(math.inf), "val/acc1": torch.tensor(math.nan)})
    report.write(quiet_trainer(), small_module())
    content = content_of(tmp_path / "run" / "report.html")
    assert content["curves"] == []
    assert content["epochs"][1]["looks"][0]["true"]["map"]["range"] is None


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    names = ("</script><script>alert(1)</script>", "<b>", '"&amp;')
    written(tmp_path, range(2), names=names)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "alert(1)</script>" not in text
    assert text.count("</script>") == 2
    assert content_of(tmp_path / "run" / "report.html")["classes"]["names"] == list(names)


def test_it_asks_for_nothing_from_a_network(tmp_path: Path) -> None:
    written(tmp_path, range(2))
    text = (tmp_path / "run" / "report.html").read_text()
    text = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_many_classes_are_listed(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(1000))
    written(tmp_path, range(2), names=names)
    classes = content_of(tmp_path / "run" / "report.html")["classes"]
    assert classes["matrix"] is None
    assert len(classes["rows"]) == 1000
    assert 0 < len(classes["pairs"]) <= 300


@pytest.mark.slow
def test_16_pictures_of_50_epochs_take_less_than_15_mb(tmp_path: Path) -> None:
    """Noise, which JPEG hardly shrinks, and the largest maps that the page keeps."""
    written(tmp_path, range(51), pictures=16, mistakes=8, side=340, cells=60)
    path = tmp_path / "run" / "report.html"
    assert path.stat().st_size < 15e6
    content = content_of(path)
    kept = [epoch["epoch"] for epoch in content["epochs"]]
    assert kept[0] == 0
    assert kept[-1] == 50
    assert len(kept) > 40


def test_beyond_its_size_epochs_in_between_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camtrain.training.watching.report._MOST_BYTES", 9_000)
    written(tmp_path, range(13))
    content = content_of(tmp_path / "run" / "report.html")
    kept = [epoch["epoch"] for epoch in content["epochs"]]
    assert kept[0] == 0
    assert kept[-1] == 12
    assert 2 < len(kept) < 12
    assert len(json.dumps(content["epochs"])) < 11_000
    assert len(content["curves"][0]["series"][0]["points"]) == 12


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [(1, [0]), (3, [0, 1, 2]), (7, [0, 1, 2, 3, 4, 6]), (51, [0, 1, 4, 10, 22, 50])],
)
def test_the_looks_of_some_epochs_are_dense_at_first(
    tmp_path: Path, epochs: int, shown: list[int]
) -> None:
    report = Report(tmp_path / "report.html", "viridis")
    for epoch in range(epochs):
        report.add(view(epoch, pictures=1, mistakes=0))
    found = report.looks(6)
    assert list(found) == shown
    assert [len(looks) for looks in found.values()] == [1] * len(shown)
