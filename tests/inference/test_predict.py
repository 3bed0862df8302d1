"""``camtrain predict``: what it writes, in which order, and what it does with bad files."""

import glob
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import camtrain
from camtrain import cli
from camtrain.data import decoding, tree
from camtrain.errors import CamtrainValueError
from camtrain.inference.prediction_folder import json_values
from camtrain.model.camnet import CAMNet

NAMES = ["ant", "bee", "cat, wild", "dog", "eel", "3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights."""
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 6, neck=(8,), backbone_args={"width": 4})
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    preprocessing = camtrain.Preprocessing((32, 40), resize_mode="crop", crop_pct=0.9)
    predictor = camtrain.Predictor(net, class_names=NAMES, preprocessing=preprocessing)
    predictor.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several sizes, two of one name, and two files that are none."""
    rng = np.random.default_rng(0)
    for name, size in {"a/x.jpg": (50, 37), "b/x.jpg": (64, 48), "b/y.png": (30, 90)}.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    cut = (tmp_path / "photos/b/x.jpg").read_bytes()[:700]
    (tmp_path / "photos/a/z.jpg").write_bytes(cut)
    (tmp_path / "photos/b/w.png").write_text("no picture")
    return tmp_path / "photos"


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def files_of(output: Path) -> list[str]:
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())


@pytest.fixture
def predict(model: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    def run(*args: str | Path) -> tuple[int, Path]:
        output = tmp_path / "out"
        status = cli.main(["predict", str(model), *map(str, args), "--output", str(output)])
        return status, output

    return run


def test_folders_and_patterns_are_searched_once(
    predict: Callable[..., tuple[int, Path]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    def counted(search: Callable[..., Any]) -> Callable[..., Any]:
        def run(path: str, **options: object) -> object:
            searched.append(path)
            return search(path, **options)

        return run

    monkeypatch.setattr(os, "walk", counted(os.walk))
    monkeypatch.setattr(glob, "glob", counted(glob.glob))
    places = [str(folder), str(folder / "b"), f"{folder}/*/*.png"]
    predict(*places, "--no_sheets")
    assert searched == places


def test_every_file_is_predicted_and_the_bad_ones_are_recorded(
    predict: Callable[..., tuple[int, Path]],
    model: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, output = predict(folder, "--heatmaps", "--batch_size", "1", "--overlays", "2")
    assert status == 1
    lines = lines_of(output)
    names = ["a/x.jpg", "a/z.jpg", "b/w.png", "b/x.jpg", "b/y.png"]
    assert [line["file"] for line in lines] == [str(folder / name) for name in names]
    assert ["error" in line for line in lines] == [False, True, True, False, False]
    good = [line for line in lines if "error" not in line]
    expected = list(camtrain.load(model)([line["file"] for line in good], batch_size=1))
    for line, prediction in zip(good, expected, strict=True):
        values = json.loads(json.dumps(json_values(prediction)))
        assert {name: line[name] for name in values} == values
        assert line["threshold"] == 0.2
        heat = np.load(output / line["heatmaps"])
        np.testing.assert_array_equal(heat, prediction.heatmaps.numpy())
        assert len(line["overlays"]) == 2
        for overlay in line["overlays"]:
            with Image.open(output / overlay) as image:
                assert image.size == prediction.size_hw[::-1]
    assert files_of(output) == [
        *(f"heatmaps/{name}.npy" for name in ("000001_x", "000004_x", "000005_y")),
        *(
            f"overlays/{n}_{rank}.jpg"
            for n in ("000001_x", "000004_x", "000005_y")
            for rank in "12"
        ),
        "predictions.jsonl",
        "sheets/0001.jpg",
    ]
    out, err = capsys.readouterr()
    assert "3 of 5 pictures predicted" in out
    assert "images/s" in out
    assert len(err.splitlines()) == 2
    for line, name in zip(err.splitlines(), ("a/z.jpg", "b/w.png"), strict=True):
        assert line.startswith(f"camtrain: unreadable: The image {folder / name} cannot be read")


def test_the_folder_of_a_run_stands_for_its_bundle(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, picture = tmp_path / "run", str(folder / "a/x.jpg")
    run.mkdir()
    (run / "config.yaml").touch()
    arguments = ["predict", str(run), picture, "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "has no model.safetensors yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shutil.copy(model, run)
    assert cli.main(arguments) == 0
    [expected] = camtrain.load(model)(picture)
    assert lines_of(tmp_path / "out")[0]["scores"] == pytest.approx(expected.scores, abs=1e-6)


def test_colours_are_made_grey_for_a_network_of_one_channel_and_it_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = camtrain.create_model("camtrain/digits", 2, in_chans=1, backbone_args={"width": 2})
    camtrain.Predictor(net).save(tmp_path / "grey.safetensors")
    picture = str(folder / "a/x.jpg")
    arguments = [str(tmp_path / "grey.safetensors"), picture, "--output", str(tmp_path / "out")]
    assert cli.main(["predict", *arguments]) == 0
    assert "colours are converted to grey" in capsys.readouterr().out
    of_colours = camtrain.Preprocessing((32, 32))
    with pytest.raises(CamtrainValueError, match=r"images must be \(B, 1, H, W\)"):
        list(camtrain.Predictor(net, preprocessing=of_colours)(picture))


def test_what_is_skipped_in_a_folder_is_named(
    predict: Callable[..., tuple[int, Path]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_heif = tuple({*decoding.IMAGE_SUFFIXES} - {".heic"})
    for module in (tree, decoding):
        monkeypatch.setattr(module, "IMAGE_SUFFIXES", without_heif)
    for name in ("c.HEIC", "d.svg", "e.txt", "f.txt", ".hidden.svg"):
        (folder / "a" / name).write_text("no picture")
    status, output = predict(folder / "a/x.jpg", folder / "a", "--no_sheets", "--overlays", "0")
    assert status == 1  # of z.jpg
    assert len(lines_of(output)) == 3
    assert capsys.readouterr().err.splitlines()[0] == (
        "camtrain: skipped: 1 .heic (c.HEIC; pip install pillow-heif), "
        "1 .svg (d.svg; draw it as a PNG), 2 .txt"
    )
    assert predict(folder / "a/c.HEIC", "--overwrite")[0] == 1
    assert "cannot identify image file: pip install pillow-heif" in capsys.readouterr().err


def test_good_files_alone_end_with_status_0(
    predict: Callable[..., tuple[int, Path]], folder: Path
) -> None:
    status, output = predict(f"{folder}/*/x.jpg", folder / "b/y.png", "--no_sheets")
    assert status == 0
    assert len(lines_of(output)) == 3
    assert files_of(output)[:3] == [f"overlays/00000{n}_1.jpg" for n in ("1_x", "2_x", "3_y")]
    assert not (output / "sheets").exists()


def test_nothing_but_lines_where_nothing_else_is_asked_for(
    predict: Callable[..., tuple[int, Path]], folder: Path
) -> None:
    status, output = predict(folder / "a/x.jpg", "--no_sheets", "--overlays", "0")
    assert status == 0
    assert files_of(output) == ["predictions.jsonl"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--top", "2"], None),
        (["--classes", "bee"], {"bee"}),
        (["--classes", "bee,0,3"], {"bee", "ant", "3"}),  # "3" is a name, and so no number
        (["--classes", "cat, wild"], {"cat, wild"}),
    ],
)
def test_classes_are_the_best_or_those_asked_for(
    options: list[str],
    names: set[str] | None,
    predict: Callable[..., tuple[int, Path]],
    folder: Path,
) -> None:
    _, output = predict(folder / "a/x.jpg", *options)
    [line] = lines_of(output)
    assert line["scores"] == sorted(line["scores"], reverse=True)
    assert line["names"] == [NAMES[number] for number in line["classes"]]
    assert len(line["names"]) == len(line["boxes_xyxy"]) == (2 if names is None else len(names))
    assert names is None or set(line["names"]) == names


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--threshold", "0.6"], {"threshold": 0.6}),
        (["--threshold", "auto"], {"threshold": "auto"}),
        (["--split_peaks", "true"], {"split_peaks": True}),
        (["--tta", "flip"], {"tta": "flip"}),
        (["--tta", "tencrop"], {"tta": "tencrop"}),
        (["--method", "ivr"], {"method": "ivr"}),
    ],
)
def test_options_are_those_of_the_predictor(
    options: list[str],
    arguments: dict[str, Any],
    predict: Callable[..., tuple[int, Path]],
    model: Path,
    folder: Path,
) -> None:
    path = folder / "b/x.jpg"
    _, output = predict(path, *options)
    [line] = lines_of(output)
    [expected] = camtrain.load(model)(path, **arguments)
    [usual] = camtrain.load(model)(path)
    assert line["boxes_xyxy"] == [boxes.tolist() for boxes in expected.boxes]
    assert line["scores"] == pytest.approx(expected.scores, abs=1e-6)
    assert json_values(expected) != json_values(usual)


def test_a_threshold_that_is_no_number_is_one_line(
    predict: Callable[..., tuple[int, Path]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict(folder, "--threshold", "otsu")
    assert "--threshold: must be a number or auto, got 'otsu'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1.5"], "threshold must lie in [0, 1), got 1.5"),
        (["--top", "0"], "top must be an integer of at least 1, got 0"),
        (["--top", "1", "--classes", "bee"], "top and classes exclude each other"),
        (["--classes", "beee"], "There is no class 'beee'; the names next to it are bee."),
        (["--classes", "9"], "classes must lie in 0..5, got 9"),
        (["--classes", "bee,bee"], "classes must differ from one another"),
        (["--overlays", "-1"], "overlays must be at least 0"),
        (["--device", "gpu"], "device must be one of auto"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    options: list[str],
    message: str,
    predict: Callable[..., tuple[int, Path]],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, output = predict(folder, *options)
    assert status == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_a_folder_is_overwritten_only_when_told_so(
    predict: Callable[..., tuple[int, Path]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = folder / "a/x.jpg"
    assert predict(good, folder / "b/x.jpg", "--heatmaps")[0] == 0
    status, output = predict(good)
    assert status == 2
    assert "is not empty; give --overwrite" in capsys.readouterr().err
    assert len(lines_of(output)) == 2
    (output / "mine.txt").write_text("stays")
    assert predict(good, "--overwrite")[0] == 0
    assert files_of(output) == [
        "mine.txt",
        "overlays/000001_x_1.jpg",
        "predictions.jsonl",
        "sheets/0001.jpg",
    ]
    (output / "predictions.jsonl").unlink()
    assert predict(good, "--overwrite")[0] == 2
    assert "replaces only an earlier prediction" in capsys.readouterr().err


def test_an_interrupt_leaves_everything_written_so_far(
    predict: Callable[..., tuple[int, Path]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = CAMNet.display_maps
    calls = []

    def interrupted(net: CAMNet, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(net, *args, **options)

    monkeypatch.setattr(CAMNet, "display_maps", interrupted)
    status, output = predict(f"{folder}/*/x.jpg", f"{folder}/b/y.png", "--batch_size", "1")
    assert status == 130
    assert "2 of 3 pictures are predicted; --resume true goes on" in capsys.readouterr().err
    assert len(lines_of(output)) == 2
    assert (output / "sheets/0001.jpg").is_file()


def test_sheets_of_60_hold_all_pictures(
    predict: Callable[..., tuple[int, Path]], tmp_path: Path
) -> None:
    for number in range(61):
        Image.new("RGB", (20, 16), (number, 9, 9)).save(tmp_path / f"{number}.png")
    assert predict(tmp_path / "*.png", "--overlays", "0")[0] == 0
    output = tmp_path / "out"
    assert files_of(output) == ["predictions.jsonl", "sheets/0001.jpg", "sheets/0002.jpg"]
    heights = [cv2.imread(str(output / f"sheets/000{n}.jpg")).shape[0] for n in (1, 2)]
    assert heights[0] > 5 * heights[1]


def test_a_picture_of_any_sides_is_drawn_and_one_that_fails_is_its_line(
    model: Path, tmp_path: Path
) -> None:
    """Before: "broken data stream" ended everything, since no JPEG is 70,000 pixels wide."""
    (tmp_path / "photos").mkdir()
    wide = np.zeros((5, 70_000, 3), np.uint8)
    wide[:, 20_000:40_000] = 255
    Image.fromarray(wide).save(tmp_path / "photos/a.png")
    Image.fromarray(wide[:, :50]).save(tmp_path / "photos/b.png")
    Image.fromarray(wide[:, :60_000]).save(tmp_path / f"photos/{'c' * 3}{'日' * 80}.png")
    arguments = ["predict", str(model), str(tmp_path / "photos"), "--output", str(tmp_path / "out")]
    limits = ["--max_pixels", "310000", "--largest_side", "100", "--heatmaps"]
    assert cli.main([*arguments, *limits]) == 1
    failure, small, large = lines_of(tmp_path / "out")
    assert "--max_pixels" in failure["error"]
    assert (small["size_hw"], large["size_hw"]) == ([5, 50], [5, 60_000])
    with Image.open(tmp_path / "out" / large["overlays"][0]) as picture:
        assert picture.size == (100, 1)
    assert np.load(tmp_path / "out" / large["heatmaps"]).shape == (5, 1, 100)
    assert cli.main([*arguments, "--overwrite"]) == 0
    with Image.open(tmp_path / "out" / lines_of(tmp_path / "out")[0]["overlays"][0]) as picture:
        assert picture.size == (4096, 1)
    for option in ("--largest_side", "--max_pixels"):
        assert cli.main([*arguments, "--overwrite", option, "0"]) == 2


@pytest.mark.parametrize("args", [["--no_sheets", "--overlays", "0"], ["--heatmaps"]])
def test_a_full_disk_is_one_sentence_and_every_line_is_whole(
    args: list[str],
    predict: Callable[..., tuple[int, Path]],
    folder: Path,
    limit_files: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit_files(700)
    status, output = predict(folder / "b", *args)
    assert status == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("camtrain: error:")]
    assert line.startswith(f"camtrain: error: {output}/")
    assert "cannot be written (File too large: " in line
    assert len(lines_of(output)) < 3  # each of them can be read
    assert set(files_of(output)) == {"predictions.jsonl", "unfinished/settings.json"}


@pytest.mark.filterwarnings("ignore:The .* split of .* has no image of the class a")
def test_inputs_may_be_lists_standard_input_and_shards(
    predict: Callable[..., tuple[int, Path]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same pictures give the same lines but for their paths."""
    good = [folder / name for name in ("b/x.jpg", "a/x.jpg", "b/y.png")]
    text = b"\r\n\n".join(map(os.fsencode, good))
    (tmp_path / "list.txt").write_bytes(text)
    assert predict(*good, "--boxes", "coco")[0] == 0
    results = {name: (tmp_path / "out" / name).read_bytes() for name in files_of(tmp_path / "out")}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    for place in (tmp_path / "list.txt", "-"):
        assert predict(place, "--boxes", "coco", "--overwrite")[0] == 0
        for name, content in results.items():
            assert (tmp_path / "out" / name).read_bytes() == content, (place, name)
    (folder / "a/z.jpg").unlink()
    (folder / "b/w.png").unlink()
    shards = ["shards", str(folder), "--to", str(tmp_path / "tars")]
    assert cli.main(shards) == 0
    assert predict(tmp_path / "tars", "--boxes", "coco", "--overwrite")[0] == 0
    assert {Path(line["file"]).name for line in lines_of(tmp_path / "out")} == {"x.jpg", "y.png"}
    assert lines_of(tmp_path / "out")[0]["size_hw"] in ([37, 50], [48, 64], [90, 30])
    (tmp_path / "list.txt").write_text("\n")
    capsys.readouterr()
    assert predict(tmp_path / "list.txt", "--overwrite")[0] == 2
    assert "list.txt holds no path; write the path" in capsys.readouterr().err
