"""What an evaluation leaves: one table, localization.json, the curve, and the benchmark's files."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camtrain.cli import main
from camtrain.data import Batch, Damaged, PreparedDataset, collate
from camtrain.localization import MaxBoxAcc, MaxBoxAccV2
from camtrain.maps import heatmaps, picture_heatmaps
from camtrain.preprocessing import Preprocessing
from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.cli.main import main as run
from camtrain.training.evaluate.box_scores import BoxScores, WholeMaps, on_whole_pictures
from camtrain.training.evaluate.mosaics import mosaic_batch
from tests.by_two import run_by_two
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer

Arguments = Callable[..., list[str]]

TABLE = (
    "loss",
    "acc1",
    "ece",
    "box_acc_calibrated",
    "loc_gt_known",
    "loc_top1",
    "loc_top5",
    "max_box_acc",
    "box_acc_fixed",
    "box_acc_auto",
    "max_box_acc_v2",
    "pointing",
    "cam_energy_in_box",
    "cam_area",
    "cam_entropy",
    "mosaic_peak",
    "mosaic_energy",
    "mosaic_chance",
    "deletion",
    "insertion",
    "srg",
    "srg_centre",
    "srg_random",
    "centre_box_acc",
    "centre_box_acc_v2",
    "centre_pointing",
)


@pytest.fixture
def trained(fitted: Callable[..., Path], photographs: Path) -> Path:
    """The folder of a run, beside the photographs that it is measured on."""
    return fitted("--model.lr", "0.01")


def measured(run_folder: Path, verb: str, *more: str) -> dict[str, object]:
    checkpoint = str(run_folder / "checkpoints" / "best.ckpt")
    quiet = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    root = ("--data.root", str(run_folder.parents[1] / "photographs"))
    assert main([verb, "--ckpt_path", checkpoint, *quiet, *root, *more]) == 0
    folder = results_folder(run_folder, "val" if verb == "validate" else "test")
    found: dict[str, object] = json.loads((folder / "localization.json").read_text())
    return found


def results_folder(run_folder: Path, split: str) -> Path:
    """Where the last results are: other data than that of the run has a folder of its own."""
    folders = run_folder.glob(f"{split}*")
    return max(folders, key=lambda folder: (folder / "localization.json").stat().st_mtime_ns)


@pytest.mark.parametrize("verb", everyday(["validate", "test"], "validate"))
def test_a_verb_prints_one_table_and_writes_it(
    trained: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    found = measured(trained, verb)
    printed = capsys.readouterr().out
    split = "val" if verb == "validate" else "test"
    of_test = "box_acc_calibrated", "deletion", "insertion", "srg"
    names = [name for name in TABLE if verb == "test" or not name.startswith(of_test)]
    rows = [line.split()[0] for line in printed.splitlines() if f" {split}/" in line]
    assert rows == [f"{split}/{name}" for name in names]
    assert set(found["scores"]) == set(names)
    folder = results_folder(trained, split)
    assert str(folder) in printed
    for table in ("by_size", "by_number"):
        groups = found[table]
        assert sum(row["pictures"] for row in groups.values()) == found["pictures_with_boxes"]
        assert all(name in printed for name in groups)
    wrong = sum(row["pictures"] * (1 - row["boxes"]) for row in groups.values())
    assert sum(found["misses"].values()) == pytest.approx(wrong)
    assert f"{split}, misses: " in printed
    with Image.open(folder / "localization.png") as picture:
        assert picture.width > 800


def test_the_three_thresholds_are_kept_apart(trained: Path) -> None:
    found = measured(trained, "test")
    thresholds, curves = found["thresholds"], found["curves"]
    assert thresholds["fixed"] == 0.2
    own = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["camtrain"]
    assert thresholds["calibrated"] == own["map_threshold"]
    single = np.array(curves["largest_contour"]["0.5"])
    assert len(single) == len(curves["threshold"]) == 1000
    scores = found["scores"]
    assert single.max() == scores["max_box_acc"]
    assert curves["threshold"][single.argmax()] == thresholds["oracle"]
    assert single[200] == scores["box_acc_fixed"]
    nearest = np.abs(np.array(curves["threshold"]) - own["map_threshold"]).argmin()
    assert single[nearest] == scores["box_acc_calibrated"]
    several = [max(curves["all_contours"][iou]) for iou in ("0.3", "0.5", "0.7")]
    assert scores["max_box_acc_v2"] == pytest.approx(np.mean(several), abs=1e-12)


@pytest.mark.parametrize("resize_mode", everyday(["squash", "crop"], "crop"))
def test_saved_maps_give_the_benchmark_s_program_the_same_scores(
    trained: Path, photographs: Path, resize_mode: str
) -> None:
    found = measured(trained, "test", "--save_maps", "--data.resize_mode", resize_mode)
    wsol = results_folder(trained, "test") / "wsol"
    lists = {
        name: (wsol / "metadata" / f"{name}.txt").read_text().splitlines()
        for name in ("image_ids", "class_labels", "image_sizes", "localization")
    }
    assert sorted(lists["image_ids"]) == sorted(
        path.relative_to(photographs).as_posix() for path in photographs.glob("test/*/*.png")
    )
    assert "test/red/0.png,1" in lists["class_labels"]
    assert "test/red/0.png,56,40" in lists["image_sizes"]
    boxes = {
        line.split(",")[0]: list(map(int, line.split(",")[1:])) for line in lists["localization"]
    }
    metrics = MaxBoxAcc(), MaxBoxAccV2()
    for name in lists["image_ids"]:
        scores = np.load(wsol / "scoremaps" / f"{name}.npy")
        assert scores.shape == (224, 224)
        assert scores.min() == 0
        assert scores.max() in (0, 1)
        half_open = torch.tensor([boxes[name]]) + torch.tensor([0, 0, 1, 1])
        for metric in metrics:
            metric.update(torch.from_numpy(scores)[None], [half_open], torch.tensor([[40, 56]]))
    assert found["scores"]["max_box_acc"] == metrics[0].compute().item()
    assert found["scores"]["max_box_acc_v2"] == metrics[1].compute().item()


def test_without_boxes_nothing_is_claimed(
    fit_arguments: Arguments, tmp_path: Path, photographs: Path
) -> None:
    (photographs / "boxes.csv").unlink()
    run(fit_arguments())
    found = json.loads((tmp_path / "runs/run/test/localization.json").read_text())
    assert found["scores"].keys() == {
        *("loss", "acc1", "ece", "cam_area", "cam_entropy"),
        *("mosaic_peak", "mosaic_energy", "mosaic_chance"),
        *("deletion", "insertion", "srg", "srg_centre", "srg_random"),
    }
    assert not (tmp_path / "runs/run/test/localization.png").exists()


def test_masks_give_px_ap() -> None:
    scores, batch = BoxScores(), batch_with_masks()
    scores.reset()
    maps = torch.rand(2, 7, 9)
    scores.update(WholeMaps(maps, maps), torch.rand(2, 3), batch.labels, batch)
    found = scores.compute()
    assert set(found) == {"px_ap", "constant_px_ap"}  # no boxes
    assert 0 < found["px_ap"] < 1
    assert found["constant_px_ap"] == pytest.approx(10 * 45 / (40 * 60), abs=0.01)


def test_a_split_without_a_pixel_of_an_object_has_no_px_ap() -> None:
    scores, batch = BoxScores(), batch_with_masks()
    scores.reset()
    maps = torch.rand(2, 7, 9)
    empty = batch._replace(masks=[torch.zeros(4, 6, dtype=torch.uint8)] * 2)
    scores.update(WholeMaps(maps, maps), torch.rand(2, 3), batch.labels, empty)
    assert scores.compute() == {}
    assert scores.calibrated_threshold() is None


@pytest.mark.parametrize("resize_mode", ["squash", "crop", "pad"])
def test_law_6_evaluation_cuts_the_boxes_that_the_predictor_cuts(resize_mode: str) -> None:
    """From the same heatmap, at the size of the picture, however it came into the network."""
    torch.manual_seed(0)
    preprocessing = Preprocessing((32, 32), resize_mode=resize_mode, crop_pct=0.8)
    maps, batch = torch.rand(2, 7, 7), batch_with_masks()
    whole = on_whole_pictures(maps, preprocessing, batch)
    for one, found in zip(maps, whole.pictures, strict=True):
        expected = picture_heatmaps(one[None], preprocessing, (40, 60))
        heat = heatmaps(found[None, None], size=(40, 60))[0]
        torch.testing.assert_close(heat, expected)


def test_nothing_is_called_calibrated_that_was_not(photographs: Path) -> None:
    data = CAMDataModule(root=photographs, size=32, workers=0)
    module = CAMModule("camtrain/digits", 2, neck=(), backbone_args={"width": 4})
    trainer = quiet_trainer()
    [scores] = trainer.test(module, data, verbose=False)
    assert "test/max_box_acc" in scores
    assert "test/box_acc_calibrated" not in scores
    assert module.reports["test"]["thresholds"]["calibrated"] is None
    trainer.validate(module, data, verbose=False)
    [scores] = trainer.test(module, data, verbose=False)
    assert module.is_calibrated == ("test/box_acc_calibrated" in scores)


def test_results_of_an_earlier_evaluation_do_not_stay(trained: Path, photographs: Path) -> None:
    measured(trained, "test", "--save_maps")
    (photographs / "boxes.csv").write_text(
        "path,xmin,ymin,xmax,ymax,class\ntest/red/0.png,1,2,30,20,red\n"
    )
    measured(trained, "test", "--save_maps")
    folder = results_folder(trained, "test")
    maps = [path.name for path in folder.glob("wsol/scoremaps/**/*.npy")]
    assert maps == ["0.png.npy"]
    assert (folder / "wsol/metadata/image_ids.txt").read_text() == "test/red/0.png\n"
    (photographs / "boxes.csv").unlink()
    found = measured(trained, "test")
    assert not (folder / "localization.png").exists()
    assert found["checkpoint"] == str(trained / "checkpoints" / "best.ckpt")
    assert "curves" not in found


def test_a_fast_run_writes_nothing(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    fast = ("--trainer.fast_dev_run", "true", "--save_maps", "--trainer.accelerator", "cpu")
    assert main(["test", "--ckpt_path", checkpoint, *fast]) == 0
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == before


def batch_with_masks() -> Batch:
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[10:20, 5:50] = 1
    return Batch(
        torch.zeros(2, 3, 8, 8),
        torch.tensor([0, 2]),
        [torch.zeros(0, 4)] * 2,
        torch.tensor([[40, 60]] * 2),
        torch.tensor([0, 1]),
        ["a", "b"],
        [mask, torch.zeros(0, 0, dtype=torch.uint8)],
        [torch.zeros(0, 4)] * 2,
        torch.tensor([0, 1]),
        (),
    )


def test_the_mask_of_a_picture_reaches_the_batch() -> None:
    class Masked:
        class_names, labels = ("a",), [0]

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> object:
            from camtrain.data import SourcePicture

            mask = torch.ones(4, 6, dtype=torch.uint8)
            return SourcePicture(
                torch.zeros(3, 4, 6, dtype=torch.uint8), 0, torch.zeros(0, 4), "p", mask
            )

    batch = collate([PreparedDataset(Masked(), Preprocessing((8, 8)))[0]])
    assert batch.masks[0].shape == (4, 6)
    assert batch.paths == ["p"]


def test_mosaics_are_scored_where_there_are_four_classes() -> None:
    data = CAMDataModule("digits", size=64, lengths=(10, 40, 40), workers=0, batch_size=8)
    torch.manual_seed(0)
    module = CAMModule("camtrain/digits", 10, neck=(), backbone_args={"width": 4})
    [scores] = quiet_trainer().test(module, data, verbose=False)
    assert 0 <= scores["test/mosaic_peak"] <= 1
    assert 0 < scores["test/mosaic_energy"] < 1
    samples = [data.datasets["test"][index] for index in (3, 2, 1, 0)]
    [image], [classes] = mosaic_batch(
        [*samples, *samples[:3], Damaged(0, "", (3, 64, 64))], size_hw=None
    )
    assert image.shape == (3, 128, 128)
    assert classes.tolist() == [data.datasets["test"].labels[i] for i in (3, 2, 1, 0)]
    assert torch.equal(image[:, 64:, 64:], data.datasets["test"][0].image)


@pytest.mark.nightly
@pytest.mark.parametrize("limit", [7, 1])
def test_two_processes_give_the_numbers_of_one(
    trained: Path, photographs: Path, limit: int
) -> None:
    """Also when the sampler repeats pictures, so that both get as many."""
    for number, path in enumerate(sorted(photographs.glob("test/*/*.png"))):
        if number >= limit:
            path.unlink()
    lines = (photographs / "boxes.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if (photographs / line.split(",")[0]).exists()]
    (photographs / "boxes.csv").write_text("\n".join([lines[0], *kept]))
    one = measured(trained, "test", "--data.batch_size", "2")
    command = ["test", "--ckpt_path", str(trained / "checkpoints" / "best.ckpt")]
    command += ["--data.root", str(photographs), "--data.batch_size", "2"]
    command += ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    run_by_two(main, [*command, "--trainer.strategy", "ddp"])
    two = json.loads((results_folder(trained, "test") / "localization.json").read_text())
    # Their names only: the difference of two curves would be written for minutes.
    assert [name for name in one["curves"] if two["curves"][name] != one["curves"][name]] == []
    assert two["pictures_with_boxes"] == one["pictures_with_boxes"] == limit
    # The network rounds differently in other batches; given the same maps nothing does.
    for score in ("loss", "cam_energy_in_box", "cam_entropy"):
        assert two["scores"].pop(score) == pytest.approx(one["scores"].pop(score), rel=1e-6)
    assert two["scores"] == one["scores"]


def test_the_closing_lines_name_three_commands_that_work(
    fit_arguments: Callable[..., list[str]],
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photographs.parent)
    run(fit_arguments())
    lines = capsys.readouterr().out.partition("\nNext:\n")[2].splitlines()
    commands = [shlex.split(line) for line in lines]
    assert [command[:2] for command in commands] == [
        ["camtrain", verb] for verb in ("predict", "demo", "export")
    ]
    assert {Path(command[2]).name for command in commands} == {"model.safetensors"}
    predict = [str(photographs) if word == "PICTURES" else word for word in commands[0]]
    assert main(predict[1:]) == 0
    assert Path("found/predictions.jsonl").is_file()
