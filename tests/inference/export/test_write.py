"""An exported network computes what the network computes, or there is no file."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camtrain
from camtrain import CAMNet, Preprocessing, cli
from camtrain.data import normalize
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.bundle import read_network
from camtrain.inference.export import check
from camtrain.inference.export.command import pictures_of, usage
from camtrain.inference.export.write import Export, export_network
from camtrain.inference.exported import ExportedNetwork, ExportOptions
from camtrain.localization import auto_threshold, boxes_from_heatmap
from camtrain.maps import PoolName
from camtrain.model import camnet
from camtrain.thresholds import Threshold
from tests.conftest import at_night, everyday

pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

NAMES = ("one", "two/ü", "three", "four", "five", "six", "seven")
SIZES_HW = ((40, 56), (57, 40), (64, 48))


def small_net(
    *, pool: PoolName = "avg", channel_order: str = "rgb", multilabel: bool = False
) -> CAMNet:
    torch.manual_seed(0)
    net = camtrain.create_model(
        "camtrain/digits",
        7,
        neck=(6,),
        pool=pool,
        task="multilabel" if multilabel else "multiclass",
        backbone_args={"width": 2},
    )
    net.name_classes(NAMES)
    net.preprocessing = Preprocessing(
        (48, 40), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), channel_order=channel_order
    )
    with torch.no_grad():
        net(torch.rand(4, 3, 48, 40))  # BatchNorm's buffers leave their defaults
    return net.eval()


RAW = {"raw": True, "top": 5, "heatmaps": True}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Export]:
    """An export with these options, made once; the network must be left as it was."""
    made: dict[tuple[str, ExportOptions, str, PoolName], Export] = {}

    def make(
        suffix: str, *, channel_order: str = "rgb", pool: PoolName = "avg", **options: Any
    ) -> Export:
        key = (suffix, ExportOptions(**options), channel_order, pool)
        if key not in made:
            path = tmp_path_factory.mktemp("exported") / f"model{suffix}"
            net = small_net(channel_order=channel_order, pool=pool)
            state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            description = replace(net.description, threshold=0.3, scores={"val/acc1": 0.5})
            made[key] = export_network(net, path, options=key[1], description=description)
            for name, tensor in net.state_dict().items():
                assert torch.equal(tensor, state[name]), name
                assert tensor.dtype == state[name].dtype
        return made[key]

    return make


def inputs(size_hw: tuple[int, int], batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, *size_hw, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("pool", "suffix"),
    everyday(
        itertools.product(("avg", "lse", "max", "gmp"), (".onnx", ".pt2")),
        ("avg", ".onnx"),
        ("avg", ".pt2"),
    ),
)
def test_logits_and_maps_are_those_of_the_network_at_every_size(
    suffix: str, pool: PoolName, exported: Callable[..., Export]
) -> None:
    done = exported(suffix, pool=pool)
    assert done.input_hw is None
    net = small_net(pool=pool)
    predictor = camtrain.load(done.path)
    assert predictor.net is None
    for size_hw in SIZES_HW:
        for batch in (1, 3):
            images = inputs(size_hw, batch)
            with torch.no_grad():
                expected = net.class_maps(images)
            found = predictor.network.class_maps(images)
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.maps, expected.maps, rtol=0, atol=1e-5)
            assert torch.equal(found.classes, expected.classes)


@pytest.mark.parametrize("suffix", everyday([".onnx", ".pt2"], ".pt2"))
def test_chosen_classes_are_given_in_their_order(
    suffix: str, exported: Callable[..., Export]
) -> None:
    network = camtrain.load(exported(suffix).path).network
    of_three = camtrain.load(exported(suffix, top=3).path).network
    images = inputs(SIZES_HW[0])
    every = network.class_maps(images)
    best = network.class_maps(images, top=3)
    assert torch.equal(best.classes, every.logits.topk(3).indices)
    assert torch.equal(
        best.maps, every.maps.gather(1, best.classes[:, :, None, None].expand_as(best.maps))
    )
    some = network.class_maps(images, classes=torch.tensor([[4, 0], [1, 1], [6, 2]]))
    assert torch.equal(some.maps[1, 0], every.maps[1, 1])
    assert torch.equal(some.maps[2, 1], every.maps[2, 2])
    one = network.class_maps(images, classes=torch.tensor([4, 0, 1]))
    assert one.maps.shape[:2] == (3, 1)
    for top in (1, 3):
        found = of_three.class_maps(images, top=top)
        assert torch.equal(found.classes, best.classes[:, :top])
        torch.testing.assert_close(found.maps, best.maps[:, :top], rtol=0, atol=1e-5)
    turned = of_three.class_maps(images, classes=best.classes.flip(1))
    torch.testing.assert_close(turned.maps, best.maps.flip(1), rtol=0, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("order", "suffix"),
    [*itertools.product(("rgb", "bgr"), (".onnx", ".pt2"))],
)
def test_raw_pixels_are_normalized_in_the_graph(
    order: str, suffix: str, exported: Callable[..., Export]
) -> None:
    done = exported(suffix, **RAW, channel_order=order)
    net = small_net(channel_order=order)
    assert net.preprocessing is not None
    pixels = torch.randint(0, 256, (2, 3, 41, 56), dtype=torch.uint8)
    with torch.no_grad():
        expected = net.class_maps(normalize(pixels, net.preprocessing), top=5)
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(done.path))
        outputs = [torch.from_numpy(o) for o in session.run(None, {"images": pixels.numpy()})]
        assert [output.name for output in session.get_outputs()] == list(done.options.output_names)
    else:
        outputs = list(torch.export.load(done.path).module()(pixels))
    logits, maps, classes, heat = outputs
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps, expected.maps, rtol=0, atol=1e-5)
    assert torch.equal(classes, expected.classes)
    assert heat.shape == (2, 5, 41, 56)
    assert heat.amin((2, 3)).eq(0).all()
    assert heat.amax((2, 3)).eq(1).all()
    expected_heat = camtrain.heatmaps(expected.maps, size=(41, 56))
    torch.testing.assert_close(heat, expected_heat, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("suffix", "options"),
    everyday(itertools.product((".onnx", ".pt2"), ({}, RAW)), (".onnx", {}), (".pt2", {})),
)
def test_the_predictor_says_the_same_of_a_picture(
    suffix: str, options: dict[str, Any], exported: Callable[..., Export]
) -> None:
    predictor = camtrain.load(exported(suffix, **options).path)
    assert predictor.threshold == 0.3
    assert predictor.scores == {"val/acc1": 0.5}
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((70, 90), (33, 61))]
    reference = camtrain.Predictor(small_net(), threshold=0.3)
    for found, expected in zip(predictor(pictures), reference(pictures), strict=True):
        assert found.names == expected.names
        assert found.classes == expected.classes
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)
        torch.testing.assert_close(found.heatmaps, expected.heatmaps, rtol=0, atol=1e-3)
        for boxes, expected_boxes in zip(found.boxes, expected.boxes, strict=True):
            assert torch.equal(boxes, expected_boxes)


@pytest.mark.nightly
def test_scores_of_a_multi_label_network_are_sigmoids(tmp_path: Path) -> None:
    net = small_net(multilabel=True)
    export_network(net, tmp_path / "model.pt2")
    picture = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    [found] = camtrain.load(tmp_path / "model.pt2")(picture)
    [expected] = camtrain.Predictor(net)(picture)
    assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert found.names == expected.names


@pytest.mark.parametrize("suffix", everyday([".onnx", ".pt2"], ".pt2"))
def test_a_network_of_one_size_keeps_it(suffix: str, tmp_path: Path) -> None:
    """Its head averages a window of the map: another size would be another network."""
    net = small_net()
    net.backbone = FixedSize(net.backbone, (48, 40))
    done = export_network(net, tmp_path / f"model{suffix}")
    assert done.input_hw == (48, 40)
    network = camtrain.load(done.path).network
    images = inputs((48, 40), batch=3)
    torch.testing.assert_close(
        network.class_maps(images).logits, net(images).detach(), rtol=0, atol=1e-5
    )
    with pytest.raises(CamtrainValueError, match=r"takes images \(B, 3, 48, 40\), got"):
        network.class_maps(inputs((40, 48)))


class FixedSize(nn.Module):
    """A backbone that takes images of one size only."""

    def __init__(self, backbone: nn.Module, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.size_hw = size_hw

    def forward(self, images: Tensor) -> Tensor:
        """What the backbone gives."""
        if images.shape[2] != self.size_hw[0] or images.shape[3] != self.size_hw[1]:
            raise ValueError(f"images must be {self.size_hw}")
        features: Tensor = self.backbone(images)
        return features


@pytest.mark.parametrize(
    ("suffix", "options"),
    everyday(itertools.product((".onnx", ".pt2"), ({}, RAW)), (".onnx", {}), (".pt2", {})),
)
def test_the_lines_it_prints_run(
    suffix: str,
    options: dict[str, Any],
    exported: Callable[..., Export],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = exported(suffix, **options)
    monkeypatch.chdir(done.path.parents[1])
    relative = replace(done, path=done.path.relative_to(done.path.parents[1]))
    lines = usage(relative, small_net(), 0.2)
    assert len(lines.splitlines()) <= (9 if options.get("heatmaps") else 5)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert found["logits"].shape == (1, 7)
    assert found["maps"].shape[1] == options.get("top", 7)


@pytest.mark.parametrize("threshold", [0.4, "auto"])
def test_the_lines_find_the_box_in_numpy(
    threshold: Threshold,
    exported: Callable[..., Export],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = exported(".onnx", heatmaps=True)
    monkeypatch.chdir(done.path.parent)
    lines = usage(replace(done, path=Path(done.path.name)), small_net(), threshold)
    noise = "images[:] = numpy.random.default_rng(0).random(images.shape)"
    lines = lines.replace("logits, maps", f"{noise}\nlogits, maps", 1)
    found: dict[str, Any] = {}
    exec(lines, found)
    heatmap = found["heatmap"]
    expected = auto_threshold(heatmap) if threshold == "auto" else threshold
    assert found["threshold"] == pytest.approx(expected, abs=1e-12)
    boxes = boxes_from_heatmap(heatmap, threshold)
    box = [*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist()]
    assert capsys.readouterr().out.splitlines()[-1] == str([np.int64(side) for side in box])


@pytest.mark.nightly
def test_float16_keeps_what_the_network_says_and_halves_the_file(
    tmp_path: Path, exported: Callable[..., Export]
) -> None:
    full = exported(".onnx")
    done = exported(".onnx", precision="fp16")
    assert done.parity is None
    assert done.agreement is not None
    assert done.agreement.same_class == 1
    assert 0 < done.agreement.logits < 0.05
    assert done.path.stat().st_size < full.path.stat().st_size
    session = onnxruntime.InferenceSession(str(done.path))
    assert {value.type for value in session.get_inputs()} == {"tensor(float)"}
    assert {value.type for value in session.get_outputs()} == {"tensor(float)"}
    with pytest.raises(CamtrainValueError, match="precision fp16 is for ONNX files"):
        export_network(small_net(), tmp_path / "a.pt2", options=ExportOptions(precision="fp16"))


@pytest.mark.nightly
def test_float16_that_overflows_leaves_no_file(tmp_path: Path) -> None:
    net = small_net()
    with torch.no_grad():
        net.neck[0].weight.mul_(1e6)
    with pytest.raises(CamtrainValueError, match="overflows in float16"):
        export_network(net, tmp_path / "a.onnx", options=ExportOptions(precision="fp16"))
    assert list(tmp_path.iterdir()) == []


SPOILED = [
    (".onnx", lambda maps: maps + 0.01, "its logits differ by up to .* and its maps by"),
    (".pt2", lambda maps: maps + 0.01, "its logits differ by up to .* and its maps by"),
    (".pt2", lambda maps: maps * torch.nan, "its logits differ by up to nan"),
]


@pytest.mark.parametrize(
    ("suffix", "spoil", "message"),
    at_night(SPOILED, SPOILED[0], SPOILED[2]),
)
def test_what_lies_outside_the_tolerance_leaves_no_file(
    suffix: str,
    spoil: Callable[[Tensor], Tensor],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(maps: Tensor, pool: PoolName) -> Tensor:
        pooled = maps.mean((-2, -1))
        return spoil(pooled) if torch.compiler.is_exporting() else pooled

    monkeypatch.setattr(camnet, "pool_maps", wrong)
    with pytest.raises(CamtrainValueError, match=message) as raised:
        export_network(small_net(), tmp_path / f"model{suffix}")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_boxes_that_differ_are_judged_by_the_pixels_at_the_threshold() -> None:
    heat = torch.zeros(4, 6)
    heat[1, 1:3], heat[3, 5] = 1.0, 0.2 - 3e-5
    raised = heat.clone()
    raised[3, 5] = 0.2 + 3e-5
    assert check._same_boxes(heat, heat, 0.2) is True
    assert check._same_boxes(raised, heat, 0.2) is None
    raised[2, 4] = 0.5
    heat[3, 5] = 0.1
    assert check._same_boxes(raised, heat, 0.2) is False


@pytest.mark.parametrize(
    ("figures", "complaint"),
    [
        ({"logits": 1e-4, "maps": 1e-4, "near": 3}, None),
        ({"logits": 1.1e-4}, "its logits differ by up to 0.00011"),
        ({"logits": 1.1e-4, "size_of_logits": 99.0}, "its logits differ by up to 0.00011"),
        ({"logits": 1.1e-4, "size_of_logits": 111.0}, None),
        ({"maps": 2e-4}, "its maps by 0.0002 of their range"),
        ({"heatmaps": 0.1}, "its logits differ"),
        ({"boxes": 9, "differing": 1}, "1 of 9 boxes differ"),
        ({"logits": float("nan")}, "its logits differ by up to nan"),
    ],
)
def test_the_tolerances_are_those_promised(figures: dict[str, Any], complaint: str | None) -> None:
    found = check.Parity(((40, 56),), **figures).complaint()
    assert (found is None) == (complaint is None)
    assert complaint is None or complaint in str(found)


def test_parity_is_measured_at_two_sizes_with_unequal_sides(
    exported: Callable[..., Export],
) -> None:
    measured = exported(".onnx").parity
    assert measured is not None
    assert len(measured.sizes_hw) == 2
    assert all(height != width for height, width in measured.sizes_hw)
    assert measured.images == 8
    assert measured.boxes == 40
    assert measured.differing == 0
    assert measured.logits <= 1e-4
    text = str(measured)
    assert "8 inputs of" in text
    assert "boxes of 40 maps: " in text


def test_the_metadata_are_those_of_the_bundle(exported: Callable[..., Export]) -> None:
    session = onnxruntime.InferenceSession(str(exported(".onnx").path))
    said = json.loads(session.get_modelmeta().custom_metadata_map["camtrain"])
    assert said["class_names"] == list(NAMES)
    assert said["preprocessing"]["size"] == [48, 40]
    assert said["map_threshold"] == 0.3
    assert said["task"] == "multiclass"
    assert said["architecture"] == small_net().recipe
    assert said["export"]["input_hw"] is None
    [images] = session.get_inputs()
    assert images.name == "images"
    assert images.shape == ["batch", 3, "height", "width"]


def test_a_file_says_nothing_about_this_machine(exported: Callable[..., Export]) -> None:
    for suffix in (".onnx", ".pt2"):
        content = exported(suffix).path.read_bytes()
        assert str(Path(camtrain.__file__).parent).encode() not in content
        assert b"site-packages" not in content


# The verb.


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    net = small_net()
    content = {
        "camtrain": {
            "architecture": net.recipe,
            "class_names": list(NAMES),
            "preprocessing": net.preprocessing.to_dict() if net.preprocessing else None,
            "map_threshold": 0.25,
        },
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
        "datamodule_hyper_parameters": {"source": "folder", "root": str(tmp_path / "gone")},
    }
    path = tmp_path / "best.ckpt"
    torch.save(content, path)
    return path


def test_the_folder_of_a_run_stands_for_its_best_epoch(checkpoint: Path) -> None:
    run = checkpoint.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    checkpoint.rename(run / "checkpoints/best.ckpt")
    assert cli.main(["export", str(run), "--format", "safetensors"]) == 0
    assert camtrain.load(run / "checkpoints/best.safetensors").threshold == 0.25


@pytest.mark.parametrize("kind", at_night(["onnx", "pt2", "safetensors"], "onnx"))
def test_the_verb_writes_beside_the_checkpoint_and_says_what(
    kind: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(checkpoint), "--format", kind]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    path = checkpoint.with_suffix(f".{kind}")
    assert str(path) in out
    assert "parity" in out
    loaded = camtrain.load(path)
    assert loaded.threshold == 0.25
    assert tuple(loaded.network.class_names) == NAMES
    if kind != "safetensors":
        assert "outputs   logits, maps" in out
        assert "random pictures" in out
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.ckpt", f"best.{kind}"]
    assert cli.main(["export", str(checkpoint), "--format", kind]) == 2
    assert "exists already; give --overwrite" in capsys.readouterr().err
    assert cli.main(["export", str(checkpoint), "--format", kind, "--overwrite"]) == 0


def test_parity_is_checked_on_the_pictures_that_are_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (30, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    arguments = ["export", str(checkpoint), "--format", "pt2", "--images", str(folder)]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"pictures of {folder}" in out
    assert "6 inputs of" in out


@pytest.mark.nightly
def test_the_data_of_a_checkpoint_are_found_and_float16_is_measured_on_them(
    photographs: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 2, neck=(), backbone_args={"width": 2}).eval()
    net.name_classes(["blue", "red"])
    net.preprocessing = Preprocessing((40, 56))
    path = tmp_path / "a.ckpt"
    settings = {"source": "folder", "root": str(photographs), "x": 1}
    content = {
        "camtrain": net.description.to_dict(),
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
        "datamodule_hyper_parameters": settings,
    }
    torch.save(content, path)
    found = pictures_of(read_network(path))
    assert found.source is not None
    assert len(found.images) == 8
    assert "val" in found.origin
    options = ExportOptions(precision="fp16")
    done = export_network(net, tmp_path / "a.onnx", options=options, pictures=found)
    assert done.agreement is not None
    assert done.agreement.pictures == 8
    assert list(done.agreement.scores) == ["accuracy", "GT-known localization"]
    reference = {"accuracy": 0, "GT-known localization": 0}
    predictor = camtrain.Predictor(net)
    for index in range(8):
        picture = found.source.read(index)
        [said] = predictor(picture.image, top=2)
        reference["accuracy"] += said.classes[0] == picture.label
        box = said.boxes[said.classes.index(int(picture.label))][:1]
        iou = camtrain.localization.boxes.box_iou(box, picture.boxes_xyxy)
        reference["GT-known localization"] += bool((iou >= 0.5).any())
    for name, right in reference.items():
        before, after = done.agreement.scores[name]
        assert before == right / 8
        assert 0 <= after <= 1
    assert "accuracy" in str(done.agreement)
    of_top = export_network(
        net,
        tmp_path / "b.onnx",
        options=ExportOptions(precision="fp16", top=1),
        pictures=found,
    )
    assert of_top.agreement is not None
    assert list(of_top.agreement.scores) == ["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--format", "torchscript"],
            "--format must be one of safetensors, onnx, pt2, got 'torchs",
        ),
        (["--format", "onnx", "--output", "a.pt2"], "must end in .onnx, got 'a.pt2'"),
        (["--format", "onnx", "--output", "no/where/a.onnx"], "does not exist; create it first"),
        (["--format", "onnx", "--top", "0"], "top must be at least 1, got 0"),
        (["--format", "pt2", "--precision", "fp16"], "precision fp16 is for ONNX files"),
        (["--format", "safetensors", "--raw"], "change the graph, which a safetensors bundle"),
        (["--format", "onnx", "--images", "no/where"], "--images must name a folder of pictures"),
    ],
)
def test_arguments_that_cannot_work_are_one_sentence(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert cli.main(["export", str(checkpoint), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in checkpoint.parent.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "a.txt"])
def test_what_is_no_checkpoint_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    assert cli.main(["export", str(path), "--format", "onnx"]) == 2
    path.write_bytes(b"what is this?")
    assert cli.main(["export", str(path), "--format", "onnx"]) == 2
    _, err = capsys.readouterr()
    assert err.count("camtrain: error: ") == err.count("\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_sentence_with_the_command(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(CamtrainValueError, match=f"`pip install {package}`") as raised:
        export_network(small_net(), tmp_path / "model.onnx")
    assert f"the package {package}, which is not installed" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def no_preprocessing() -> CAMNet:
    net = small_net()
    net.preprocessing = None
    return net


@pytest.mark.parametrize(
    ("make", "name", "error", "message"),
    [
        (small_net, "a.pt", CamtrainValueError, "is an .onnx or a .pt2 file, got"),
        (no_preprocessing, "a.pt2", CamtrainValueError, "must know its preprocessing"),
        (small_net, "no/a.pt2", CamtrainFileNotFoundError, "does not exist; create it first"),
    ],
)
def test_bad_arguments_of_the_function(
    make: Callable[[], CAMNet],
    name: str,
    error: type[CamtrainError],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        export_network(make(), tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "device must be one of auto"),
        ({"device": "quantum"}, "device must be one of auto"),
        ({"precision": "bf16"}, "was chosen at its export, got 'bf16'"),
    ],
)
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_options_of_load_that_an_exported_network_has_not(
    suffix: str, options: dict[str, Any], message: str, exported: Callable[..., Export]
) -> None:
    path = exported(suffix).path
    with pytest.raises(CamtrainValueError, match=message):
        camtrain.load(path, **options)
    assert isinstance(camtrain.load(path, device="auto").network, ExportedNetwork)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"top": 4}, "gives the maps of its 3 best classes only; ask for top=3"),
        ({}, "gives the maps of its 3 best classes only"),
        ({"classes": torch.tensor([9, 0, 0])}, r"classes must lie in 0\.\.6"),
    ],
)
def test_maps_that_the_file_does_not_give(
    request_: dict[str, Any], message: str, exported: Callable[..., Export]
) -> None:
    network = camtrain.load(exported(".pt2", top=3).path).network
    with pytest.raises(CamtrainValueError, match=message):
        network.class_maps(inputs(SIZES_HW[0]), **request_)
    with pytest.raises(CamtrainValueError, match=r"takes images \(B, 3, H, W\), got"):
        network.class_maps(inputs(SIZES_HW[0])[:, :1])


def test_an_exported_network_cannot_be_saved_as_a_bundle(
    tmp_path: Path, exported: Callable[..., Export]
) -> None:
    with pytest.raises(CamtrainValueError, match="cannot become a bundle"):
        camtrain.load(exported(".pt2").path).save(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", everyday([".onnx", ".pt2"], ".pt2"))
def test_a_full_disk_is_one_sentence_and_no_file(
    suffix: str, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    """Before, the writing of a ``.pt2`` ended the process."""
    limit_files(10_000)
    with pytest.raises(CamtrainError, match=f"model{suffix} cannot be written .File too large: "):
        export_network(small_net(), tmp_path / f"model{suffix}")
    assert list(tmp_path.iterdir()) == []
