"""What an import costs, who may import whom, and that the checkers have nothing to say."""

import ast
import importlib.util
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import camtrain
import camtrain.data
import camtrain.localization

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "camtrain"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which rooms the modules of a room may import, beside itself. "camtrain" is the front page.
LOW = {
    "arguments",
    "errors",
    "files",
    "header",
    "labels",
    "lazy",
    "maps",
    "preprocessing",
    "thresholds",
}
MIDDLE = {"model", "data", "localization", "visualize"}
ROOMS = {
    "arguments": set(),
    "errors": set(),
    "lazy": set(),
    "version": set(),
    "files": {"errors"},
    "labels": {"errors"},
    "preprocessing": {"errors"},
    "thresholds": {"errors", "files"},
    "header": {"errors", "files", "labels", "preprocessing", "thresholds", "version"},
    "maps": {"errors", "preprocessing"},
    "model": LOW,
    "data": LOW,
    "localization": LOW,
    "visualize": LOW,
    "inference": LOW | MIDDLE | {"version"},
    "training": LOW | MIDDLE | {"version", "inference"},
    "cli": {"arguments", "errors", "camtrain"},
    "__main__": {"cli"},
    "camtrain": LOW | MIDDLE | {"version", "inference"},
}


def loaded_by(code: str, *names: str) -> set[str]:
    """Which of the packages are loaded in a fresh process after ``code``."""
    code += f"\nimport json, sys; print(json.dumps([n for n in {names} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_camtrain_or_its_front_door_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "PIL", "torchvision", "timm", "pytorch_lightning", "wandb")
    assert loaded_by("import camtrain", *heavy) == set()
    assert loaded_by("import camtrain.cli; camtrain.cli.main(['--help'])", *heavy) == set()
    assert loaded_by("import camtrain; dir(camtrain)", *heavy) == set()


def test_a_trained_network_is_used_without_lightning_and_wandb_and_timm_is_not_loaded(
    tmp_path: Path,
) -> None:
    """In a fresh process: they are not loaded, and then, where they are missing, nothing asks."""
    path, output = tmp_path / "model.safetensors", tmp_path / "out"
    net = camtrain.create_model("camtrain/digits", 3, neck=(), backbone_args={"width": 1})
    camtrain.Predictor(net).save(path)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    heavy = ("pytorch_lightning", "lightning", "lightning_fabric", "wandb", "jsonargparse")
    code = f"""
import importlib, pkgutil, sys
import camtrain, camtrain.cli, camtrain.inference
for module in pkgutil.walk_packages(camtrain.inference.__path__, "camtrain.inference."):
    importlib.import_module(module.name)
predictor = camtrain.load({str(path)!r})
[prediction] = predictor({str(tmp_path / "a.png")!r}, top=3)
assert prediction.overlay(rank=2).size == (30, 20)
for name in {heavy}:
    assert name not in sys.modules, name
    sys.modules[name] = None
predictor.save({str(tmp_path / "again.safetensors")!r})
args = ["predict", {str(path)!r}, {str(tmp_path)!r}, "--output", {str(output)!r}]
assert camtrain.cli.main(args) == 0
"""
    assert loaded_by(code, "torch", "camtrain.training", "timm") == {"torch"}
    assert (output / "predictions.jsonl").read_text().count("\n") == 1


def test_a_prediction_loads_no_metrics_no_plots_and_no_readers_of_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    net = camtrain.create_model("camtrain/digits", 3, neck=(), backbone_args={"width": 1})
    camtrain.Predictor(net).save(path)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    decoding = [f"camtrain.data.{n}" for n in ("decoding", "lists", "transforms", "tree")]
    code = f"""
import sys
import camtrain
[prediction] = camtrain.load({str(path)!r})({str(tmp_path / "a.png")!r}, top=1)
data = {{name for name in sys.modules if name.startswith("camtrain.data.")}}
assert data <= set({decoding}), data
assert prediction.size_hw == (20, 30)
"""
    names = ("torchmetrics", "matplotlib", "scipy", "sklearn", "pandas", "rich", "onnx")
    assert loaded_by(code, "torchvision", *names) == {"torchvision"}


def test_every_public_name_resolves_and_is_listed() -> None:
    assert sorted(camtrain.__all__) == list(camtrain.__all__) == dir(camtrain)
    for name in camtrain.__all__:
        assert getattr(camtrain, name).__name__ == name
        assert getattr(camtrain, name).__doc__


@pytest.mark.parametrize("package", [camtrain, camtrain.data, camtrain.localization])
def test_every_lazy_name_is_known_to_type_checkers(package: ModuleType) -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text())
    [only_for_checkers] = [node for node in tree.body if isinstance(node, ast.If)]
    named = {
        f"{node.module}.{alias.asname}"
        for node in only_for_checkers.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {f"{home}.{name}" for home, names in package._HOMES.items() for name in names.split()}
    assert named == homes - {"camtrain.errors.CamtrainError"}
    for name in dir(package):
        assert getattr(package, name) is not None


@pytest.mark.parametrize("package", [camtrain, camtrain.data, camtrain.localization])
def test_a_star_imports_the_lazy_names(package: ModuleType) -> None:
    names: dict[str, object] = {}
    exec(f"from {package.__name__} import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == dir(package)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'camtrain' has no attribute 'creat_model'"):
        _ = camtrain.creat_model
    assert not hasattr(camtrain, "training_")


def test_the_version_stands_in_one_place() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["project"]["dynamic"] == ["version"]
    assert config["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "camtrain.version.__version__"
    }
    written = [path for path in FILES if f'"{camtrain.__version__}"' in path.read_text()]
    assert written == [PACKAGE / "version.py"]


def room_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "camtrain" if name == "__init__" else name


def imports_of(path: Path, *, also_inside: bool = True) -> Iterator[str]:
    """Full names of the modules that a file imports; inside functions too unless told otherwise."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree) if also_inside else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_lies_below_them(path: Path) -> None:
    room = room_of(path)
    for name in imports_of(path):
        package, *inside = name.split(".")
        if package == "camtrain":
            imported = inside[0] if inside else "camtrain"
            assert imported in ROOMS[room] | {room}, f"{path} imports {name}"
        if package in ("pytorch_lightning", "lightning", "wandb", "jsonargparse"):
            assert room == "training", f"{path} imports {name}"
        if package == "timm":
            assert room in ("model", "training"), f"{path} imports {name}"
    assert not any(name.startswith("timm") for name in imports_of(path, also_inside=False))


def test_only_the_front_door_names_the_room_of_training() -> None:
    names = {room_of(path) for path in FILES if "camtrain.training" in path.read_text()}
    assert names <= {"cli", "training"}


def findings(*args: str) -> str:
    """What a checker says about the project; empty where it is content."""
    if importlib.util.find_spec(args[0]) is None:
        pytest.skip(f"{args[0]} is not installed; pip install -e '.[test]' brings it")
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("args", [("check", "."), ("format", "--check", ".")], ids=lambda a: a[0])
def test_ruff_is_content(args: tuple[str, ...]) -> None:
    assert findings("ruff", *args) == ""


@pytest.mark.nightly
def test_mypy_is_content() -> None:
    assert findings("mypy") == ""
