"""Multi-label: sigmoid and binary cross-entropy, from the loss to the shipped network."""

import csv
import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MultilabelAveragePrecision

import camtrain
from camtrain.errors import CamtrainError, CamtrainValueError
from camtrain.labels import multi_hot
from camtrain.training import CAMDataModule, CAMLogger, CAMModule, fit
from camtrain.training.cli.main import main as run
from camtrain.training.evaluate import scores as evaluation_scores
from camtrain.training.evaluate.scores import MeanAveragePrecision
from camtrain.training.learn import losses
from camtrain.training.learn.losses import loss_of
from tests.training.conftest import quiet_trainer, small_module
from tests.training.watch.test_report import content_of

NORMALIZATION = camtrain.Preprocessing(size=(24, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


class TwoSquares(LightningDataModule):
    """A red square, a blue one, both or none, on noise; multi-hot labels of any type."""

    def __init__(self, dtype: torch.dtype = torch.float32, count: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = 0.3 * torch.rand(count, 3, 24, 32, generator=generator)
        hot = torch.stack([torch.arange(count) % 2, torch.arange(count) // 2 % 2], dim=1)
        for image, labels in zip(images, hot.tolist(), strict=True):
            for channel, is_there in zip((0, 2), labels, strict=True):
                y, x = torch.randint(0, 16, (2,), generator=generator).tolist()
                image[channel, y : y + 8, x + 8 * (channel > 0) :][:, :8] += 0.7 * is_there
        self.raw = images
        self.pictures = TensorDataset((images - 0.5) / 0.5, hot.to(dtype))
        self.preprocessing = NORMALIZATION
        self.class_names = ("red", "blue")

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of eight."""
        return DataLoader(self.pictures, batch_size=8)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The same pictures."""
        return DataLoader(self.pictures, batch_size=8)


def module_of(**settings: Any) -> CAMModule:
    torch.manual_seed(0)
    return small_module(task="multilabel", **settings)


def scores_of(module: CAMModule, data: LightningDataModule) -> dict[str, float]:
    [scores] = quiet_trainer().validate(module, data, verbose=False)
    return dict(scores)


def test_the_examples_print_what_they_say() -> None:
    for module in (evaluation_scores, losses):
        failed, attempted = doctest.testmod(module)
        assert attempted > 0
        assert failed == 0


def test_it_learns_two_labels_at_once() -> None:
    module, data = module_of(lr=0.02), TwoSquares()
    before = scores_of(module, data)
    assert before.keys() == {"val/loss", "val/map", "val/ece"}
    quiet_trainer(max_epochs=12).fit(module, data)
    after = scores_of(module, data)
    assert after["val/loss"] < 0.7 * before["val/loss"]
    assert after["val/map"] > max(0.9, before["val/map"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_the_loss_is_the_binary_cross_entropy_over_all(dtype: torch.dtype) -> None:
    module, data = module_of(), TwoSquares(dtype)
    images, labels = data.pictures.tensors
    with torch.inference_mode():
        logits = module.eval()(images)
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    assert torch.equal(loss_of(logits, labels, "multilabel"), expected)
    assert scores_of(module, data)["val/loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_class_numbers_become_one_hot() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([2, 0, 1, 2])
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 3).float())
    assert torch.equal(loss_of(logits, labels.int(), "multilabel"), expected)
    assert torch.equal(loss_of(logits, labels, "multiclass"), F.cross_entropy(logits, labels))


def test_one_label_per_picture_still_gives_localization(boxed_data: CAMDataModule) -> None:
    scores = scores_of(module_of(), boxed_data)
    assert {"val/map", "val/loc_gt_known", "val/max_box_acc"} < scores.keys()
    assert not {"val/acc1", "val/acc5"} & scores.keys()


def rounded(logits: Tensor) -> Tensor:
    """The middles of the bins: none is on an edge."""
    return (logits / 0.05).round() * 0.05 + 0.025


def filled(logits: Tensor, targets: Tensor, batch: int) -> MeanAveragePrecision:
    metric = MeanAveragePrecision(logits.shape[1])
    for some, true in zip(logits.split(batch), targets.split(batch), strict=True):
        metric.update(some, true)
    return metric


def test_the_mean_average_precision_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = rounded(4 * torch.randn(200, 7, generator=generator))
    targets = (logits + 6 * torch.randn(200, 7, generator=generator) > 3).int()
    reference = MultilabelAveragePrecision(7, average="macro")
    reference.update(logits.double().sigmoid(), targets)
    found = filled(logits, targets, batch=200).compute()
    assert found.item() == pytest.approx(reference.compute().item(), abs=1e-6)
    for batch in (1, 3):
        assert torch.equal(filled(logits, targets, batch).compute(), found)
    order = torch.randperm(200, generator=generator)
    assert torch.equal(filled(logits[order], targets[order], 9).compute(), found)


def test_ties_beyond_the_bins_and_nan_have_defined_answers() -> None:
    targets = torch.tensor([[1], [0], [0], [1]])
    for logits, expected in (
        ([50.0, 40.0, -40.0, -50.0], (1 / 2 + 2 / 4) / 2),  # pairwise in one bin
        ([1.0, torch.nan, torch.nan, 1.0], 1.0),
        ([torch.inf, 0.0, 0.0, -torch.inf], (1 + 2 / 4) / 2),
        ([0.0] * 4, 0.5),
    ):
        metric = filled(torch.tensor(logits)[:, None], targets, 4)
        assert metric.compute().item() == pytest.approx(expected)
    assert filled(torch.zeros(2, 3), torch.zeros(2, 3), 2).compute().isnan()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, 5), r"must be multi-hot, \(B, 2\), or class numbers, \(B,\), got \(4, 5\)"),
        (torch.zeros(4), r"class numbers, \(B,\), got \(4,\) of torch\.float32"),
        (torch.zeros(4, 2, 1), r"got \(4, 2, 1\)"),
        (torch.tensor([0, 2]), r"must be class numbers 0\.\.1, got 0 to 2"),
        (torch.tensor([[0, -1]]), r"must be 0 or 1 for each class, got -1 to 0"),
        (torch.tensor([[0.5, 1.0]]), r"must be 0 or 1 for each class, got 0\.5 to 1"),
        (torch.tensor([[torch.nan, 1.0]]), "must be 0 or 1 for each class, got nan"),
    ],
)
def test_wrong_labels_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        multi_hot(labels, 2)


def test_multi_hot_labels_of_a_multiclass_network_are_refused() -> None:
    with pytest.raises(CamtrainValueError, match='several labels per picture give task="multilab'):
        quiet_trainer().fit(small_module(), TwoSquares(torch.int64))


def test_an_unknown_task_is_refused() -> None:
    for make in (small_module, lambda **task: camtrain.create_model("camtrain/digits", 2, **task)):
        with pytest.raises(CamtrainError, match="task must be multiclass or multilabel, got 'x'"):
            make(task="x")


def test_checkpoint_and_bundle_give_sigmoid_scores(tmp_path: Path) -> None:
    module, data, trainer = module_of(), TwoSquares(), quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    camtrain.Predictor(module.net).save(tmp_path / "a.safetensors")
    with torch.inference_mode():
        expected = module.eval()(data.pictures.tensors[0][:3]).sigmoid().sort(descending=True)
    assert (expected.values.sum(1) != 1).all()
    for name in ("a.ckpt", "a.safetensors"):
        predictor = camtrain.load(tmp_path / name)
        assert predictor.net.task == "multilabel"
        for row, prediction in enumerate(predictor(data.raw[:3])):
            scores, classes = expected.values[row].tolist(), expected.indices[row].tolist()
            assert prediction.scores == pytest.approx(scores, abs=1e-6)
            assert list(prediction.classes) == classes
            assert list(prediction.names) == [data.class_names[number] for number in classes]
    loaded = CAMModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert scores_of(loaded, data) == scores_of(module, data)


def test_a_training_from_before_there_were_tasks_is_continued(tmp_path: Path) -> None:
    data = TwoSquares()
    data.pictures = TensorDataset(data.pictures.tensors[0], torch.arange(32) % 2)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(small_module(), data)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    content = torch.load(tmp_path / "old.ckpt", weights_only=True)
    del content["camtrain"]["architecture"]["task"], content["hyper_parameters"]["task"]
    torch.save(content, tmp_path / "old.ckpt")
    module = small_module()
    quiet_trainer(max_epochs=2).fit(module, data, ckpt_path=tmp_path / "old.ckpt")
    assert module.net.task == "multiclass"
    assert camtrain.load(tmp_path / "old.ckpt").net.task == "multiclass"


def test_pictures_of_many_labels_and_of_none_are_watched(tmp_path: Path) -> None:
    watcher = CAMLogger(num_images=4, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], max_epochs=1).fit(module_of(), TwoSquares())
    pictures = content_of(tmp_path / "cams" / "report.html")["pictures"]
    assert [one["name"].split(",")[0] for one in pictures] == [
        "no class",
        "red",
        "blue",
        "no class",
    ]
    sheet = np.asarray(Image.open(tmp_path / "cams" / "epoch_001.jpg"))
    assert sheet.std() > 0


def test_the_command_line_trains_multilabel_on_folders(
    fit_arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fit_arguments("--model.task", "multilabel"))
    folder = tmp_path / "runs" / "run"
    with open(folder / "metrics.csv") as file:
        columns = next(csv.reader(file))
    assert {"val/loss", "val/map", "val/max_box_acc"} < set(columns)
    assert "val/acc1" not in columns
    assert "monitor: val/map" in (folder / "config.yaml").read_text()
    assert "mean average precision" in capsys.readouterr().out
    assert camtrain.load(folder / "model.safetensors").net.task == "multilabel"
    run(["validate", "--ckpt_path", str(folder / "checkpoints" / "best.ckpt")])
    assert "val/map" in capsys.readouterr().out


def test_a_score_of_the_other_task_is_no_monitor(fit_arguments: Callable[..., list[str]]) -> None:
    for task, monitor in (("multilabel", "val/acc1"), ("multiclass", "val/map")):
        with pytest.raises(CamtrainError, match=rf"^--monitor must be one of .*, got '{monitor}'"):
            run(fit_arguments("--model.task", task, "--monitor", monitor))


@pytest.fixture
def with_and_without(photographs: Path) -> Path:
    """The photographs as a list of one class: red, or of no class; boxes only of the red ones."""
    rows = ["path,label,split"]
    for path in sorted(photographs.rglob("*.png")):
        split, name, file = path.relative_to(photographs).parts
        rows.append(f"{split}/{name}/{file},{name.replace('blue', '')},{split}")
    (photographs / "labels.csv").write_text("\n".join(rows))
    boxes = (photographs / "boxes.csv").read_text().splitlines()
    (photographs / "boxes.csv").write_text("\n".join(b for b in boxes if "blue" not in b))
    return photographs


def test_a_class_alone_is_trained_evaluated_watched_and_shipped(
    with_and_without: Path,
    fit_arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    csv_source = ("--data.source", "csv", "--model.task", "multilabel")
    with pytest.raises(
        CamtrainError, match=r"task must be multilabel for one class, .* got multicl"
    ):
        run(fit_arguments(*csv_source[:2]))
    run(fit_arguments(*csv_source, "--model.lr", "0.02", "--model.class_weights", "balanced"))
    folder = tmp_path / "runs" / "run"
    with open(folder / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    assert {"val/loss", "val/map", "val/acc", "val/max_box_acc", "val/cam_area"} < last.keys()
    assert not {"val/acc1", "val/acc5"} & last.keys()
    assert float(last["val/map"]) == 1
    content = content_of(folder / "report.html")
    assert {one["name"] for one in content["pictures"]} == {"red", "no class"}
    assert "accuracy, score of at least 0.5" in capsys.readouterr().out
    predictor = camtrain.load(folder / "model.safetensors")
    assert (predictor.net.task, predictor.net.class_names) == ("multilabel", ("red",))
    files = [with_and_without / "test" / name / "0.png" for name in ("red", "blue")]
    red, other = predictor(files)
    assert red.names == other.names == ("red",)
    assert red.scores[0] > other.scores[0]


def test_the_accuracy_of_a_class_alone_counts_scores_from_a_half_on() -> None:
    logits = torch.tensor([0.0, -0.0, -1e-7, -20.0, 20.0, 0.3, torch.nan])[:, None]
    targets = torch.tensor([1, 0, 0, 1, 1, 0, 0])[:, None]
    for batch in (1, 2, 7):
        assert filled(logits, targets, batch).accuracy().item() == pytest.approx(4 / 7)
    evaluation = evaluation_scores.Evaluation(1, "multilabel")
    evaluation.reset()
    evaluation.update(logits[:5], None, targets[:5].float())
    assert evaluation.compute()["acc"].item() == pytest.approx(3 / 5)
    assert "acc" not in evaluation_scores.score_names(2, "multilabel")
    assert "acc" not in evaluation_scores.score_names(1, "multiclass")


def test_without_any_label_the_loss_chooses_the_best(tmp_path: Path) -> None:
    """Before, ``val/map`` was nan in ``metrics.csv``, and the first validation the best."""
    data = TwoSquares(count=8)
    data.val_dataloader = lambda: DataLoader(  # type: ignore[method-assign]
        TensorDataset(data.pictures.tensors[0], torch.zeros(8, 2)), batch_size=8
    )
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}
    settings = {"folder": tmp_path / "run", "logger": "none", "trainer": trainer}
    with pytest.warns(UserWarning, match="No picture of val has a label, so val/map is not"):
        result = fit(module_of(), data, cams=CAMLogger(2), **settings)
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert "val/map" not in rows[0]
    losses_of_rows = [float(row["val/loss"]) for row in rows]
    assert result.best_epoch == 1 + losses_of_rows.index(min(losses_of_rows))
