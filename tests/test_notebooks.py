"""The notebooks run from top to bottom, with small settings; as kept they are short and whole."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from camtrain.inference.box_files import COCO

FOLDER = Path(__file__).parents[1] / "notebooks"

# What is set in a notebook's cell of parameters; ``{shared}`` is the folder of real weights.
SMALL = {
    "01_train_and_look": "EPOCHS, PICTURES = 1, 256",
    "02_your_photos": 'NETWORK, WEIGHTS, EPOCHS, MORE = "timm/test_resnet", "null", 1, '
    '["--data.size", "64"]',
    "03_cam_and_gradcam": "SQUEEZENET, BATCHES, SIZE = None, 2, 64",
    "04_your_own_cnn": "EPOCHS, PICTURES = 1, 256",
    "05_onnx_alone": "EPOCHS, PICTURES = 1, 256",
}
REAL = {
    "02_your_photos": 'WEIGHTS = "{shared}/weights/mobilenetv2_100_tfpad.safetensors"\n'
    'MORE = ["--model.backbone_args", \'{{"pad_type": "same"}}\']\nEPOCHS = 1',
    "03_cam_and_gradcam": 'SQUEEZENET = "{shared}/weights/squeezenet1_1.safetensors"\n'
    "BATCHES, SIZE = 2, 64",
}


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def ran(name: str, settings: str, folder: Path) -> dict[str, Any]:
    """The notebook, executed with its parameters replaced."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.reads(json.dumps(read(name)), as_version=4)
    [parameters] = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    parameters.source += f"\n{settings}"
    resources = {"metadata": {"path": str(folder)}}
    return dict(nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute())


def texts(notebook: dict[str, Any]) -> str:
    """Everything that the cells printed."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def test_they_are_those_that_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == SMALL.keys()


@pytest.mark.parametrize("name", SMALL)
def test_a_kept_one_is_short_and_shows_what_came_out(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000
    cells = read(name)["cells"]
    assert len(cells) <= 20
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/jpeg"}
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    check(name, said)
    shown = json.dumps(
        [[output.get("text"), output.get("data", {}).get("text/plain")] for output in outputs]
    )
    assert str(Path.home()) not in shown
    assert "/tmp" not in shown


def check(name: str, said: str) -> None:
    """The numbers that a notebook is about."""
    differences = re.findall(r"largest difference(?: of a logit)?:? ([\d.e+-]+)", said)
    assert len(differences) == {"01": 1, "03": 2}.get(name[:2], 0)
    assert all(float(difference) < 1e-4 for difference in differences)
    if name == "02_your_photos":
        assert "offline-run-" in said
        assert "logits (1, 2) maps (1, 2, " in said
    if name == "04_your_own_cnn":
        assert "maps of the two best classes: (1, 2, 8, 8)" in said
    if name == "05_onnx_alone":
        assert "{'torch': False, 'camtrain': False, 'onnxruntime': True}" in said
    if name == "03_cam_and_gradcam":
        assert "VGG is not cam-ready" in said
        means, logits = re.findall(r"(?:bias|logits): +\[\[(.+), (.+)\]\]", said)
        assert [float(x) for x in means] == pytest.approx([float(x) for x in logits], abs=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SMALL)
def test_it_runs_without_a_network(name: str, tmp_path: Path) -> None:
    check(name, texts(ran(name, SMALL[name], tmp_path)))


@pytest.mark.nightly
@pytest.mark.parametrize("name", REAL)
def test_it_runs_with_weights_of_a_file(name: str, shared: Path, tmp_path: Path) -> None:
    check(name, texts(ran(name, REAL[name].format(shared=shared), tmp_path)))


def test_the_example_for_fiftyone_opens_what_predict_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FiftyOne needs a database, so a module takes its place that keeps the arguments."""
    opened: dict[str, Any] = {}
    fake = ModuleType("fiftyone")
    vars(fake).update(
        types=SimpleNamespace(COCODetectionDataset="coco"),
        Dataset=SimpleNamespace(from_dir=lambda **options: opened.update(options)),
    )
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    example = (FOLDER / "boxes_in_fiftyone.py").read_text()
    runpy.run_path(str(FOLDER / "boxes_in_fiftyone.py"))
    assert opened["dataset_type"] == "coco"
    assert f"camtrain predict MODEL {opened['data_path']} --boxes coco --output found" in example
    assert opened["labels_path"] == f"found/{COCO}"
