"""Writing a trained network as an ONNX or pt2 file, which is checked before it is kept."""

from __future__ import annotations

import copy
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainValueError,
    needs_extra,
    one_line,
)
from camtrain.files import check_writable, replacing
from camtrain.header import METADATA_KEY, Description
from camtrain.inference.bundle import shipped_description
from camtrain.inference.export.agreement import Agreement, measure_agreement
from camtrain.inference.export.check import (
    RANDOM,
    Parity,
    Pictures,
    measure_parity,
    random_pictures,
)
from camtrain.inference.export.graph import export_program
from camtrain.inference.export.quantize import (
    MAX_DROP,
    Quantization,
    check_loss,
    measure_gain,
    quantize_onnx,
)
from camtrain.inference.exported import (
    ExportedNetwork,
    ExportOptions,
    quiet_exporter,
    read_exported,
)
from camtrain.model.camnet import CAMNet
from camtrain.thresholds import Threshold

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu; onnxruntime 1.17 and later
_MOST_BYTES = 2**31  # of a protobuf message, and so of an ONNX file with its weights
_AXES = ("batch", None, "height", "width")


@dataclass(frozen=True)
class Export:
    """A file that was written, and how it was checked.

    Attributes:
        path: The file.
        options: What it takes and gives.
        input_hw: (H, W) of the only images it takes, in pixels; None for any size.
        parity: The difference from the network, in float32; None for float16.
        agreement: What float16 or int8 changes; None for float32.
        quantization: What int8 gains; None for the others.
    """

    path: Path
    options: ExportOptions
    input_hw: tuple[int, int] | None
    parity: Parity | None
    agreement: Agreement | None
    quantization: Quantization | None = None


def export_network(
    net: CAMNet,
    path: str | Path,
    *,
    options: ExportOptions | None = None,
    description: Description | None = None,
    pictures: Pictures | None = None,
    max_drop: float = MAX_DROP,
    overwrite: bool = False,
) -> Export:
    """Export a network as ONNX or as a torch program, and check that both compute the same.

    The file is kept only if the check passes: logits within 1e-4, maps within 1e-4 of their range,
    boxes equal unless a pixel lies that near the threshold. In float16 the change of accuracy and
    localization is measured, and only values that are not finite are refused. For int8 the float32
    file passes the check, is calibrated on the pictures, and may lose ``max_drop``.

    Args:
        net: A network that knows its preprocessing. It is put into evaluation mode.
        path: Ends in ``.onnx`` or ``.pt2``; its folder must exist.
        options: What the file takes and gives. By default normalized images in, logits and all maps
            out, and refined maps where the network refines them.
        description: Holds the thresholds and scores of the file; by default the network's own.
        pictures: To check the file on, and to calibrate int8 on; random ones by default, which
            int8 refuses.
        max_drop: What int8 may lose of accuracy and, where there are boxes, of MaxBoxAcc; without
            labels, of pictures whose best class stays the same. In percentage points.
        overwrite: Replace an older file.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist.
        CamtrainValueError: The network cannot be exported, a package is missing, the file exists
            already, its outputs lie outside the tolerance, or int8 loses more than allowed.
    """
    options, path = options or ExportOptions(refine=net.refine), Path(path)
    options = replace(options, foreground=net.foreground is not None)
    check_output(path, overwrite=overwrite)
    description = description or net.description
    _check_arguments(net, path, options)
    if not 0 <= max_drop <= 100:
        raise CamtrainValueError(
            f"max_drop must be percentage points from 0 to 100, got {max_drop:g}."
        )
    if options.precision == "int8" and (pictures is None or pictures.is_random):
        raise CamtrainValueError(
            "int8 is calibrated on pictures of the kind that the network is made for, and there "
            "are none; give --images FOLDER, or export the folder of the run, whose data exist."
        )
    if any(tensor.device.type != "cpu" for tensor in net.state_dict().values()):
        net = copy.deepcopy(net).cpu()  # the file's constants lie where the network does
    pictures = pictures or Pictures(random_pictures(net), RANDOM)
    program, input_hw = export_program(net.eval(), options)
    shipped = shipped_description(net, description, {**options.to_dict(), "input_hw": input_hw})
    needed = sum(tensor.nbytes for tensor in program.state_dict.values())
    needed //= {"fp32": 1, "fp16": 2, "int8": 4}[options.precision]
    quantization = None
    with replacing(path, needed=needed) as part:
        if options.precision == "int8":
            parity, agreement, quantization = _write_int8(
                net, program, part, shipped, options, pictures, max_drop
            )
        else:
            if path.suffix == ".onnx":
                write_onnx(program, part, shipped.to_json(), options.output_names)
            else:
                write_pt2(program, part, shipped.to_json())
            parity, agreement = _compare(net, read_exported(part), pictures, shipped.threshold)
    return Export(path, options, input_hw, parity, agreement, quantization)


def _write_int8(
    net: CAMNet,
    program: ExportedProgram,
    path: Path,
    shipped: Description,
    options: ExportOptions,
    pictures: Pictures,
    max_drop: float,
) -> tuple[Parity | None, Agreement | None, Quantization]:
    """Write a float32 file elsewhere, check it, quantize it, and measure what that changes."""
    assert net.preprocessing is not None
    assert shipped.export is not None
    with TemporaryDirectory() as folder:
        source = Path(folder) / "float32.onnx"
        in_float = replace(shipped, export={**shipped.export, "precision": "fp32"})
        write_onnx(program, source, in_float.to_json(), options.output_names)
        exported = read_exported(source)
        parity, _ = _compare(net, exported, pictures, shipped.threshold)
        count = quantize_onnx(
            source, path, net, pictures, metadata=shipped.to_json(), raw=options.raw
        )
        quantized = read_exported(path)
        _, agreement = _compare(net, quantized, pictures, shipped.threshold)
        assert agreement is not None
        check_loss(agreement, max_drop)
        return parity, agreement, measure_gain(exported, quantized, count, net.preprocessing)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that exists already, and a folder that does not exist or is read-only."""
    if not path.parent.is_dir():
        raise CamtrainFileNotFoundError(
            f"The folder of {path.absolute()} does not exist; create it first."
        )
    check_writable(path, "--output")
    if path.exists() and not overwrite:
        raise CamtrainValueError(
            f"{path} exists already; give --overwrite to replace it, or another --output."
        )


def write_onnx(
    program: ExportedProgram, path: Path, metadata: str, output_names: Sequence[str]
) -> None:
    """Write a graph of standard ONNX operators with its weights in the same file.

    Raises:
        CamtrainValueError: The exporter cannot express the network in standard operators, or in
            less than 2 GB.
    """
    import onnx

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size >= _MOST_BYTES:
        raise CamtrainValueError(
            f"An ONNX file holds less than {_MOST_BYTES / 1e9:.1f} GB, this network has "
            f"{size / 1e9:.1f} GB; export it to pt2."
        )
    try:
        with quiet_exporter():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=list(output_names),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # each network fails in its own way
        raise CamtrainValueError(
            "The ONNX exporter of torch cannot express this network "
            f"({one_line(error.__cause__ or error)}); export it to pt2."
        ) from error
    assert converted is not None
    model = converted.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # the exporter's notes, a third of a small file
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
    """``domain::operator`` of operators outside ONNX's standard set, in subgraphs too."""
    graphs = [model.graph]
    foreign = {f"{function.domain}::*" for function in model.functions}
    while graphs:
        for node in graphs.pop().node:
            if node.domain not in ("", "ai.onnx"):
                foreign.add(f"{node.domain}::{node.op_type}")
            for attribute in node.attribute:
                graphs += [attribute.g, *attribute.graphs]
    return foreign


def write_pt2(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Write a program of ``torch.export``: operators, numbers and names, and nothing pickled.

    The sample inputs (a pickle) and guards (code) that torch would add are left out.
    """
    program._guards_code = []
    program._example_inputs = None
    content = io.BytesIO()  # a full disk would end the process
    with quiet_exporter():
        torch.export.save(program, content, extra_files={METADATA_KEY: metadata})
    path.write_bytes(content.getbuffer())


def _name_axes(model: onnx.ModelProto) -> None:
    """Give the axes of the input readable names, wherever they occur."""
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
                dim.dim_param = symbol.sub(lambda match: names[match[0]], dim.dim_param)


def _check_arguments(net: CAMNet, path: Path, options: ExportOptions) -> None:
    if path.suffix == ".onnx":
        with needs_extra("Exporting to ONNX"):  # before the minute that tracing takes
            for package in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(package)
    if path.suffix not in (".onnx", ".pt2"):
        raise CamtrainValueError(
            f"An exported network is an .onnx or a .pt2 file, got {str(path)!r}."
        )
    if options.refine != net.refine:
        raise CamtrainValueError(
            f"refine must be the network's own, {net.refine}, got {options.refine}; give "
            f"ExportOptions(refine={net.refine!r}), or call net.set_refine first."
        )
    if net.preprocessing is None:
        raise CamtrainValueError(
            "The network must know its preprocessing to be exported; set net.preprocessing."
        )
    if options.precision != "fp32" and path.suffix != ".onnx":
        raise CamtrainValueError(
            f"precision {options.precision} is for ONNX files, got {str(path)!r}; export it with "
            "--format onnx."
        )


def _compare(
    net: CAMNet, exported: ExportedNetwork, pictures: Pictures, threshold: Threshold
) -> tuple[Parity | None, Agreement | None]:
    """The comparison with the network: parity in float32, else agreement."""
    try:
        if exported.options.precision != "fp32":
            return None, measure_agreement(net, exported, pictures, threshold=threshold)
        parity = measure_parity(net, exported, pictures.images, threshold=threshold)
    except CamtrainError:
        raise
    except Exception as error:  # each runtime fails in its own way
        raise CamtrainValueError(
            f"The exported network cannot be run ({one_line(error)}); no file was written, so "
            "export to safetensors, and please report the network."
        ) from error
    if parity.complaint():
        raise CamtrainValueError(
            f"The exported network does not compute what the network computes: "
            f"{parity.complaint()} ({pictures.origin}); no file was written, so export to "
            "safetensors, and please report the network."
        )
    return parity, None
