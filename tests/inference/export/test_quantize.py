"""A file in 8 bits: what it is made of, what it keeps, and when there is none."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import camtrain
from camtrain import CAMNet, Preprocessing, cli
from camtrain.errors import CamtrainValueError
from camtrain.inference.bundle import read_network
from camtrain.inference.export.agreement import Agreement
from camtrain.inference.export.check import Pictures
from camtrain.inference.export.quantize import check_loss, trunk_nodes
from camtrain.inference.export.write import Export, export_network
from camtrain.inference.exported import ExportOptions
from camtrain.maps import PoolName
from tests.conftest import everyday

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

INT8 = ExportOptions(precision="int8")


def noise(count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, 3, 50, 44), dtype=torch.uint8, generator=generator))


def small_net(pool: PoolName = "avg") -> CAMNet:
    torch.manual_seed(0)
    net = camtrain.create_model(
        "camtrain/digits", 5, neck=(16,), pool=pool, backbone_args={"width": 8}
    )
    net.preprocessing = Preprocessing((48, 40))
    net.name_classes(list("abcde"))
    with torch.no_grad():
        net(torch.randn(4, 3, 48, 40))
    return net.eval()


def export(path: Path, *, pool: PoolName = "avg", **options: Any) -> Export:
    return export_network(
        small_net(pool),
        path,
        options=ExportOptions(precision="int8", **options),
        pictures=Pictures(noise(), "noise"),
        max_drop=100,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(tmp_path_factory.mktemp("int8") / "model.onnx")


def test_the_trunk_is_in_int8_and_the_head_in_float32(exported: Export) -> None:
    model = onnx.load(exported.path)
    assert {domain.domain for domain in model.opset_import} == {""}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["net.head.weight"] == onnx.TensorProto.FLOAT
    weights = [name for name in types if name.endswith("_quantized") and "weight" in name]
    assert {types[name] for name in weights if "bias" not in name} == {onnx.TensorProto.INT8}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    of_trunk = [n for n in convolutions if any("weight_DequantizeLinear" in i for i in n.input)]
    assert len(of_trunk) == len(convolutions) - 1  # the last makes the class maps
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name in weights:
            values = onnx.numpy_helper.to_array(tensor).astype(int)
            assert abs(values).max() <= 64  # 7 bits: no sum of two products overflows 16


@pytest.mark.parametrize(
    ("pool", "top"),
    everyday(itertools.product(("avg", "lse", "gmp"), (None, 2)), ("avg", 2), ("lse", None)),
)
def test_what_is_quantized_is_the_trunk(pool: PoolName, top: int | None, tmp_path: Path) -> None:
    options = ExportOptions(top=top)
    net = small_net(pool)
    model = onnx.load(export_network(net, tmp_path / "a.onnx", options=options).path)
    chosen = trunk_nodes(model, net.head.weight)
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert [kinds[name] for name in chosen].count("Conv") == 5  # four and the neck
    assert not any(kinds[name] in ("Gemm", "MatMul") for name in chosen)


def test_the_law_of_logits_and_maps_holds_in_the_file(exported: Export) -> None:
    """Pool, head and maps are float32, of the same features."""
    network, net = camtrain.load(exported.path).network, small_net()
    images = torch.randn(2, 3, 57, 40, generator=torch.Generator().manual_seed(1))
    output = network.class_maps(images)
    bias = net.head.bias.detach()
    torch.testing.assert_close(output.maps.mean((2, 3)) + bias, output.logits, rtol=0, atol=1e-4)


def test_the_figures_are_those_of_the_files(exported: Export, tmp_path: Path) -> None:
    assert exported.parity is not None
    assert exported.parity.complaint() is None
    agreement, gain = exported.agreement, exported.quantization
    assert agreement is not None
    assert gain is not None
    assert agreement.pictures == gain.pictures == 12
    assert 0.9 < agreement.correlation < 1
    assert gain.megabytes[1] == exported.path.stat().st_size / 1e6 < gain.megabytes[0]
    assert all(time > 0 for time in gain.milliseconds)
    predictor, reference = camtrain.load(exported.path), camtrain.Predictor(small_net())
    same = [
        found.classes[0] == expected.classes[0]
        for found, expected in zip(predictor(noise()), reference(noise()), strict=True)
    ]
    assert agreement.same_class == sum(same) / 12


def test_raw_pixels_are_calibrated_as_such(tmp_path: Path) -> None:
    done = export(tmp_path / "a.onnx", raw=True, top=2, heatmaps=True)
    assert done.agreement is not None
    assert done.agreement.correlation > 0.9
    session = onnxruntime.InferenceSession(str(done.path))
    pixels = torch.stack(noise(2)).numpy()
    logits, maps, classes, heat = session.run(None, {"images": pixels})
    assert logits.shape == (2, 5)
    assert maps.shape[:2] == classes.shape == (2, 2)
    assert heat.shape == (2, 2, 50, 44)


@pytest.mark.parametrize(
    ("max_drop", "message"),
    [
        (24.0, "loses 25.00 percentage points of MaxBoxAcc on 8 pictures, more than max_drop=24"),
        (25.0, None),
    ],
)
def test_a_loss_beyond_the_limit_is_one_sentence(max_drop: float, message: str | None) -> None:
    scores = {"accuracy": (0.8, 0.78), "MaxBoxAcc": (0.8, 0.55)}
    agreement = Agreement(8, 0.1, 1.0, 1.0, 0.9, scores)
    if message is None:
        check_loss(agreement, max_drop)
        return
    with pytest.raises(CamtrainValueError, match=re.escape(message)) as raised:
        check_loss(agreement, max_drop)
    assert "no file was written, so allow a larger --max_drop" in str(raised.value)


def test_the_verb_calibrates_on_the_val_split_and_reports(
    fitted: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fitted()
    capsys.readouterr()  # of the training
    path = run / "model.onnx"
    arguments = ["export", str(run), "--format", "onnx", "--precision", "int8", "--output"]
    assert cli.main([*arguments, str(path), "--max_drop", "100"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line for line in out.splitlines() if len(line) > 80 and "/" not in line] == []
    text = " ".join(out.split())
    scores = read_network(run / "model.safetensors").description.scores
    accuracy, max_box_acc = (100 * scores[f"val/{name}"] for name in ("acc1", "max_box_acc"))
    assert f"accuracy {accuracy:.2f}% -> " in text  # as validation measured them
    assert f"MaxBoxAcc {max_box_acc:.2f}% -> " in text
    assert "int8 8 pictures: same best class" in text
    assert "correlation of maps 0.9" in text or "correlation of maps 1.0" in text
    assert "calibrated on 8 pictures" in text
    assert "photographs, val" in text
    [prediction] = camtrain.load(path)(torch.stack(noise(1))[0])
    assert prediction.heatmaps.shape[1:] == (50, 44)
    # And one that loses everything leaves the older file.
    before = path.read_bytes()
    monkeypatch.setattr(Agreement, "losses", lambda self: {"accuracy": 3.0})
    assert cli.main([*arguments, str(path), "--overwrite"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "In int8 the network loses 3.00 percentage points of accuracy on 8 pictures" in err
    assert err.count("\n") == 1
    assert path.read_bytes() == before
    assert [file.name for file in run.iterdir() if "part" in file.name] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": INT8}, "int8 is calibrated on pictures of the kind"),
        ({"options": INT8, "max_drop": -1.0}, "max_drop must be percentage points from 0 to 100"),
        ({"options": INT8, "max_drop": float("nan")}, "max_drop must be percentage points"),
    ],
)
def test_what_cannot_be_calibrated_is_one_sentence(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        export_network(small_net(), tmp_path / "a.onnx", **options)
    with pytest.raises(CamtrainValueError, match="precision int8 is for ONNX files"):
        export_network(small_net(), tmp_path / "a.pt2", options=INT8)
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "model.safetensors"
    camtrain.Predictor(small_net()).save(bundle)
    assert cli.main(["export", str(bundle), "--format", "onnx", "--precision", "int8"]) == 2
    assert "give --images FOLDER, or export the folder of the run" in capsys.readouterr().err
    assert cli.main(["export", str(bundle), "--format", "onnx", "--max_drop", "1"]) == 2
    assert "--max_drop limits what --precision int8 loses" in capsys.readouterr().err
