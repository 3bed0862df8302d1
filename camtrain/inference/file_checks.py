"""Checks of exported files before a runtime gets them: nothing of a file is executed here.

``torch.export.load`` is not made for files from strangers (torch 2.15): it unpickles sample inputs,
custom objects and some tensors, loads compiled libraries, compiles guards, evaluates expressions,
and calls whatever function of torch, math or operator a node names. So it gets a ``.pt2`` archive
only after this check, which knows what may be there and refuses everything else.

onnxruntime computes the constant part of a graph when it opens a file, before it can be asked for
the metadata (version 1.32: 4.6 s and 2.7 GB for a graph of 5 kB). So metadata and operator sets of
an ONNX file are read here, by the layout of ``ModelProto`` in onnx.proto3.
"""

from __future__ import annotations

import ast
import json
import math
import mmap
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, one_line
from camtrain.files import check_stored
from camtrain.header import METADATA_KEY, MOST_METADATA

# What zipfile, json and lookups raise for damaged files; UnicodeDecodeError is a ValueError.
_DAMAGES = (
    *(zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(NotImplementedError, RuntimeError, OSError, EOFError, RecursionError),
)

# Fields of ModelProto, StringStringEntryProto and OperatorSetIdProto; wire types of protobuf.
_GRAPH, _OPERATOR_SET, _METADATA, _FUNCTIONS = 7, 8, 14, 25
_NODE, _OPERATOR_NAME = 1, 4  # of a graph, and of its node
_LOOPS = (b"Loop", b"Scan", b"SequenceMap")  # which need not end
_KEY, _VALUE, _DOMAIN = 1, 2, 1
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5

_MOST_JSON = 2**27  # bytes; the graph of a network of 1,000 layers takes 2 million
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_CONFIGS = (f"{_WEIGHTS}model_weights_config.json", f"{_CONSTANTS}model_constants_config.json")
_PROGRAM, _SAMPLES, _EXTRA = "models/model.json", "data/sample_inputs/model.pt", "extra/"
_MEMBERS = {
    *("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"),
    *("version", "data/version", *_CONFIGS, _PROGRAM, _SAMPLES, f"{_EXTRA}{METADATA_KEY}"),
}
_TENSOR_MEMBER = re.compile(rf"{_WEIGHTS}weight_\d+|{_CONSTANTS}tensor_\d+")

_NAME = re.compile(r"[\w.-]*")  # layers may be called block1-0; nothing can be called without ()
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_(max|min|not|float|int|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_SYMBOL = r"Symbol\('[a-z]+\d+'(, (positive|integer|nonnegative)=True)*\)|[su]\d+"
_FUNCTION = (
    r"(Mul|Add|Pow|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|FloatTrueDiv|Max|Min|Integer"
    r"|Rational|ToFloat|TruncToInt|RoundToInt|FloorToInt|CeilToInt|floor|ceiling|OpaqueUnaryFn_sqrt"
    r"|Eq|Ne|Equality|Unequality|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|And|Or|Not)"
)
_EXPRESSION = re.compile(
    rf"({_SYMBOL}|{_FUNCTION}(?=\()|\d{{1,19}}(?!\d)(\.\d+)?|[-+*/(), ]|True|False)*"
)
_LONGEST_EXPRESSION, _HIGHEST_POWER = 20_000, 64
_TEXT_ARGUMENTS = {"cpu", "none", "tanh", "floor", "trunc", "constant", "reflect", "ij", "nearest"}
_EQUATION = re.compile(r"[A-Za-z, ]+->[A-Za-z]*")
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_ARGUMENTS = {
    f"as_{kind}"
    for kind in (
        *("none", "name", "expr", "tensor", "tensors", "int", "ints", "float", "floats", "string"),
        *("bool", "bools", "sym_int", "sym_ints", "sym_float", "sym_floats", "sym_bool"),
        *("sym_bools", "scalar_type", "memory_format", "layout", "device", "optional_tensor"),
        *("optional_tensors", "nested_tensors", "int_lists"),
    )
}


def check_archive(path: Path) -> bytes | None:
    """The metadata of a ``.pt2`` archive that holds nothing but operators, numbers and names.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: It is no such archive; nothing of it was executed.
    """
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"No exported program at {path.absolute()}; give the path of an exported .pt2."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members_of(archive, path.stat().st_size)
            extra = members.get(f"{_EXTRA}{METADATA_KEY}")
            if extra is None:
                return None
            _check_program(json.loads(_read_member(archive, members[_PROGRAM], _MOST_JSON)))
            for config in _CONFIGS:
                content = json.loads(_read_member(archive, members[config], _MOST_JSON))
                _check_tensors(content, members)
            return _read_member(archive, extra, MOST_METADATA)
    except _DAMAGES as error:
        reason = one_line(error, with_type=False)
        raise CamtrainValueError(
            f"{path} is not a .pt2 that camtrain exported ({reason}), and is not loaded; "
            "export it again."
        ) from error


def _members_of(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of the archive by their name below its only folder, uncompressed."""
    infos = archive.infolist()
    check_stored(archive, size)
    members = {info.filename.partition("/")[2]: info for info in infos}
    folders = {info.filename.partition("/")[0] for info in infos}
    if len(members) != len(infos) or len(folders) != 1 or archive.comment:
        raise ValueError("its members are named twice, or lie in several folders")
    for name, info in members.items():
        if name not in _MEMBERS and not _TENSOR_MEMBER.fullmatch(name):
            raise ValueError(f"it holds {name!r:.100}")
        if name == _SAMPLES and info.file_size:
            raise ValueError("it holds pickled sample inputs")
    return members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    if info.file_size > most:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, the most is {most}")
    return archive.read(info)


def _check_tensors(config: dict[str, Any], members: dict[str, zipfile.ZipInfo]) -> None:
    """Refuse pickled tensors, and tensors larger than the numbers stored for them."""
    _check_values(config)
    for name, tensor in config["config"].items():
        if tensor["use_pickle"] is not False:
            raise ValueError(f"it pickles the tensor {name!r:.100}")
        folder = _WEIGHTS if tensor["path_name"].startswith("weight_") else _CONSTANTS
        sides = [side["as_int"] for side in tensor["tensor_meta"]["sizes"]]
        if math.prod(sides) > members[folder + tensor["path_name"]].file_size:
            raise ValueError(f"the tensor {name!r:.100} is larger than what is stored of it")


def _check_program(program: dict[str, Any]) -> None:
    """Refuse a graph of other than torch's own operators on tensors and sizes, and guards."""
    if program.pop("guards_code", []):
        raise ValueError("it has guards, which are code")
    for expression in program.pop("range_constraints"):
        _check_text("expr_str", expression)
    graph_module = program["graph_module"]
    for node in graph_module["graph"]["nodes"]:
        if node.pop("metadata"):
            raise ValueError("its operators carry metadata")
        words = [
            value["arg"].pop("as_string") for value in node["inputs"] if "as_string" in value["arg"]
        ]
        is_einsum = node["target"] == "torch.ops.aten.einsum.default"
        for word in words:
            if word not in _TEXT_ARGUMENTS and not (is_einsum and _EQUATION.fullmatch(word)):
                raise ValueError(f"it passes the text {word!r:.100} to {node['target']!r:.100}")
    _check_values(program)


def _check_values(value: object, key: str = "") -> None:
    """Refuse names, texts and arguments that camtrain never writes, at any depth."""
    if isinstance(value, dict):
        for name, inside in value.items():
            _check_text("", name)
            if name.startswith("as_") and name not in _ARGUMENTS:
                raise ValueError(f"it has an argument {name!r:.100}")
            _check_values(inside, name)
    elif isinstance(value, list):
        for inside in value:
            _check_values(inside, key)
    elif isinstance(value, str):
        _check_text(key, value)


def _check_text(key: str, text: str) -> None:
    if key in ("in_spec", "out_spec"):
        _check_spec(json.loads(text)[1])
        return
    allowed = {
        "target": _OPERATOR,
        "expr_str": _EXPRESSION,
        "torch_version": re.compile(r"[\w.+]*"),
    }
    if not allowed.get(key, _NAME).fullmatch(text):
        raise ValueError(f"it has the {key or 'name'} {text!r:.100}")
    if key == "expr_str" and ("Pow" in text or "**" in text or len(text) > _LONGEST_EXPRESSION):
        power = _highest_power(ast.parse(text, mode="eval"))
        if power > _HIGHEST_POWER or len(text) > _LONGEST_EXPRESSION:
            raise ValueError(f"it has the expr_str {text!r:.100}, which would take too long")


def _highest_power(node: ast.AST) -> int:
    """The power to which an expression raises a number of it; raises unless it is a whole number.

    Example:
        >>> _highest_power(ast.parse("Pow(2, Integer(3)) ** 4"))
        12
    """
    inside = max(map(_highest_power, ast.iter_child_nodes(node)), default=1)
    exponent = None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        exponent = node.right
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Pow":
        exponent = node.args[1]
    if exponent is None:
        return inside
    number = re.fullmatch(r"(Integer\()?-?(\d{1,2})\)?", ast.unparse(exponent))
    return inside * int(number[2]) if number else _HIGHEST_POWER + 1


def _check_spec(spec: dict[str, Any]) -> None:
    """Refuse inputs or outputs that are not nested in tuples, lists and dicts of plain keys."""
    keys = "null" if spec["context"] is None else str(spec["context"])
    if spec["type"] not in _CONTAINERS or not re.fullmatch(r"null|\[[\w\", ]*\]", keys):
        raise ValueError(f"its inputs are a {spec['type']!r:.100}")
    for inside in spec["children_spec"]:
        _check_spec(inside)


def read_onnx_header(path: Path) -> tuple[dict[str, bytes], set[str]]:
    """The metadata of an ONNX file by key, and the domains of its operators; "" is the standard.

    Of the graph only the names of its operators are read.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: It is no ONNX file, or its graph has loops.
    """
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"No ONNX file at {path.absolute()}; give the path of an exported .onnx."
        )
    metadata: dict[str, bytes] = {}
    domains: set[str] = set()
    has_graph = False
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, start, end in _fields(data, 0, len(data)):
                has_graph = has_graph or number == _GRAPH
                if number == _GRAPH:
                    _check_operators(data, start, end)
                if number == _FUNCTIONS:
                    raise ValueError("it has functions of its own")
                if number in (_METADATA, _OPERATOR_SET):
                    if end - start > MOST_METADATA:
                        raise ValueError(f"{end - start} bytes of metadata")
                    fields = {n: data[a:b] for n, a, b in _fields(data, start, end)}
                    if number == _METADATA:
                        metadata[fields[_KEY].decode()] = fields.get(_VALUE, b"")
                    else:
                        domains.add(fields.get(_DOMAIN, b"").decode())
        if not has_graph:
            raise ValueError("no graph")
    except (ValueError, IndexError, KeyError) as error:
        raise CamtrainValueError(
            f"{path} is not a readable ONNX file ({error}); export it again."
        ) from error
    return metadata, domains


def _check_operators(data: mmap.mmap, start: int, end: int) -> None:
    for number, first, last in _fields(data, start, end):
        names = _fields(data, first, last) if number == _NODE else ()
        if any(n == _OPERATOR_NAME and data[a:b] in _LOOPS for n, a, b in names):
            raise ValueError("its graph has loops, which camtrain never exports")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message, see protobuf.dev/programming-guides."""
    while start < end:
        tag, start = _varint(data, start)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, start = _varint(data, start)
        elif kind == _VARINT:
            length = _varint(data, start)[1] - start
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of unknown kind {kind}")
        if start + length > end:
            raise ValueError("a field reaches beyond its end")
        yield number, start, start + length
        start += length


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """A number of 7 bits per byte, least first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("a number of more than ten bytes")
