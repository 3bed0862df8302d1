"""The callback: the same pictures every epoch, on disk, without a trace in the training."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, Dataset, IterableDataset

from camtrain import load
from camtrain.cli import main
from camtrain.errors import CamtrainError
from camtrain.header import read_checkpoint_content
from camtrain.training import CAMDataModule, CAMLogger, CAMModule
from camtrain.training.cli.main import main as run
from camtrain.training.evaluate.box_scores import BoxScores
from camtrain.visualize.report.page import part_of_picture
from tests.by_two import run_by_two
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer, small_module
from tests.training.test_module import AnybodysData
from tests.training.watch.test_report import content_of

Arguments = Callable[..., list[str]]
ROOT = Path(__file__).parents[3]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.jpg"))


def test_a_sheet_is_written_before_the_first_epoch_and_after_each(
    data: CAMDataModule, tmp_path: Path
) -> None:
    watcher = CAMLogger(num_images=4, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher]).fit(small_module(lr=0.1), data)
    names = names_in(tmp_path / "cams")
    assert names == ["epoch_000.jpg", "epoch_001.jpg", "epoch_002.jpg"]
    sheets = [np.asarray(Image.open(tmp_path / "cams" / name)) for name in names]
    assert len({sheet.shape for sheet in sheets}) == 1
    assert (sheets[0] != sheets[2]).any()


def test_the_report_is_written_anew_after_every_epoch(data: CAMDataModule, tmp_path: Path) -> None:
    states = []

    class Reader(CAMLogger):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            content = content_of(tmp_path / "cams" / "report.html")
            losses = {one["name"]: one["points"] for one in content["curves"][0]["series"]}
            states.append((content["state"][:12], len(content["epochs"]), losses))

    trainer = quiet_trainer(callbacks=[Reader(4, dirpath=tmp_path / "cams")])
    trainer.fit(small_module(), data)
    assert [state for state, _, _ in states] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert [count for _, count, _ in states] == [2, 3]
    last = states[-1][2]
    assert [epoch for epoch, _ in last["train/loss"]] == [1, 2]
    assert last["val/loss"][1][1] == pytest.approx(trainer.callback_metrics["val/loss"].item())
    assert not list(tmp_path.rglob(".*.part*"))


def test_the_report_of_a_run_ends_with_the_test(
    fitted: Callable[..., Path], tmp_path: Path
) -> None:
    fitted()
    content = content_of(tmp_path / "runs" / "run" / "report.html")
    found = json.loads((tmp_path / "runs/run/test/localization.json").read_text())["scores"]
    assert {name.removeprefix("test/") for name in content["test"]} == set(found)
    text, percent = content["test"]["test/acc1"]
    assert (text, percent) == ("accuracy, top-1", f"{100 * found['acc1']:.2f} %")
    assert content["verdict"].startswith("Best epoch, test: ")
    assert " for a fixed box, 8 pictures: " in content["verdict"]
    assert re.fullmatch(r"(red|blue) [01]\.\d\d of a black picture, .* of noise", content["blanks"])
    assert content["localization"][0]["marks"]["fixed"] == 0.2
    assert content["title"] == "run"


def test_watched_boxes_are_those_that_ship(
    fitted_once: Callable[..., Path], photographs_once: Path
) -> None:
    """Report, sheets and charts draw at the calibrated threshold of their epoch, and say so."""
    run_folder = fitted_once("--model.lr", "0.01")
    predictor = load(run_folder / "model.safetensors")
    threshold = predictor.threshold
    assert threshold != 0.2
    content = content_of(run_folder / "report.html")
    best = read_checkpoint_content(run_folder / "checkpoints" / "best.ckpt")["epoch"] + 1
    epoch = content["epochs"][best]
    assert epoch["threshold"] == f"{threshold:.3g}, calibrated"
    assert content["epochs"][0]["threshold"] == "0.2, the default"
    assert content["mistakes_threshold"] == content["epochs"][-1]["threshold"]
    for picture, look in zip(content["pictures"], epoch["looks"], strict=True):
        [prediction] = predictor([photographs_once / picture["path"]], top=2)
        rank = prediction.names.index(look["true"]["name"])
        size_hw = prediction.size_hw
        assert look["true"]["boxes"] == part_of_picture(prediction.boxes[rank][:1], size_hw)


def test_where_no_box_was_right_an_earlier_epoch_s_threshold_is_forgotten(
    boxed_data: CAMDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds, module = iter([0.5, None]), small_module()
    monkeypatch.setattr(BoxScores, "calibrated_threshold", lambda scores: next(thresholds))
    quiet_trainer().fit(module, boxed_data)
    assert (module.map_threshold, module.is_calibrated) == (0.2, False)


def test_a_resumed_run_watches_the_same_pictures_and_goes_on_with_its_report(
    fit_arguments: Arguments, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "run"
    run(fit_arguments("--trainer.max_epochs", "1"))
    before = content_of(folder / "report.html")
    run(fit_arguments("--ckpt_path", "last"))
    content = content_of(folder / "report.html")
    assert [picture["path"] for picture in content["pictures"]] == [
        picture["path"] for picture in before["pictures"]
    ]
    assert content["epochs"][:2] == before["epochs"]
    assert len(content["epochs"]) == 3
    assert [epoch for epoch, _ in content["curves"][0]["series"][0]["points"]] == [1, 2]


@pytest.mark.nightly
def test_a_killed_run_shows_in_the_end_what_one_never_stopped_shows(
    fit_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = ("--trainer.max_epochs", "3", "--save_every_minutes", "0")
    run(fit_arguments("--name", "whole", *epochs))
    original, calls = CAMModule.training_step, iter(range(100))

    def step_or_cut(module: CAMModule, batch: object, batch_idx: int) -> torch.Tensor:
        if next(calls) == 3:  # in the second epoch
            raise RuntimeError("power cut")
        return original(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(CAMModule, "training_step", step_or_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run(fit_arguments(*epochs))
    run(fit_arguments(*epochs, "--ckpt_path", "last"))
    one, other = (content_of(tmp_path / "runs" / name / "report.html") for name in ("whole", "run"))
    for name in ("curves", "maps", "localization", "pictures", "epochs", "mistakes", "classes"):
        assert one[name] == other[name], name


@pytest.mark.parametrize("accumulated", everyday([1, 2], 2))
def test_validations_within_an_epoch_show_it_too(
    data: CAMDataModule, tmp_path: Path, accumulated: int
) -> None:
    watcher = CAMLogger(num_images=2, dirpath=tmp_path / "cams")
    settings = {"val_check_interval": 1, "accumulate_grad_batches": accumulated}
    quiet_trainer(callbacks=[watcher], **settings).fit(small_module(), data)
    steps = [1, 3] if accumulated == 1 else [0, 1]
    within = [f"epoch_{i:03d}_step_{step:06d}.jpg" for i, step in enumerate(steps, start=1)]
    whole = ["epoch_000.jpg", "epoch_001.jpg", "epoch_002.jpg"]
    assert names_in(tmp_path / "cams") == sorted([*whole, *within])
    content = content_of(tmp_path / "cams" / "report.html")
    labels = [0, f"1, step {steps[0]}", 1, f"2, step {steps[1]}", 2]
    assert [epoch["epoch"] for epoch in content["epochs"]] == labels
    train, val = content["curves"][0]["series"]
    assert [epoch for epoch, _ in train["points"]] == [1, 2]
    assert [epoch for epoch, _ in val["points"]] == [0.5, 1, 1.5, 2]


def test_epochs_without_a_validation_have_a_training_loss_only(
    data: CAMDataModule, tmp_path: Path
) -> None:
    watcher = CAMLogger(num_images=2, dirpath=tmp_path / "cams")
    settings = {"max_epochs": 4, "check_val_every_n_epoch": 2}
    quiet_trainer(callbacks=[watcher], **settings).fit(small_module(), data)
    content = content_of(tmp_path / "cams" / "report.html")
    assert [epoch["epoch"] for epoch in content["epochs"]] == [0, 2, 4]
    train, val = content["curves"][0]["series"]
    assert [epoch for epoch, _ in train["points"]] == [1, 2, 3, 4]
    assert [epoch for epoch, _ in val["points"]] == [2, 4]


def test_watching_changes_nothing_in_the_training(data: CAMDataModule, tmp_path: Path) -> None:
    results = []
    for callbacks in ([], [CAMLogger(dirpath=tmp_path / "cams", log_mistakes=True)]):
        torch.manual_seed(0)
        module = small_module(dropout=0.5)
        quiet_trainer(callbacks=callbacks).fit(module, data)
        results.append(module.net.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


@pytest.mark.nightly
def test_a_resumed_training_watches_the_same_pictures(data: CAMDataModule, tmp_path: Path) -> None:
    first = CAMLogger(num_images=3, dirpath=tmp_path / "cams", seed=0)
    quiet_trainer(callbacks=[first]).fit(small_module(), data)
    second = CAMLogger(num_images=3, dirpath=tmp_path / "cams", seed=1)
    second.load_state_dict(first.state_dict())
    quiet_trainer(callbacks=[second]).fit(small_module(), data)
    assert second.state_dict()["indices"] == first.state_dict()["indices"]


def test_anybody_s_data_can_be_watched(tmp_path: Path) -> None:
    watcher = CAMLogger(num_images=6, dirpath=tmp_path / "cams", report=tmp_path / "seen.html")
    quiet_trainer(callbacks=[watcher], max_epochs=1).fit(
        small_module(num_classes=3), AnybodysData(3)
    )
    assert (tmp_path / "cams" / "epoch_001.jpg").is_file()
    content = content_of(tmp_path / "seen.html")
    assert sorted(one["path"] for one in content["pictures"])[0].startswith("picture ")
    right = round(12 * content["curves"][1]["series"][0]["points"][0][1])
    assert len(content["mistakes"]) == min(8, 12 - right)
    assert all(one["look"]["is_right"] is False for one in content["mistakes"])


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*")
def test_a_shuffled_loader_mixes_no_pictures_up(tmp_path: Path) -> None:
    """Where a batch does not say which pictures it holds, nobody guesses."""

    class Shuffled(AnybodysData):
        def val_dataloader(self) -> list[DataLoader[tuple[torch.Tensor, ...]]]:
            return [DataLoader(self.pictures, batch_size=5, shuffle=True)]

    data, module = Shuffled(3), small_module(num_classes=3)
    watcher = CAMLogger(num_images=6, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], max_epochs=1).fit(module, data)
    content = content_of(tmp_path / "cams" / "report.html")
    images, _ = data.pictures.tensors
    for picture, look in zip(content["pictures"], content["epochs"][1]["looks"], strict=True):
        place = int(picture["path"].split()[1])
        with torch.inference_mode():
            maps = module.net.eval().class_maps(images[place : place + 1]).maps[0]
        predicted = int(look["predicted"]["name"])
        low, high, _ = look["predicted"]["map"]["range"]
        assert low == pytest.approx(maps[predicted].min().item(), abs=1e-4)
        assert high == pytest.approx(maps[predicted].max().item(), abs=1e-4)
    assert all(one["look"]["is_right"] is False for one in content["mistakes"])


class _Odd(LightningDataModule):
    """Training pictures as usual, validation pictures in another form."""

    def __init__(self, loader: object) -> None:
        super().__init__()
        data = AnybodysData(3)
        self.class_names, self.preprocessing = data.class_names, data.preprocessing
        self.train_dataloader = data.train_dataloader
        self.val_dataloader = lambda: loader


class _Stream(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(AnybodysData(3).pictures)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics': nothing is measured
def test_what_cannot_be_watched_stops_no_training(tmp_path: Path) -> None:
    class Own(CAMModule):
        def validation_step(self, batch: object, batch_idx: int) -> None:
            # A subclass sees its own batches, and under their own names.
            assert not isinstance(batch, dict) or "photo" in batch
            self.log("val/loss", 1.0)

    def fit(loader: object, name: str) -> dict[str, Any]:
        watcher = CAMLogger(2, dirpath=tmp_path / name / "cams")
        module = Own("camtrain/digits", 3, neck=(), backbone_args={"width": 4})
        quiet_trainer(callbacks=[watcher], max_epochs=1).fit(module, _Odd(loader))
        return content_of(tmp_path / name / "cams" / "report.html")

    dicts: Any = [{"photo": torch.rand(3, 20, 28), "kind": torch.tensor(0)}] * 4
    sizes: Any = [(torch.rand(3, 20 + 4 * index, 28), 0) for index in range(4)]
    told = r"CAMLogger cannot show the validation pictures, .* \(A dictionary of pictures"
    with pytest.warns(UserWarning, match=told):
        content = fit(DataLoader(dicts), "dicts")
    assert content["pictures"] == []
    assert content["curves"][0]["series"][0]["name"] == "train/loss"
    assert fit(DataLoader(_Stream(), batch_size=4), "stream")["pictures"] == []
    content = fit({"one": DataLoader(sizes)}, "sizes")
    assert [len(epoch["looks"]) for epoch in content["epochs"]] == [2, 2]


def test_without_validation_pictures_there_is_a_report_of_the_training(
    data: CAMDataModule, tmp_path: Path
) -> None:
    watcher = CAMLogger(2, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], limit_val_batches=0).fit(small_module(), data)
    content = content_of(tmp_path / "cams" / "report.html")
    assert content["epochs"] == []
    assert [epoch for epoch, _ in content["curves"][0]["series"][0]["points"]] == [1, 2]
    assert not list((tmp_path / "cams").glob("*.jpg"))


def test_other_pictures_are_watched_than_those_of_damaged_files(
    photographs: Path, tmp_path: Path
) -> None:
    damaged = sorted(photographs.glob("val/*/*.png"))[:5]
    for path in damaged:
        path.write_bytes(b"no picture")
    data = CAMDataModule(root=photographs, size=32, workers=0, allow_damaged=True)
    watcher = CAMLogger(3, dirpath=tmp_path / "cams")
    with pytest.warns(UserWarning, match="Skipped"):
        quiet_trainer(callbacks=[watcher], max_epochs=1).fit(small_module(), data)
    assert len(content_of(tmp_path / "cams" / "report.html")["pictures"]) == 3


@pytest.mark.nightly
def test_another_run_s_checkpoint_does_not_choose_the_pictures(
    fit_arguments: Arguments, photographs: Path, tmp_path: Path
) -> None:
    run(fit_arguments("--cams.num_images", "3"))
    checkpoint = str(tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt")
    more = ("--trainer.max_epochs", "3", "--ckpt_path", checkpoint)
    run(fit_arguments("--name", "same", *more, "--cams.num_images", "4"))
    content = content_of(tmp_path / "runs" / "same" / "report.html")
    assert [one["name"] for one in content["pictures"]] == ["blue", "red"] * 2


@pytest.mark.nightly
def test_a_test_is_added_where_nothing_was_left_to_train(
    fit_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", lambda *args, **kwargs: sys.exit("power cut"))
        with pytest.raises(SystemExit):
            run(fit_arguments())
    path = tmp_path / "runs" / "run" / "report.html"
    before = content_of(path)
    assert before["test"] == {}
    run(fit_arguments("--ckpt_path", "last"))
    content = content_of(path)
    assert "test/acc1" in content["test"]
    for name in ("curves", "epochs", "pictures", "classes", "mistakes"):
        assert content[name] == before[name]


@pytest.mark.nightly
def test_data_that_draws_numbers_is_trained_on_as_without_watching(tmp_path: Path) -> None:
    class Drawing(AnybodysData):
        def __init__(self) -> None:
            super().__init__(3)
            pictures = self.pictures

            class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor]]):
                def __len__(self) -> int:
                    return len(pictures)

                def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
                    image, label = pictures[index]
                    return image + torch.rand(()), label

            self.pictures = Noisy()

    found = []
    for callbacks in ([], [CAMLogger(4, dirpath=tmp_path / "cams")]):
        torch.manual_seed(0)
        module = small_module(num_classes=3)
        quiet_trainer(callbacks=callbacks).fit(module, Drawing())
        found.append(module.net.head.weight)
    assert torch.equal(found[0], found[1])


def test_anybody_s_module_can_be_watched(tmp_path: Path) -> None:
    """Whose validation says nothing but its loss."""

    class Own(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_module(num_classes=3).net

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.log("val/loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    watcher = CAMLogger(num_images=3, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher]).fit(Own(), AnybodysData(3))
    content = content_of(tmp_path / "cams" / "report.html")
    assert len(content["epochs"]) == 3
    assert content["mistakes"] == []
    assert content["classes"] is None
    assert len(content["curves"][0]["series"][0]["points"]) == 2


@pytest.mark.parametrize("size", [(32, 32), pytest.param((96, 128), marks=pytest.mark.nightly)])
def test_one_channel_and_several_labels_are_watched(tmp_path: Path, size: tuple[int, int]) -> None:
    data = CAMDataModule(
        "digits", size=size, lengths=(8, 8, 8), workers=0, mean=[0.5], std=[0.5], augment="none"
    )
    module = small_module(num_classes=10, in_chans=1, task="multilabel")
    quiet_trainer(callbacks=[CAMLogger(3, dirpath=tmp_path / "cams")]).fit(module, data)
    content = content_of(tmp_path / "cams" / "report.html")
    assert [column["name"] for column in content["classes"]["columns"]][:2] == [
        "class",
        "average precision",
    ]
    assert content["pictures"][0]["src"].startswith("data:image/png")


def test_a_fast_run_and_a_sanity_check_write_nothing(data: CAMDataModule, tmp_path: Path) -> None:
    watcher = CAMLogger(num_images=2, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], fast_dev_run=True).fit(small_module(), data)
    assert not (tmp_path / "cams").exists()
    watcher = CAMLogger(num_images=2, dirpath=tmp_path / "cams")
    trainer = quiet_trainer(callbacks=[watcher], num_sanity_val_steps=1, max_epochs=1)
    trainer.fit(small_module(), data)
    assert names_in(tmp_path / "cams") == ["epoch_000.jpg", "epoch_001.jpg"]
    trainer.validate(small_module(), data, verbose=False)
    assert names_in(tmp_path / "cams") == ["epoch_000.jpg", "epoch_001.jpg"]


@pytest.mark.nightly
def test_kept_features_are_watched_like_pictures(fit_arguments: Arguments, tmp_path: Path) -> None:
    """The mistakes, too, which are others in every epoch."""
    frozen = ("--model.freeze_backbone", "true", "--data.augment", "none", "--model.lr", "0.01")
    frozen = (*frozen, "--trainer.max_epochs", "3")
    found = []
    for kept in ("true", "false"):
        run(fit_arguments(*frozen, "--data.cache_features", kept, "--name", kept))
        content = content_of(tmp_path / "runs" / kept / "report.html")
        looks = [look["predicted"]["map"]["range"] for look in content["epochs"][-1]["looks"]]
        wrong = [one["picture"]["path"] for one in content["mistakes"]]
        found.append((np.array(looks), wrong, content["maps"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=2e-2, atol=1e-3)
    assert found[0][1] == found[1][1]
    assert [chart["title"] for chart in found[0][2]] == [chart["title"] for chart in found[1][2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 0}, r"num_images must lie in 1\.\.48, got 0"),
        ({"num_images": 49}, r"num_images must lie in 1\.\.48, got 49"),
        ({"num_mistakes": 49}, r"num_mistakes must lie in 0\.\.48, got 49"),
        ({"colormap": "rainbow"}, r"colormap must be one of viridis, .* got 'rainbow'"),
        ({"tile": 640}, r"tile must lie between 224 and 512 pixels, got 640"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        CAMLogger(**settings)


def test_a_module_without_a_cam_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CamtrainError, match=r"a module whose \.net is a CAMNet, got LightningModule"
    ):
        CAMLogger(dirpath=tmp_path).on_train_start(quiet_trainer(), LightningModule())


@pytest.mark.nightly
def test_nothing_of_wandb_is_needed_where_its_logger_is_not_used(
    fit_arguments: Arguments, tmp_path: Path
) -> None:
    """A process that cannot import it trains, logs to the others, and writes its report."""
    loggers = ("none", "csv")
    runs = [
        fit_arguments("--logger", name, "--name", name, "--trainer.max_epochs", "1")
        for name in loggers
    ]
    code = f"""
import sys
sys.modules["wandb"] = None
import camtrain.cli
sys.exit(max(camtrain.cli.main(args) for args in {runs}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in loggers:
        assert (tmp_path / "runs" / name / "report.html").is_file()
    assert (tmp_path / "runs" / "csv" / "csv" / "version_0" / "cams.csv").is_file()


@pytest.mark.nightly
def test_two_processes_show_one_run(
    fit_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One W&B run, and the mistakes and classes of the pictures of both."""
    settings = ("--data.batch_size", "2", "--trainer.max_epochs", "1", "--model.lr", "1e-7")
    settings += ("--cams.num_mistakes", "8")
    one = fit_arguments("--name", "one", *settings)
    assert main(one) == 0
    two = fit_arguments("--name", "two", *settings, "--logger", "wandb")
    two += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    two += ["--trainer.callbacks", "LearningRateMonitor"]  # wants a logger in every process
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_by_two(main, two)
    folders = [path for path in (tmp_path / "runs/two/wandb").iterdir() if path.is_dir()]
    assert len([path for path in folders if re.match("offline-run", path.name)]) == 1
    # Every picture is counted once, though BatchNorm has seen other batches.
    alone, both = (content_of(tmp_path / "runs" / name / "report.html") for name in ("one", "two"))
    for content in (alone, both):
        assert [sum(row) for row in content["classes"]["matrix"]] == [4, 4]
        assert [sum(chart["density"][0][1]) for chart in content["maps"]] == [8, 8, 8]
        right = sum(content["classes"]["matrix"][i][i] for i in range(2))
        assert len({one["picture"]["path"] for one in content["mistakes"]}) == 8 - right


@pytest.mark.filterwarnings("ignore:.*doesn't match the saved.*")
def test_a_picture_is_rendered_once_per_epoch_whatever_the_loggers(
    boxed_data: CAMDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder, the report, W&B, TensorBoard and CSV share what was drawn."""
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    colored, titles = [], []
    apply_colormap, write = cv2.applyColorMap, ImageDraw.ImageDraw.text

    def counted_colormap(levels: np.ndarray, *arguments: Any) -> np.ndarray:
        colored.append(levels.shape)
        return apply_colormap(levels, *arguments)

    def counted_text(
        draw: ImageDraw.ImageDraw, at: object, text: str, *arguments: Any, **options: Any
    ) -> None:
        titles.extend(re.findall(r"^epoch \d+ .*(?:right|mistakes)$", text))
        write(draw, at, text, *arguments, **options)

    monkeypatch.setattr(cv2, "applyColorMap", counted_colormap)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", counted_text)
    monkeypatch.setattr("camtrain.training.watch.callback.CAMLogger.on_train_end", lambda *_: None)
    loggers = [
        WandbLogger(save_dir=tmp_path, offline=True),
        TensorBoardLogger(tmp_path / "tensorboard"),
        CSVLogger(tmp_path / "csv"),
    ]
    loggers[0]._wandb_init.pop("anonymous", None)
    watcher = CAMLogger(6, num_mistakes=4, log_mistakes=True, dirpath=tmp_path / "cams")
    quiet_trainer(callbacks=[watcher], logger=loggers).fit(small_module(lr=1e-6), boxed_data)
    loggers[0].experiment.finish()
    content = content_of(tmp_path / "cams" / "report.html")
    watched = {picture["path"] for picture in content["pictures"]}
    wrong = {mistake["picture"]["path"] for mistake in content["mistakes"]}
    assert len(watched) == 6
    assert wrong
    heatmaps = [shape for shape in colored if len(shape) == 2]  # not the palette
    assert len(heatmaps) == 2 * (len(watched) + 2 * len(watched | wrong))  # of true and predicted
    assert len([title for title in titles if "right" in title]) == 3
    assert len([title for title in titles if "mistakes" in title]) == 2
