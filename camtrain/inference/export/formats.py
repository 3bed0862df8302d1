"""Writing a graph as ONNX or as a torch program, with what camtrain must know beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from camtrain.errors import CamtrainValueError
from camtrain.header import METADATA_KEY
from camtrain.inference.export.extra import quiet_exporter
from camtrain.inference.export.program import Program

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu; onnxruntime 1.17 and later
_MOST_BYTES = 2**31  # of a protobuf message, and so of an ONNX file with its weights
_AXES = ("batch", None, "height", "width")


def write_onnx(program: Program, path: Path, metadata: str) -> None:
    """Write a graph of standard ONNX operators with its weights in the same file.

    Raises:
        CamtrainValueError: The exporter cannot express the network in standard operators, or in
            less than 2 GB.
    """
    import onnx

    size = sum(tensor.nbytes for tensor in program.exported.state_dict.values())
    if size >= _MOST_BYTES:
        raise CamtrainValueError(
            f"An ONNX file holds less than {_MOST_BYTES / 1e9:.1f} GB, this network has "
            f"{size / 1e9:.1f} GB; export it to pt2."
        )
    try:
        with quiet_exporter():
            made = torch.onnx.export(
                program.exported,
                dynamo=True,
                input_names=["images"],
                output_names=list(program.options.output_names),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # each network fails in its own way
        reason = " ".join(str(error.__cause__ or error).split())
        raise CamtrainValueError(
            f"The ONNX exporter of torch cannot express this network ({reason:.300}); export it "
            "to pt2."
        ) from error
    assert made is not None
    model = made.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # notes of the exporter to itself, a third of a small file
    _name_axes(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.checker.check_model(model)
    foreign = sorted(foreign_operators(model))
    if foreign:
        raise CamtrainValueError(
            f"The exporter used operators outside the standard ones, {', '.join(foreign)}; export "
            "the network to pt2."
        )
    path.write_bytes(model.SerializeToString())


def foreign_operators(model: onnx.ModelProto) -> set[str]:
    """``domain::operator`` of what is not in ONNX's standard set, in subgraphs too."""
    graphs, found = [model.graph], {f"{function.domain}::*" for function in model.functions}
    while graphs:
        for node in graphs.pop().node:
            if node.domain not in ("", "ai.onnx"):
                found.add(f"{node.domain}::{node.op_type}")
            for attribute in node.attribute:
                graphs += [attribute.g, *attribute.graphs]
    return found


def write_pt2(program: Program, path: Path, metadata: str) -> None:
    """Write a program of ``torch.export``: operators, numbers and names, and nothing pickled.

    What torch would add is left out: sample inputs (a pickle) and guards (code).
    """
    exported = program.exported
    exported._guards_code = []
    exported._example_inputs = None
    with quiet_exporter():
        torch.export.save(exported, path, extra_files={METADATA_KEY: metadata})


def _name_axes(model: onnx.ModelProto) -> None:
    """Names that people read for the axes of the input, wherever they occur."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    names = {
        dim.dim_param: name for dim, name in zip(dims, _AXES, strict=True) if dim.dim_param and name
    }
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub(lambda found: names[found[0]], dim.dim_param)
