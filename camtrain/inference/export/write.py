"""A trained network in a file that runs without camtrain, checked before it is kept."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from camtrain.files import replacing
from camtrain.header import DEFAULT_THRESHOLD, check_threshold
from camtrain.inference import onnx_network, pt2_network
from camtrain.inference.export.agreement import Agreement, measure_agreement
from camtrain.inference.export.check import Parity, measure_parity
from camtrain.inference.export.extra import needs_extra
from camtrain.inference.export.formats import write_onnx, write_pt2
from camtrain.inference.export.graph import ExportOptions
from camtrain.inference.export.pictures import Pictures, random_pictures
from camtrain.inference.export.program import Program, export_program
from camtrain.inference.exported import ExportedNetwork, export_description
from camtrain.model.camnet import CAMNet

_FORMATS = {
    ".onnx": (write_onnx, onnx_network.read),
    ".pt2": (write_pt2, pt2_network.read),
}


@dataclass(frozen=True)
class Export:
    """A file that was written, and how it was checked.

    Attributes:
        path: The file.
        options: What it takes and gives.
        input_hw: (H, W) of the only images it takes, in pixels; None for any size.
        parity: How far it is from the network, in float32; None for float16.
        agreement: What float16 changes; None for float32.
    """

    path: Path
    options: ExportOptions
    input_hw: tuple[int, int] | None
    parity: Parity | None
    agreement: Agreement | None


def export_network(
    net: CAMNet,
    path: str | Path,
    *,
    options: ExportOptions | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    scores: Mapping[str, float] | None = None,
    pictures: Pictures | None = None,
    overwrite: bool = False,
) -> Export:
    """Export a network as ONNX or as a torch program, and check that both compute the same.

    The file is there only if the check passes: logits within 1e-4, maps within 1e-4 of their range,
    boxes equal unless a pixel lies that near the threshold. In float16 it is the change of accuracy
    and localization that is measured, and nothing is refused but what is not finite.

    Args:
        net: A network that knows its preprocessing; it is left as it is, but in evaluation mode.
        path: Ends in ``.onnx`` or ``.pt2``; its folder must exist.
        options: What the file takes and gives; by default normalized images in, logits and all maps
            out, and refined maps where the network refines them.
        threshold: Map threshold of the boxes, in [0, 1).
        scores: What these weights reached, by logged name.
        pictures: To check it on; random ones by default.
        overwrite: Replace an older file.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist.
        CamtrainValueError: The network cannot be exported, a package is missing, the file is there
            already, or what it computes lies outside the tolerance.
    """
    options, path = options or ExportOptions(refine=net.refine), Path(path)
    check_output(path, overwrite=overwrite)
    _check_arguments(net, path, options, threshold)
    write, read = _FORMATS[path.suffix]
    net = net.eval()
    pictures = pictures or Pictures(random_pictures(net), "random pictures")
    program = export_program(net, options)
    description = export_description(net, program, threshold=threshold, scores=scores)
    with replacing(path) as part:
        write(program, part, description.to_json())
        return _checked(net, program, path, read(part), pictures)


def _check_arguments(net: CAMNet, path: Path, options: ExportOptions, threshold: float) -> None:
    if path.suffix == ".onnx":
        with needs_extra("Exporting to ONNX"):  # before the minute that tracing takes
            for package in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(package)
    check_threshold(threshold)
    if path.suffix not in _FORMATS:
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
    if options.precision == "fp16" and path.suffix != ".onnx":
        raise CamtrainValueError(
            f"precision fp16 is for ONNX files, got {str(path)!r}; export it with --format onnx."
        )


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there already, and a folder that is not.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist.
        CamtrainValueError: The file exists.
    """
    if not path.parent.is_dir():
        raise CamtrainFileNotFoundError(
            f"The folder of {path.absolute()} does not exist; create it first."
        )
    if path.exists() and not overwrite:
        raise CamtrainValueError(
            f"{path} exists already; give --overwrite to replace it, or another --output."
        )


def _checked(
    net: CAMNet, program: Program, path: Path, exported: ExportedNetwork, pictures: Pictures
) -> Export:
    """What was written, after a comparison with the network, on the CPU.

    Raises:
        CamtrainValueError: The difference lies outside the tolerance.
    """
    is_on_cpu = all(tensor.device.type == "cpu" for tensor in net.state_dict().values())
    threshold = exported.description.threshold
    on_cpu = net if is_on_cpu else copy.deepcopy(net).cpu()
    try:
        if program.options.precision == "fp16":
            agreement = measure_agreement(on_cpu, exported, pictures, threshold=threshold)
            return Export(path, program.options, program.input_hw, None, agreement)
        parity = measure_parity(on_cpu, exported, pictures.images, threshold=threshold)
    except CamtrainError:
        raise
    except Exception as error:  # each runtime fails in its own way
        reason = " ".join(str(error).split())
        raise CamtrainValueError(
            f"The exported network cannot be run ({reason:.300}); no file was written, so export "
            "to safetensors, and please report the network."
        ) from error
    if parity.complaint():
        raise CamtrainValueError(
            f"The exported network does not compute what the network computes: "
            f"{parity.complaint()} ({pictures.origin}); no file was written, so export to "
            "safetensors, and please report the network."
        )
    return Export(path, program.options, program.input_hw, parity, None)
