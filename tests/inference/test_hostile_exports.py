"""Files that are not ours are refused in one sentence, and nothing of them is executed."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import camtrain
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference.export.write import export_network
from camtrain.inference.exported import ExportOptions
from camtrain.inference.file_checks import check_archive, read_onnx_header

Members = dict[str, bytes]
Json = dict[str, Any]


class Payload:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        """What unpickling calls."""
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 3, neck=(), backbone_args={"width": 1})
    path = tmp_path_factory.mktemp("good") / "model.pt2"
    export_network(net, path)
    return path


def members_of(path: Path) -> Members:
    """Contents by name, without the folder that torch puts all members in."""
    with zipfile.ZipFile(path) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def written(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CamtrainValueError) as raised:
        camtrain.load(path)
    text = str(raised.value)
    assert message in text
    assert "\n" not in text
    assert len(text) < 700


def changed(member: str, change: Callable[[Any], object]) -> Callable[[Members], None]:
    """A change of the JSON of a member."""

    def apply(members: Members) -> None:
        content = json.loads(members[member])
        change(content)
        members[member] = json.dumps(content).encode()

    return apply


def program(change: Callable[[Any], object]) -> Callable[[Members], None]:
    return changed("models/model.json", change)


def first_weight(values: dict[str, Any]) -> Callable[[Members], None]:
    def change(config: Json) -> None:
        next(iter(config["config"].values())).update(values)

    return changed("data/weights/model_weights_config.json", change)


def nodes(content: Json) -> list[Json]:
    found: list[Json] = content["graph_module"]["graph"]["nodes"]
    return found


def symbol(content: Json) -> Json:
    """The first expression of a size in the graph."""
    tensors = content["graph_module"]["graph"]["tensor_values"].values()
    sizes = [size for tensor in tensors for size in tensor["sizes"]]
    found: Json = next(size["as_expr"] for size in sizes if "as_expr" in size)
    return found


def member(name: str, content: bytes) -> Callable[[Members], None]:
    return lambda members: members.update({name: content})


ATTACKS: dict[str, tuple[Callable[[Members], None], str]] = {
    "function": (
        program(lambda c: nodes(c)[0].update(target="torch.os.system")),
        "it has the target 'torch.os.system'",
    ),
    "operator": (
        program(lambda c: nodes(c)[0].update(target="_operator.methodcaller")),
        "it has the target '_operator.methodcaller'",
    ),
    "namespace": (
        program(lambda c: nodes(c)[0].update(target="torch.ops.load_library")),
        "it has the target",
    ),
    "extension": (program(lambda c: nodes(c)[0].update(target="#x:y")), "it has the target"),
    "text": (
        program(
            lambda c: nodes(c)[0]["inputs"].append(
                {"name": "filename", "arg": {"as_string": "/etc/passwd"}, "kind": 1}
            )
        ),
        "it passes the text '/etc/passwd'",
    ),
    "power": (
        program(lambda c: symbol(c).update(expr_str="9**9**9")),
        "which would take too long",
    ),
    "nested powers": (
        program(lambda c: symbol(c).update(expr_str="Pow(9,Pow(9,Integer(9)))")),
        "which would take too long",
    ),
    "power of a power": (
        program(lambda c: symbol(c).update(expr_str="Pow(Pow(9,Integer(9)),Integer(9))")),
        "which would take too long",
    ),
    "digits": (program(lambda c: symbol(c).update(expr_str="9" * 5000)), "it has the expr_str"),
    "expression": (
        program(lambda c: symbol(c).update(expr_str="__import__('os').getcwd()")),
        "it has the expr_str",
    ),
    "range": (
        program(lambda c: c["range_constraints"].update({"__import__('os')": {}})),
        "it has the expr_str",
    ),
    "guard": (
        program(lambda c: c.update(guards_code=["__import__('os').getcwd()"])),
        "it has guards, which are code",
    ),
    "name": (
        program(lambda c: nodes(c)[0].update(name="x=__import__('os')")),
        "it has the name",
    ),
    "argument": (
        program(
            lambda c: nodes(c)[0]["inputs"].append(
                {"name": "a", "arg": {"as_operator": "torch.os.system"}, "kind": 1}
            )
        ),
        "it has an argument 'as_operator'",
    ),
    "metadata of a node": (
        program(lambda c: nodes(c)[0].update(metadata={"stack_trace": "x"})),
        "its operators carry metadata",
    ),
    "container": (
        program(
            lambda c: c["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=json.dumps(
                    [1, {"type": "collections.defaultdict", "context": "x", "children_spec": []}]
                )
            )
        ),
        "its inputs are a 'collections.defaultdict'",
    ),
    "pickled weight": (first_weight({"use_pickle": True}), "it pickles the tensor"),
    "huge weight": (
        first_weight({"tensor_meta": {"sizes": [{"as_int": 10**12}], "dtype": 7, "strides": []}}),
        "is larger than what is stored of it",
    ),
    "compiled code": (member("data/aotinductor/model/a.so", b"x"), "it holds 'data/aotinductor"),
    "custom object": (member("data/constants/custom_obj_0", b"x"), "it holds 'data/constants/cus"),
    "other program": (member("models/other.json", b"{}"), "it holds 'models/other.json'"),
    "parent folder": (member("../../x", b"x"), "it holds '../../x'"),
    "no program": (lambda members: members.pop("models/model.json"), "models/model.json"),
    "no JSON": (member("models/model.json", b"]"), "Expecting value"),
    "deep JSON": (member("models/model.json", b"[" * 100_000), "is not a .pt2 that camtrain"),
    "no metadata": (lambda members: members.pop("extra/camtrain"), "was not exported by camtrain"),
    "other metadata": (member("extra/camtrain", b'{"a": 1}'), "unreadable camtrain metadata"),
    "newer": (
        changed("extra/camtrain", lambda c: c.update(format_version=99)),
        "has format version 99",
    ),
    "metadata of no names": (
        changed("extra/camtrain", lambda c: c.update(class_names=[1, 2, 3])),
        "class_names must be a list of names",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_archive_with_anything_else_in_it_is_refused(
    attack: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = ATTACKS[attack]
    members = members_of(good)
    change(members)
    path = written(tmp_path / "model.pt2", members)
    monkeypatch.setattr(torch.export, "load", lambda _: pytest.fail("it reached torch"))
    assert_refused(path, message)


def test_pickled_sample_inputs_are_never_read(good: Path, tmp_path: Path) -> None:
    """As torch.export.load would, in spite of weights_only: it tries again without."""
    made = tmp_path / "made"
    members = members_of(good)
    members["data/sample_inputs/model.pt"] = pickle.dumps(Payload(made))
    assert_refused(written(tmp_path / "model.pt2", members), "it holds pickled sample inputs")
    assert not made.exists()
    pickle.loads(members["data/sample_inputs/model.pt"])
    assert made.exists()


def test_a_zip_bomb_is_not_unpacked(good: Path, tmp_path: Path) -> None:
    members = members_of(good)
    members["data/weights/weight_999"] = bytes(2**26)
    path = written(tmp_path / "model.pt2", members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    assert_refused(path, "bytes, the file has")


def test_members_that_overlap_or_are_named_twice_are_refused(good: Path, tmp_path: Path) -> None:
    members = members_of(good)
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
        archive.writestr("other/models/model.json", members["models/model.json"])
    assert_refused(path, "named twice")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
        largest = max(archive.filelist, key=lambda info: info.file_size)
        for number in range(20):  # further names of the same bytes
            info = zipfile.ZipInfo(f"model/data/weights/weight_{900 + number}")
            info.header_offset, info.CRC = largest.header_offset, largest.CRC
            info.file_size = info.compress_size = largest.file_size
            archive.filelist.append(info)
    assert_refused(path, "bytes, the file has")


def test_a_file_that_is_rewritten_unchanged_loads(good: Path, tmp_path: Path) -> None:
    """So that it is the changes above that are refused."""
    path = written(tmp_path / "model.pt2", members_of(good))
    assert check_archive(path)
    [found] = camtrain.load(path)(torch.rand(3, 50, 60), top=1)
    [expected] = camtrain.load(good)(torch.rand(3, 50, 60), top=1)
    assert len(found.names) == len(expected.names)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    "content", [b"", b"what is this?", b"PK\x05\x06" + bytes(18), b"\xff" * 100, b"\x08" * 50]
)
def test_other_files_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(CamtrainFileNotFoundError, match="give the path of an exported"):
        camtrain.load(path)
    path.write_bytes(content)
    assert_refused(path, str(path))


def test_a_pickle_under_another_name_is_not_read(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for name in ("model.pt2", "model.onnx"):
        torch.save(Payload(made), tmp_path / name)
        assert_refused(tmp_path / name, name)
    assert not made.exists()


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def onnx_file(*metadata: tuple[str, str], domain: str = "") -> bytes:
    operator_set = field(8, field(1, domain.encode()) + b"\x10\x14")
    entries = [field(14, field(1, k.encode()) + field(2, v.encode())) for k, v in metadata]
    return b"\x08\x0a" + operator_set + field(7, b"") + b"".join(entries)


GOOD_METADATA = json.dumps(
    {
        "format_version": 1,
        "architecture": None,
        "class_names": ["a", "b"],
        "preprocessing": {},
        "task": "multiclass",
        "map_threshold": 0.2,
        "scores": {},
        "export": {"input_hw": None},
    }
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (onnx_file(), "it has no camtrain metadata"),
        (onnx_file(("author", "somebody")), "it has no camtrain metadata"),
        (onnx_file(("camtrain", "{")), "unreadable camtrain metadata (JSONDecodeError"),
        (onnx_file(("camtrain", '{"format_version": 1}')), "unreadable camtrain metadata"),
        (onnx_file(("camtrain", '{"format_version": 7}')), "has format version 7"),
        (onnx_file(("camtrain", "[" * 200_000)), "unreadable camtrain metadata"),
        (
            onnx_file(("camtrain", GOOD_METADATA.replace('"task": "multiclass"', '"task": "x"'))),
            "task must be multiclass or multilabel",
        ),
        (
            onnx_file(("camtrain", GOOD_METADATA), domain="com.evil"),
            "uses operators of com.evil, which camtrain never exports",
        ),
        (onnx_file()[:-3], "is not a readable ONNX file (a field reaches beyond its end)"),
        (onnx_file().replace(field(7, b""), b""), "is not a readable ONNX file (no graph)"),
        (field(7, b"") + b"\xff" * 20, "a number of more than ten bytes"),
        (field(7, b"") + b"\x03", "a field of unknown kind 3"),
        (onnx_file(("camtrain", " " * 2**25)), "bytes of metadata"),
    ],
)
def test_an_onnx_file_that_is_not_ours_never_reaches_the_runtime(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert_refused(path, message)


def test_a_graph_that_the_runtime_refuses_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_file(("camtrain", GOOD_METADATA)))
    assert_refused(path, "onnxruntime refuses")


def test_the_header_is_what_onnx_reads(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["x2"])], "g", [value], [])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("other", 1)]
    )
    helper.set_model_props(model, {"camtrain": "ü" * 300, "b": ""})
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    path = tmp_path / "model.onnx"
    path.write_bytes(buffer.getvalue())
    metadata, domains = read_onnx_header(path)
    assert {key: text.decode() for key, text in metadata.items()} == {
        "camtrain": "ü" * 300,
        "b": "",
    }
    assert domains == {"", "other"}


@pytest.fixture
def onnx() -> ModuleType:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    module: ModuleType = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    return module


def onnx_of(onnx: ModuleType, path: Path, *nodes: Any, initializers: Sequence[object] = ()) -> Path:
    """An ONNX file with our metadata and another graph, whose output x is both of its outputs."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in ("logits", "maps")]
    images = helper.make_tensor_value_info("images", kind, [None, 3, 8, 8])
    same = [helper.make_node("Identity", ["x"], [name]) for name in ("logits", "maps")]
    graph = helper.make_graph([*nodes, *same], "g", [images], outputs, initializer=initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    net = camtrain.create_model("camtrain/digits", 3, neck=(), backbone_args={"width": 1})
    net.preprocessing = camtrain.Preprocessing((8, 8))
    net.name_classes("abc")
    export = {**ExportOptions().to_dict(), "input_hw": None}
    text = replace(net.description, export=export).to_json()
    helper.set_model_props(model, {"camtrain": text})
    onnx.save(model, path)
    return path


def test_a_graph_that_fails_while_it_runs_is_one_sentence(onnx: ModuleType, tmp_path: Path) -> None:
    """Before: tracebacks of onnxruntime."""
    helper = onnx.helper
    sizes = helper.make_tensor("s", onnx.TensorProto.INT64, [4], [7, 7, 7, 7])
    reshape = helper.make_node("Reshape", ["images", "s"], ["x"])
    for file, message in (
        (onnx_of(onnx, tmp_path / "a.onnx", reshape, initializers=[sizes]), "fails while it runs"),
        (
            onnx_of(onnx, tmp_path / "b.onnx", helper.make_node("Relu", ["images"], ["x"])),
            "of the shape",
        ),
    ):
        predictor = camtrain.load(file)
        with pytest.raises(CamtrainValueError, match=message) as raised:
            list(predictor(torch.rand(1, 3, 8, 8)))
        assert len(str(raised.value)) < 700


def test_a_graph_with_loops_is_refused(onnx: ModuleType, tmp_path: Path) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    loop = onnx.helper.make_node("Loop", ["", ""], ["x"], body=body)
    with pytest.raises(CamtrainValueError, match="its graph has loops"):
        read_onnx_header(onnx_of(onnx, tmp_path / "a.onnx", loop))
