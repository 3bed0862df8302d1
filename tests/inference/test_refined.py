"""Refined maps through every door: bundle, checkpoint, predictor, ONNX and pt2."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import camtrain
from camtrain import CAMNet, Preprocessing, cli
from camtrain.errors import CamtrainError
from camtrain.inference.bundle import write_bundle
from camtrain.inference.export.write import export_network
from camtrain.inference.exported import ExportOptions
from camtrain.model import refine


def refining_net() -> CAMNet:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 5, neck=(6,), backbone_args={"width": 4})
    net.preprocessing = Preprocessing((48, 40))
    with torch.no_grad():
        net(torch.rand(4, 3, 48, 40))
    return net.eval().set_refine("affinity")


PICTURE = torch.randint(
    0, 256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)


def heatmaps(predictor: camtrain.Predictor, tta: str = "none") -> torch.Tensor:
    [prediction] = predictor(PICTURE, classes=[3, 1], tta=tta)  # type: ignore[arg-type]
    return prediction.heatmaps


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    camtrain.Predictor(refining_net(), threshold=0.4).save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_heatmaps_are_those_of_the_refined_maps() -> None:
    net = refining_net()
    [prediction] = camtrain.Predictor(net)(PICTURE, top=1)
    from camtrain.data import prepare

    assert net.preprocessing is not None
    images = prepare(PICTURE, net.preprocessing)[None]
    with torch.no_grad():
        refined = net.refined_maps(images, top=1).refined_maps
    expected = camtrain.heatmaps(refined, size=(70, 90))[0]
    torch.testing.assert_close(prediction.heatmaps, expected, atol=1e-3, rtol=0)
    plain = camtrain.Predictor(net, refine="none")
    assert float((heatmaps(plain) - heatmaps(camtrain.Predictor(refining_net()))).abs().max()) > 0.1


def test_a_bundle_remembers_its_refinement_and_says_format_2(bundle: Path) -> None:
    with safe_open(bundle, framework="pt") as file:
        said = json.loads(file.metadata()["camtrain"])
    assert said["format_version"] == 2
    assert said["refine"] == {"method": "affinity", "layers": ["trunk.pool2", "trunk.relu3"]}
    predictor = camtrain.load(bundle)
    assert torch.equal(heatmaps(predictor), heatmaps(camtrain.Predictor(refining_net())))
    assert predictor.net is not None
    assert predictor.net.refine == "affinity"
    assert camtrain.load(bundle, refine="none").net.refine == "none"  # type: ignore[union-attr]


def test_a_threshold_belongs_to_the_maps_it_was_calibrated_on(tmp_path: Path) -> None:
    plain, refined, both = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    net = refining_net().set_refine("none")
    calibrated = replace(net.description, threshold=0.503, is_calibrated=True)
    write_bundle(plain, net, description=calibrated)
    assert camtrain.load(plain).threshold == 0.503
    predictor = camtrain.load(plain, refine="affinity")
    assert predictor.threshold == 0.2
    assert predictor.description.threshold_origin == (
        "the default, since none is calibrated on maps refined by affinity of "
        "trunk.pool2, trunk.relu3"
    )
    [prediction] = predictor(PICTURE)
    assert (prediction.threshold, prediction.is_calibrated) == (0.2, False)
    predictor.save(refined)
    assert camtrain.load(refined).threshold == 0.2
    assert camtrain.load(refined, refine="none").threshold == 0.503  # it is not forgotten
    of_both = replace(camtrain.load(refined).description, threshold=0.4, is_calibrated=True)
    write_bundle(both, refining_net(), description=of_both)
    loaded = [camtrain.load(both, refine=refine) for refine in (None, "affinity", "none")]
    assert [each.threshold for each in loaded] == [0.4, 0.4, 0.503]
    [prediction] = loaded[2](PICTURE)
    assert prediction.is_calibrated
    assert not next(loaded[2](PICTURE, threshold=0.3)).is_calibrated
    other_layers = of_both.with_maps("affinity", ["trunk.relu3"])
    assert other_layers.threshold == 0.2
    assert other_layers.with_maps("none", []).threshold == 0.503


def test_predict_and_export_say_the_threshold_and_its_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, bundle, picture = refining_net().set_refine("none"), tmp_path / "a.safetensors", "p.png"
    calibrated = replace(net.description, threshold=0.503, is_calibrated=True)
    write_bundle(bundle, net, description=calibrated)
    Image.new("RGB", (40, 30), "red").save(tmp_path / picture)
    default = "0.2, the default, since none is calibrated on maps refined by affinity of"
    for options, line in {
        (): "Boxes at threshold 0.503, calibrated on class maps",
        ("--refine", "affinity"): f"Boxes at threshold {default}",
    }.items():
        arguments = ["--output", str(tmp_path / "out"), "--overwrite", *options]
        assert cli.main(["predict", str(bundle), str(tmp_path / picture), *arguments]) == 0
        assert line in capsys.readouterr().out
        written = json.loads((tmp_path / "out/predictions.jsonl").read_text())
        assert (written["threshold"], written["is_calibrated"]) == (
            (0.2, False) if options else (0.503, True)
        )
    refined = tmp_path / "b.safetensors"
    arguments = ["--format", "safetensors", "--output", str(refined), "--refine", "affinity"]
    assert cli.main(["export", str(bundle), *arguments]) == 0
    assert f"  threshold {default}" in capsys.readouterr().out
    arguments = ["--format", "pt2", "--refine", "none"]
    assert cli.main(["export", str(refined), *arguments]) == 0
    assert "  threshold 0.503, calibrated on class maps" in capsys.readouterr().out
    assert camtrain.load(tmp_path / "b.pt2").threshold == 0.503


def test_a_network_that_refines_nothing_still_says_format_1(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    camtrain.Predictor(refining_net().set_refine("none")).save(path)
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["camtrain"])
    assert said["format_version"] == 1
    assert "refine" not in said


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("top", [None, 2])
def test_an_exported_network_gives_refined_maps_too(
    suffix: str, top: int | None, tmp_path: Path
) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    net = refining_net()
    options = ExportOptions(top=top, heatmaps=True, refine="affinity")
    done = export_network(net, tmp_path / f"model.{suffix}", options=options)
    assert done.input_hw is None  # any size
    assert "refined_maps" in options.output_names
    exported = camtrain.load(done.path)
    [here] = camtrain.Predictor(net)(PICTURE, top=2)
    [there] = exported(PICTURE, top=2)
    torch.testing.assert_close(there.heatmaps, here.heatmaps, atol=1e-3, rtol=0)
    images = torch.rand(1, 3, 40, 64)
    with torch.no_grad():
        expected = net.refined_maps(images, top=2)
    given = exported.network.class_maps(images, top=2).maps
    torch.testing.assert_close(given, expected.maps, atol=1e-4, rtol=1e-4)
    given = exported.network.display_maps(images, top=2).maps
    torch.testing.assert_close(given, expected.refined_maps, atol=1e-4, rtol=1e-3)


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_stages_of_many_channels_are_exported(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    monkeypatch.setattr(refine, "MOST_CHANNELS", 5)  # the stages have 8 and 12
    net = refining_net()
    assert net.vector_channels == 8
    for again in range(2):  # what one export has made must not disturb the next
        done = export_network(net, tmp_path / f"{again}.{suffix}")
        assert done.input_hw is None
    images = torch.rand(1, 3, 40, 64)
    with torch.no_grad():
        expected = net.refined_maps(images, top=2).refined_maps
    given = camtrain.load(done.path).network.display_maps(images, top=2).maps
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-3)


def test_tta_averages_refined_maps() -> None:
    predictor = camtrain.Predictor(refining_net())
    mirrored = torch.stack((PICTURE, PICTURE.flip(-1)))
    one, other = (p.heatmaps for p in predictor(mirrored, classes=[1], tta="flip"))
    torch.testing.assert_close(one, other.flip(-1), atol=1e-4, rtol=0)


@pytest.mark.nightly
def test_the_command_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for chosen in ("none", "affinity"):
        output = bundle.parent / f"{chosen}.pt2"
        arguments = ["--format", "pt2", "--output", str(output), "--refine", chosen]
        cli.main(["export", str(bundle), *arguments])
        assert ("refined_maps" in capsys.readouterr().out) == (chosen == "affinity")
        assert camtrain.load(output).network.refine == chosen


@pytest.mark.nightly
def test_what_does_not_fit_is_said(bundle: Path, tmp_path: Path) -> None:
    net = refining_net()
    with pytest.raises(CamtrainError, match=r"refine must be the network's own, affinity, .*none"):
        export_network(net, tmp_path / "a.pt2", options=ExportOptions(refine="none"))
    export_network(net.set_refine("none"), tmp_path / "b.pt2")
    exported, images = camtrain.load(tmp_path / "b.pt2").network, torch.rand(1, 3, 48, 40)
    assert torch.equal(exported.display_maps(images).maps, exported.class_maps(images).maps)
    with pytest.raises(CamtrainError, match="computes what it was exported with"):
        camtrain.load(tmp_path / "b.pt2", refine="affinity")
    with pytest.raises(CamtrainError, match="refine must be one of"):
        camtrain.load(bundle, refine="crf")  # type: ignore[arg-type]


def foreground_net() -> CAMNet:
    torch.manual_seed(0)
    net = refining_net().add_foreground()
    assert net.foreground is not None
    with torch.no_grad():
        net.foreground.conv.weight.normal_(std=10.0)
    return net


def test_an_export_in_the_foreground_gives_refined_maps() -> None:
    options = ExportOptions(foreground=True)
    assert options.output_names == ("logits", "maps", "refined_maps")
    assert ExportOptions(**options.to_dict()) == options
    assert ExportOptions().to_dict().keys() == {"raw", "top", "heatmaps", "precision"}


def test_a_predictor_shows_the_foreground(tmp_path: Path) -> None:
    net = foreground_net()
    predictor = camtrain.Predictor(net, threshold=0.4)
    assert predictor.description.kind_of_maps.startswith("class maps in the foreground refined")
    assert float((heatmaps(predictor) - heatmaps(camtrain.Predictor(refining_net()))).abs().max())
    predictor.save(tmp_path / "model.safetensors")
    again = camtrain.load(tmp_path / "model.safetensors")
    assert torch.equal(heatmaps(again), heatmaps(predictor))
    plain = camtrain.load(tmp_path / "model.safetensors", refine="none")
    assert plain.description.kind_of_maps == "class maps in the foreground"
    for tta in ("flip", "tencrop"):
        assert heatmaps(again, tta).isfinite().all()


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("refine_method", ["none", "affinity"])
def test_an_exported_network_has_its_foreground(
    suffix: str, refine_method: refine.Refine, tmp_path: Path
) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    net = foreground_net().set_refine(refine_method)
    done = export_network(net, tmp_path / f"model.{suffix}")
    exported, images = camtrain.load(done.path), torch.rand(1, 3, 40, 64)
    assert exported.description.foreground
    with torch.no_grad():
        expected = net.refined_maps(images)
    given = exported.network.display_maps(images).maps
    torch.testing.assert_close(given, expected.refined_maps, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(exported.network.class_maps(images).maps, expected.maps)
