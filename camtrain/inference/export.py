"""``camtrain export``: a trained network in a file that runs without camtrain, checked as made."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from uuid import uuid4

import torch

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.inference import onnx_network, pt2_network
from camtrain.inference.agreement import Agreement, measure_agreement
from camtrain.inference.bundle import (
    DEFAULT_THRESHOLD,
    Bundle,
    read_bundle,
    read_checkpoint,
    write_bundle,
)
from camtrain.inference.export_module import ExportOptions, ExportPrecision
from camtrain.inference.export_pictures import Pictures, pictures_of, random_pictures
from camtrain.inference.export_program import Program, export_program
from camtrain.inference.export_write import write_onnx, write_pt2
from camtrain.inference.exported import ExportedNetwork, metadata_text
from camtrain.inference.network import Loaded
from camtrain.inference.parity import Parity, measure_parity
from camtrain.localization.boxes import check_threshold
from camtrain.model.camnet import CAMNet

Format = Literal["safetensors", "onnx", "pt2"]


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
            out.
        threshold: Map threshold of the boxes, in [0, 1).
        scores: What these weights reached, by logged name.
        pictures: To check it on; random ones by default.
        overwrite: Replace an older file.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist.
        CamtrainValueError: The network cannot be exported, a package is missing, the file is there
            already, or what it computes lies outside the tolerance.
    """
    options = options or ExportOptions()
    path = Path(path)
    check_output(path, overwrite=overwrite)
    check_threshold(threshold)
    suffixes = {".onnx": (write_onnx, onnx_network.read), ".pt2": (write_pt2, pt2_network.read)}
    if path.suffix not in suffixes:
        raise CamtrainValueError(
            f"An exported network is an .onnx or a .pt2 file, got {str(path)!r}."
        )
    if net.preprocessing is None:
        raise CamtrainValueError(
            "The network must know its preprocessing to be exported; set net.preprocessing."
        )
    if options.precision == "fp16" and path.suffix != ".onnx":
        raise CamtrainValueError(
            f"precision fp16 is for ONNX files, got {str(path)!r}; export it with --format onnx."
        )
    write, read = suffixes[path.suffix]
    net = net.eval()
    pictures = pictures or Pictures(random_pictures(net), "random pictures")
    program = export_program(net, options)
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}.part{path.suffix}")
    try:
        write(program, temporary, metadata_text(net, program, threshold=threshold, scores=scores))
        result = _checked(net, program, path, read(temporary), pictures)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return result


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
    net: CAMNet, program: Program, path: Path, loaded: Loaded, pictures: Pictures
) -> Export:
    """What was written, after a comparison with the network, on the CPU.

    Raises:
        CamtrainValueError: The difference lies outside the tolerance.
    """
    assert isinstance(loaded.network, ExportedNetwork)
    on_cpu = net.cpu()
    parity = agreement = None
    if program.options.precision == "fp16":
        agreement = measure_agreement(on_cpu, loaded.network, pictures, threshold=loaded.threshold)
    else:
        parity = measure_parity(on_cpu, loaded.network, pictures.images, threshold=loaded.threshold)
        if parity.complaint():
            raise CamtrainValueError(
                f"The exported network does not compute what the network computes: "
                f"{parity.complaint()} ({pictures.origin}); no file was written, so export to "
                "safetensors, and please report the network."
            )
    return Export(path, program.options, program.input_hw, parity, agreement)


def main(args: Sequence[str]) -> None:
    """``camtrain export CHECKPOINT --format safetensors|onnx|pt2``."""
    given = _parser().parse_args(args[1:])
    checkpoint: Path = given.checkpoint
    if given.format not in get_args(Format):
        raise CamtrainValueError(
            f"--format must be one of {', '.join(get_args(Format))}, got {given.format!r}."
        )
    output: Path = given.output or checkpoint.with_suffix(f".{given.format}")
    if output.suffix != f".{given.format}":
        raise CamtrainValueError(
            f"--output of --format {given.format} must end in .{given.format}, got {str(output)!r}."
        )
    if output.absolute() == checkpoint.absolute():
        raise CamtrainValueError(f"{checkpoint} is a bundle already; give another --output.")
    check_output(output, overwrite=given.overwrite)
    options = ExportOptions(given.raw, given.top, given.heatmaps, given.precision)
    if given.format == "safetensors" and options != ExportOptions():
        raise CamtrainValueError(
            "--raw, --top, --heatmaps and --precision change the graph, which a safetensors bundle "
            "has none of; leave them out, or choose --format onnx."
        )
    bundle = (
        read_checkpoint(checkpoint) if checkpoint.suffix == ".ckpt" else read_bundle(checkpoint)
    )
    if given.format == "safetensors":
        _export_bundle(bundle, output)
        return
    pictures = pictures_of(bundle.net, folder=given.images, checkpoint=checkpoint)
    done = export_network(
        bundle.net,
        output,
        options=options,
        threshold=bundle.threshold,
        scores=bundle.scores,
        pictures=pictures,
        overwrite=given.overwrite,
    )
    print(report(done, bundle.net, pictures))


def report(done: Export, net: CAMNet, pictures: Pictures) -> str:
    """What was written, how it was checked, and how to use it."""
    kind = "uint8 pixels" if done.options.raw else "float32, normalized"
    size = "x".join(map(str, done.input_hw)) if done.input_hw else "any height and width"
    check = f"  parity    {done.parity}" if done.parity else f"  float16   {done.agreement}"
    return "\n".join(
        (
            f"{done.path}: {done.path.stat().st_size / 1e6:.1f} MB",
            f"  input     images ({kind}, {size})",
            f"  outputs   {', '.join(done.options.output_names)}",
            f"{check} ({pictures.origin})",
            "",
            usage(done, net),
        )
    )


def usage(done: Export, net: CAMNet) -> str:
    """Lines of Python that run the file without camtrain."""
    assert net.preprocessing is not None
    height, width = done.input_hw or net.preprocessing.size
    shape = f"(1, {len(net.preprocessing.mean)}, {height}, {width})"
    outputs = ", ".join(done.options.output_names)
    if done.path.suffix == ".pt2":
        dtype = "torch.uint8" if done.options.raw else "torch.float32"
        return "\n".join(
            (
                "import torch",
                f'model = torch.export.load("{done.path.name}").module()',
                f"images = torch.zeros({shape}, dtype={dtype})",
                f"{outputs} = model(images)",
            )
        )
    dtype = "uint8" if done.options.raw else "float32"
    return "\n".join(
        (
            "import numpy, onnxruntime",
            f'session = onnxruntime.InferenceSession("{done.path.name}")',
            f'images = numpy.zeros({shape}, "{dtype}")',
            f'{outputs} = session.run(None, {{"images": images}})',
            "print(logits.shape, maps.shape)",
        )
    )


def _export_bundle(bundle: Bundle, output: Path) -> None:
    """Write a bundle and read it again: every tensor and every logit must be the same."""
    write_bundle(output, bundle.net, threshold=bundle.threshold, scores=bundle.scores)
    again = read_bundle(output).net.state_dict()
    same = all(torch.equal(again[name], t) for name, t in bundle.net.state_dict().items())
    assert same
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    print("  parity    every weight is bit for bit that of the checkpoint")
    print(f'\nimport camtrain\nprediction, = camtrain.load("{output.name}")("picture.jpg")')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="camtrain export",
        description="Write a trained network as a file for inference, and check that it computes "
        "what the network computes.",
        epilog="Example: camtrain export runs/birds/checkpoints/best.ckpt --format onnx --top 5",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a .ckpt of camtrain, or a bundle")
    add("--format", required=True, metavar="{safetensors,onnx,pt2}", help="of the file")
    add("--output", type=Path, help="the file; by default beside the checkpoint")
    add("--overwrite", action="store_true", help="replace an older file")
    add("--raw", action="store_true", help="take uint8 RGB pixels, normalize in the graph")
    add("--top", type=int, help="maps of the best classes of each image only; default: all")
    add("--heatmaps", action="store_true", help="also give heatmaps at the size of the input")
    add(
        "--precision",
        choices=get_args(ExportPrecision),
        default="fp32",
        help="fp16 (ONNX only): backbone and neck in float16, half the size",
    )
    add("--images", type=Path, help="folder of pictures to check on; default: the val data")
    return parser
