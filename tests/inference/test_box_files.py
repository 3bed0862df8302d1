"""The boxes of ``camtrain predict --boxes``, read by our own reader and by other tools."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camtrain
from camtrain import cli
from camtrain.data import ImageFolder
from camtrain.model.camnet import CAMNet

NAMES = ["ant", "bee"]
Boxes = dict[str, list[list[int]]]  # of each picture, sorted


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def save(path: Path, names: list[str], *, bias: tuple[float, ...], **options: Any) -> Path:
    """A small network whose scores are those of the bias."""
    torch.manual_seed(0)
    args = {"neck": (8,), "backbone_args": {"width": 4}, **options}
    net: CAMNet = camtrain.create_model("camtrain/digits", len(names), **args)
    with torch.no_grad():
        net.head.weight.mul_(1e-3)
        net.head.bias.copy_(torch.tensor(bias))
    preprocessing = camtrain.Preprocessing((32, 40))
    camtrain.Predictor(net, class_names=names, preprocessing=preprocessing).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model.safetensors", NAMES, bias=(1.0, 0.5))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of two classes, a turned one and a damaged one."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, size in {"ant/x.jpg": (50, 37), "ant/y.jpg": (64, 48), "bee/z.png": (30, 90)}.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, exif=turned if name == "ant/y.jpg" else Image.Exif())
    (tmp_path / "photos/ant/w.jpg").write_text("no picture")
    return tmp_path / "photos"


def predict(model: Path, *inputs: Path, output: Path, options: tuple[str, ...]) -> Boxes:
    """Predict, and return the boxes of the first ``options`` classes of each picture."""
    args = ["predict", str(model), *map(str, inputs), "--output", str(output), "--no_sheets"]
    assert cli.main([*args, "--overlays", "0", *options]) in (0, 1)
    return {
        line["file"]: sorted(box for boxes in line["boxes_xyxy"] for box in boxes)
        for line in lines_of(output)
        if "error" not in line
    }


def boxes_beside(photos: Path) -> Boxes:
    source = ImageFolder(photos, "train", val_fraction=0, test_fraction=0)
    return {p: sorted(source.boxes(n).tolist()) for n, p in enumerate(source.paths)}


def test_our_own_reader_reads_them(model: Path, photos: Path, tmp_path: Path) -> None:
    """Of each picture the boxes of its folder's class are read back."""
    (photos / "ant/w.jpg").unlink()
    expected = {}
    for name in NAMES:
        options = ("--boxes", "coco", "--classes", name)
        part = predict(model, photos / name, output=tmp_path / name, options=options)
        assert all(part.values())
        expected |= part
    both = predict(
        model, photos, output=tmp_path / "both", options=("--boxes", "coco", "--top", "2")
    )
    assert both.keys() == expected.keys() == boxes_beside(photos).keys()
    shutil.copy(tmp_path / "both/boxes.json", photos / "boxes.json")
    assert boxes_beside(photos) == expected
    (photos / "boxes.json").unlink()

    options = ("--boxes", "yolo", "--top", "2", "--overwrite")
    predict(model, photos, output=tmp_path / "both", options=options)
    assert not (tmp_path / "both/boxes.json").exists()
    shutil.copytree(tmp_path / "both/yolo", photos, dirs_exist_ok=True)
    assert boxes_beside(photos) == expected


def test_pycocotools_reads_them(model: Path, photos: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    expected = predict(
        model, photos, output=tmp_path / "out", options=("--boxes", "coco", "--top", "2")
    )
    coco = reader.COCO(str(tmp_path / "out/boxes.json"))
    assert {number: c["name"] for number, c in coco.cats.items()} == {1: "ant", 2: "bee"}
    found = {}
    for number, image in coco.imgs.items():
        path = photos / image["file_name"]
        entries = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert all(0 < entry["score"] < 1 for entry in entries)
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in entries)]
        found[str(path)] = sorted(map(list, boxes))
    assert found == expected
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in coco.imgs.values()}
    assert sizes == {"ant/x.jpg": (50, 37), "ant/y.jpg": (48, 64), "bee/z.png": (30, 90)}
    assert len(coco.loadRes(coco.dataset["annotations"]).anns) == len(coco.anns)


def test_supervision_reads_them(model: Path, photos: Path, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    folder, output = photos / "bee", tmp_path / "out"
    for kind in ("coco", "yolo"):
        options = ("--boxes", kind, "--top", "2", "--overwrite")
        expected = predict(model, folder, output=output, options=options)
        if kind == "coco":
            data = supervision.DetectionDataset.from_coco(str(folder), str(output / "boxes.json"))
        else:
            yolo = output / "yolo"
            data = supervision.DetectionDataset.from_yolo(
                str(folder), str(yolo), str(yolo / "data.yaml")
            )
        assert data.classes == NAMES
        found = {path: sorted(found.xyxy.round().tolist()) for path, _, found in data}
        assert found == expected


@pytest.mark.parametrize(
    ("bias", "options", "expected"),
    [
        ((1.0, 0.5), (), {"ant"}),
        ((1.0, 0.5), ("--top", "2"), {"ant", "bee"}),
        ((1.0, 0.5), ("--classes", "bee"), {"bee"}),
        ((1.0, 1.0, -1.0), (), {"ant", "bee"}),  # of several labels, those above 0.5
        ((-1.0, -1.0, -1.0), (), set()),
    ],
)
def test_boxes_are_those_of_the_classes_that_a_picture_has(
    bias: tuple[float, ...],
    options: tuple[str, ...],
    expected: set[str],
    photos: Path,
    tmp_path: Path,
) -> None:
    names = [*NAMES, "cow"][: len(bias)]
    task = "multilabel" if len(bias) == 3 else "multiclass"
    model = save(tmp_path / "model.safetensors", names, bias=bias, task=task)
    predict(model, photos / "bee", output=tmp_path / "out", options=("--boxes", "coco", *options))
    content = json.loads((tmp_path / "out/boxes.json").read_text())
    assert {names[entry["category_id"] - 1] for entry in content["annotations"]} == expected
    assert [image["file_name"] for image in content["images"]] == ["z.png"]


def test_pictures_that_would_share_a_text_file_are_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "bee/z.png", photos / "bee/z.jpg")
    args = ["predict", "no.safetensors", str(photos), "--output", str(tmp_path / "out")]
    assert cli.main([*args, "--boxes", "yolo"]) == 2
    assert "z.jpg and " in (error := capsys.readouterr().err)
    assert "differ in their endings only; rename one, or give --boxes coco." in error
    assert not (tmp_path / "out").exists()
