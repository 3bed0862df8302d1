"""The report: what it holds, that it goes on, and how large it becomes."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from camtrain.training.evaluate.scores import ClassScores
from camtrain.training.watch import report as report_module
from camtrain.training.watch.report import TrainingReport
from camtrain.training.watch.snapshot import Moment
from tests.training.conftest import quiet_trainer, small_module
from tests.training.watch.snapshots import pictures_of, snapshot

SCORES = {"val/loss": torch.tensor(0.5), "val/acc1": torch.tensor(0.75)}


def content_of(path: Path) -> dict[str, Any]:
    """What the page shows."""
    found = re.search(r'id="content">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def written(tmp_path: Path, epochs: range, **settings: Any) -> TrainingReport:
    report = TrainingReport(tmp_path / "run" / "report.html", "turbo")
    first = snapshot(0, **settings)
    report.set_pictures(pictures_of(first), first.names)
    for epoch in epochs:
        report.add(snapshot(epoch, **settings))
        if epoch:
            report.add_scores(Moment(epoch), SCORES)
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


def test_a_result_is_what_the_network_predicts(tmp_path: Path) -> None:
    written(tmp_path, range(2))
    content = content_of(tmp_path / "run" / "report.html")
    look, expected = content["epochs"][1]["looks"][2], snapshot(1).results[2]
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


def resumed(tmp_path: Path, epochs: int, indices: list[int] | None = None) -> TrainingReport:
    report = TrainingReport(tmp_path / "run" / "report.html", "turbo")
    report.load(epochs)
    pictures = pictures_of(snapshot(0))
    wanted = {index: pictures[index] for index in indices or range(3)}
    report.set_pictures(wanted, snapshot(0).names)
    return report


def test_a_resumed_training_goes_on_and_forgets_what_came_after(tmp_path: Path) -> None:
    written(tmp_path, range(4))
    whole = content_of(tmp_path / "run" / "report.html")
    report = resumed(tmp_path, 2)  # epoch 3 is going to be trained again
    report.write(quiet_trainer(max_epochs=9), small_module())
    again = content_of(tmp_path / "run" / "report.html")
    assert [epoch["epoch"] for epoch in again["epochs"]] == [0, 1, 2]
    report.add(snapshot(3))
    report.add_scores(Moment(3), SCORES)
    report.write(quiet_trainer(max_epochs=9), small_module())
    again = content_of(tmp_path / "run" / "report.html")
    again.pop("state"), whole.pop("state")
    assert again == whole


def test_results_stay_with_their_pictures_where_one_was_damaged_or_repaired(tmp_path: Path) -> None:
    written(tmp_path, range(2))
    before = content_of(tmp_path / "run" / "report.html")["epochs"][1]["looks"]
    report = resumed(tmp_path, 1, [0, 2])  # one is damaged since
    epoch = snapshot(2)
    report.add(replace(epoch, results=[epoch.results[0], epoch.results[2]]))
    report.write(quiet_trainer(), small_module())
    content = content_of(tmp_path / "run" / "report.html")
    assert [one["path"] for one in content["pictures"]] == ["val/0.jpg", "val/2.jpg"]
    assert content["epochs"][1]["looks"] == [before[0], before[2]]
    report = resumed(tmp_path, 2)  # and repaired
    report.write(quiet_trainer(), small_module())
    looks = content_of(tmp_path / "run" / "report.html")["epochs"][2]["looks"]
    assert [look is None for look in looks] == [False, True, False]
    drawn = report.timeline(list(pictures_of(snapshot(0)).values()))
    assert drawn is not None
    assert drawn.height > 100


def test_what_is_kept_is_enough_to_add_a_test(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    before = content_of(tmp_path / "run" / "report.html")
    report = TrainingReport(tmp_path / "run" / "report.html", "turbo")
    report.load()
    report.set_test_scores({"test/acc1": torch.tensor(0.5)})
    report.write(quiet_trainer(max_epochs=9), small_module())
    after = content_of(tmp_path / "run" / "report.html")
    assert after.pop("test") == {"test/acc1": ["accuracy, top-1", "50.00 %"]}
    assert before.pop("test") == {}
    after.pop("state"), before.pop("state")
    after.pop("verdict"), before.pop("verdict")
    assert after == before


def test_a_new_training_forgets_an_earlier_one(tmp_path: Path) -> None:
    written(tmp_path, range(4))
    report = TrainingReport(tmp_path / "run" / "report.html", "turbo")
    report.clear()
    report.load()
    assert report.timeline(list(pictures_of(snapshot(0)).values())) is None


def test_every_epoch_since_the_last_page_is_kept(tmp_path: Path) -> None:
    report = written(tmp_path, range(1))
    for epoch in (1, 2, 3):
        report.add_scores(Moment(epoch), {"train/loss": torch.tensor(1.0 / epoch)})
    report.write(quiet_trainer(), small_module())
    again = TrainingReport(tmp_path / "run" / "report.html", "turbo")
    again.load()
    again.write(quiet_trainer(), small_module())
    [loss] = content_of(tmp_path / "run" / "report.html")["curves"]
    assert [epoch for epoch, _ in loss["series"][0]["points"]] == [1, 2, 3]


def test_the_locale_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has signs beyond ASCII, as names may."""
    encodings, original = set(), Path.write_text

    def write_text(path: Path, text: str, encoding: str | None = None) -> int:
        encodings.add(encoding)
        return original(path, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", write_text)
    written(tmp_path, range(2), names=("Känguru", "豹", "raton"))
    assert encodings == {"utf-8"}
    assert not (tmp_path / "run" / "report.html").read_bytes().decode("utf-8").isascii()


def test_an_epoch_without_a_validation_has_scores_only(tmp_path: Path) -> None:
    report = written(tmp_path, range(2))
    report.add_scores(Moment(2), {"train/loss": torch.tensor(0.25)})
    report.write(quiet_trainer(), small_module())
    content = content_of(tmp_path / "run" / "report.html")
    assert [epoch["epoch"] for epoch in content["epochs"]] == [0, 1]
    assert content["curves"][0]["series"][0]["points"] == [[2, 0.25]]
    assert json.loads((tmp_path / "run" / "report" / "epoch_002.json").read_text())["looks"] == {}
    report.load(2)
    report.write(quiet_trainer(), small_module())
    assert content_of(tmp_path / "run" / "report.html")["epochs"] == content["epochs"]


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    report = written(tmp_path, range(1))
    broken = snapshot(1)
    assert broken.results[0].true is not None
    broken.results[0].true.class_map[0, 0] = math.nan
    report.add(broken)
    odd = {"val/loss": torch.tensor(math.inf), "val/acc1": torch.tensor(math.nan)}
    report.add_scores(Moment(1), odd)
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


def test_the_page_of_10_000_classes_takes_less_than_200_kb(tmp_path: Path) -> None:
    names = tuple(f"a class with quite a long name {number}" for number in range(10_000))
    epoch = snapshot(1, names=names)
    assert epoch.statistics is not None
    seen = torch.arange(10_000) % 7
    classes = ClassScores(None, None, seen // 2, seen)
    report = TrainingReport(tmp_path / "report.html", "turbo")
    report.set_pictures(pictures_of(epoch), names)
    report.add(replace(epoch, statistics=replace(epoch.statistics, classes=classes)))
    report.write(quiet_trainer(), small_module())
    assert report.path.stat().st_size < 200_000
    assert content_of(report.path)["classes"]["title"] == "The worst 1000 of 10000 classes"


@pytest.mark.nightly
def test_16_pictures_of_50_epochs_take_less_than_15_mb(tmp_path: Path) -> None:
    """Noise, which JPEG hardly shrinks, and the largest maps that the page keeps."""
    written(tmp_path, range(51), pictures=16, mistakes=8, side=340, cells=60)
    path = tmp_path / "run" / "report.html"
    assert path.stat().st_size < 15e6
    content = content_of(path)
    kept = [epoch["epoch"] for epoch in content["epochs"]]
    assert kept[0] == 0
    assert kept[-1] == 50
    assert len(kept) == content["epochs_seen"] == 51


def test_beyond_its_size_epochs_in_between_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camtrain.training.watch.report._MOST_BYTES", 9_000)
    written(tmp_path, range(13))
    content = content_of(tmp_path / "run" / "report.html")
    kept = [epoch["epoch"] for epoch in content["epochs"]]
    assert kept[0] == 0
    assert kept[-1] == 12
    assert 2 < len(kept) < content["epochs_seen"] == 13
    assert len(json.dumps(content["epochs"])) < 11_000
    assert len(content["curves"][0]["series"][0]["points"]) == 12


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [(1, [0]), (3, [0, 1, 2]), (7, [0, 1, 2, 3, 4, 6]), (51, [0, 1, 4, 10, 22, 50])],
)
def test_the_timeline_shows_some_epochs_dense_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, shown: list[int]
) -> None:
    drawn: list[tuple[int, list[str]]] = []

    def timeline(rows: list[list[Any]], headings: list[str]) -> None:
        drawn.append((len(rows), headings))

    monkeypatch.setattr(report_module, "timeline", timeline)
    report = TrainingReport(tmp_path / "report.html", "viridis")
    first = snapshot(0, pictures=1, mistakes=0)
    report.set_pictures(pictures_of(first), first.names)
    for epoch in range(epochs):
        report.add(snapshot(epoch, pictures=1, mistakes=0))
    report.timeline(list(pictures_of(first).values()))
    assert drawn == [(1, ["picture", *(f"epoch {epoch}\nbox at 0.2" for epoch in shown)])]
