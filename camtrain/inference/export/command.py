"""``camtrain export``: a trained network as a file for inference."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, get_args

import torch

from camtrain.arguments import VerbParser, add_backbone
from camtrain.data import IMAGE_SUFFIXES, SourceOptions, make_sources, read_image
from camtrain.data.tree import list_below
from camtrain.errors import (
    CamtrainError,
    CamtrainFileNotFoundError,
    CamtrainValueError,
    check_choice,
)
from camtrain.header import BEST_NAME, model_file
from camtrain.inference.bundle import Bundle, read_network, write_bundle
from camtrain.inference.export.check import RANDOM, Pictures, random_pictures, spread
from camtrain.inference.export.quantize import MAX_DROP
from camtrain.inference.export.write import Export, check_output, export_network
from camtrain.inference.exported import ExportOptions, ExportPrecision
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import Refine
from camtrain.thresholds import Threshold, threshold_text

Format = Literal["safetensors", "onnx", "pt2"]

_MOST_PICTURES = 8


def main(args: Sequence[str]) -> None:
    """``camtrain export CHECKPOINT --format safetensors|onnx|pt2``."""
    arguments = _parser().parse_args(args[1:])
    checkpoint = model_file(arguments.checkpoint, BEST_NAME)
    suffix = f".{arguments.format}"
    check_choice("--format", arguments.format, get_args(Format))
    output: Path = arguments.output or checkpoint.with_suffix(suffix)
    if output.suffix != suffix:
        raise CamtrainValueError(
            f"--output of --format {arguments.format} must end in {suffix}, got {str(output)!r}."
        )
    if output.absolute() == checkpoint.absolute():
        raise CamtrainValueError(f"{checkpoint} is a bundle already; give another --output.")
    check_output(output, overwrite=arguments.overwrite)
    options = ExportOptions(
        raw=arguments.raw,
        top=arguments.top,
        heatmaps=arguments.heatmaps,
        precision=arguments.precision,
    )
    if arguments.format == "safetensors" and options != ExportOptions():
        raise CamtrainValueError(
            "--raw, --top, --heatmaps and --precision change the graph, which a safetensors bundle "
            "has none of; leave them out, or choose --format onnx."
        )
    if arguments.max_drop is not None and options.precision != "int8":
        raise CamtrainValueError(
            f"--max_drop limits what --precision int8 loses, got --precision {options.precision}; "
            "leave it out."
        )
    bundle = read_network(checkpoint, backbone=arguments.backbone).with_maps(arguments.refine)
    if arguments.format == "safetensors":
        _export_bundle(bundle, output, arguments.backbone)
        return
    pictures = pictures_of(bundle, arguments.images)
    export = export_network(
        bundle.net,
        output,
        options=replace(options, refine=bundle.net.refine),
        description=bundle.description,
        pictures=pictures,
        max_drop=MAX_DROP if arguments.max_drop is None else arguments.max_drop,
        overwrite=arguments.overwrite,
    )
    print(report(export, bundle, pictures))


def pictures_of(bundle: Bundle, folder: Path | None = None) -> Pictures:
    """At most 8 pictures: of a folder, else of the data of a checkpoint, else random ones.

    Args:
        bundle: The network, whose class names are those of the labels, and its data.
        folder: Of pictures, labelled (``CLASS/*`` or ``{val,test}/CLASS/*``) or not.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist or holds no pictures.
    """
    net, settings = bundle.net, bundle.data_settings
    if folder is not None:
        with suppress(CamtrainError):  # a folder without labels will do as well
            return _labelled("folder", {"root": str(folder)}, net)
        files = list_below(folder).pictures
        if not files:
            raise CamtrainFileNotFoundError(
                f"--images must name a folder of pictures ({' '.join(IMAGE_SUFFIXES)}), got "
                f"{folder.absolute()}."
            )
        images = [read_image(files[index]) for index in spread(len(files), _MOST_PICTURES)]
        return Pictures(images, f"pictures of {folder}", files=files)
    if settings:
        with suppress(CamtrainError, OSError):  # the data may be gone by now
            return _labelled(str(settings.get("source")), settings, net)
    return Pictures(random_pictures(net), RANDOM)


def _labelled(name: str, settings: Mapping[str, Any], net: CAMNet) -> Pictures:
    """Pictures of the val split, else of test, else of train."""
    known = {field.name for field in fields(SourceOptions)}
    options = SourceOptions(
        **{key: value for key, value in settings.items() if key in known - {"class_names"}},
        class_names=net.display_names,
    )
    sources = make_sources(name, options)
    split, source = next((s, sources[s]) for s in ("val", "test", "train") if s in sources)
    images = [source.read(index).image for index in spread(len(source), _MOST_PICTURES)]
    place = settings.get("root") or f"the source {name}"
    return Pictures(images, f"pictures of {place}, {split}", source)


def report(export: Export, bundle: Bundle, pictures: Pictures) -> str:
    """Lines about the file: what it takes and gives, how it was checked, and how to use it."""
    kind = "uint8 pixels" if export.options.raw else "float32, normalized"
    size = "x".join(map(str, export.input_hw)) if export.input_hw else "any height and width"
    lower = "float16" if export.options.precision == "fp16" else "int8   "
    checks = {
        "parity ": export.parity,
        lower: export.agreement,
        "gain   ": export.quantization,
    }
    return "\n".join(
        (
            f"{export.path}: {export.path.stat().st_size / 1e6:.1f} MB",
            f"  input     images ({kind}, {size})",
            f"  outputs   {', '.join(export.options.output_names)}",
            _threshold_line(bundle),
            *(_folded(f"  {name}   {check}") for name, check in checks.items() if check),
            f"  checked   on {pictures.origin}",
            "",
            usage(export, bundle.net, bundle.description.threshold),
        )
    )


def _folded(line: str) -> str:
    """A line of figures in lines of 80 columns, the first column free."""
    return fill(line, 80, subsequent_indent=" " * 12, break_on_hyphens=False)


_AUTO = """bins = numpy.minimum(heatmap / max(heatmap.max(), 1e-30) * 256, 255).astype(int)
counts = numpy.bincount(bins.ravel(), minlength=256).astype(float)
below, sums = counts.cumsum(), (counts * numpy.arange(256)).cumsum()
products = below * (below[-1] - below)
products[products == 0] = numpy.inf
variance = (sums[-1] * below - sums * below[-1]) ** 2 / products
threshold = 0.65 * (variance.argmax() + 1) / 256"""
_BOX = """
heatmap = heatmaps[0, 0]  # of the first picture and class
{threshold}
y, x = numpy.nonzero(heatmap > threshold * heatmap.max())
print([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else "no box")"""


def usage(export: Export, net: CAMNet, threshold: Threshold) -> str:
    """A Python script that runs the file without camtrain.

    Of a file with heatmaps it also prints a box: around all that lies above the threshold.
    """
    assert net.preprocessing is not None
    height, width = export.input_hw or net.preprocessing.size
    shape = f"(1, {len(net.preprocessing.mean)}, {height}, {width})"
    outputs, path = ", ".join(export.options.output_names), _quoted(export.path)
    dtype = "uint8" if export.options.raw else "float32"
    if export.path.suffix == ".pt2":
        return f"""import torch
model = torch.export.load({path}).module()
images = torch.zeros({shape}, dtype=torch.{dtype})
{outputs} = model(images)"""
    boxes = ""
    if "heatmaps" in export.options.output_names:
        boxes = _BOX.format(threshold=_AUTO if threshold == "auto" else f"threshold = {threshold}")
    return (
        f"""import numpy, onnxruntime
session = onnxruntime.InferenceSession({path})
images = numpy.zeros({shape}, "{dtype}")
{outputs} = session.run(None, {{"images": images}})
print(logits.shape, maps.shape)"""
        + boxes
    )


def _export_bundle(bundle: Bundle, output: Path, backbone: str | None) -> None:
    """Write a bundle and read it again: every tensor must be the same."""
    write_bundle(output, bundle.net, description=bundle.description)
    reread = read_network(output, backbone=backbone).net.state_dict()
    assert all(torch.equal(reread[name], t) for name, t in bundle.net.state_dict().items())
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    print(_threshold_line(bundle))
    print("  parity    every weight is bit for bit that of the checkpoint")
    print(f'\nimport camtrain\nprediction, = camtrain.load({_quoted(output)})("picture.jpg")')


def _threshold_line(bundle: Bundle) -> str:
    """The threshold that the file brings, and where it comes from."""
    description = bundle.description
    return f"  threshold {threshold_text(description.threshold)}, {description.threshold_origin}"


def _quoted(path: Path) -> str:
    """The path as given, as Python writes a text."""
    return json.dumps(str(path), ensure_ascii=False)


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser(
        prog="camtrain export",
        description="Write a trained network as a file for inference, and check that it computes "
        "what the network computes.",
        epilog="Example: camtrain export runs/birds/checkpoints/best.ckpt --format onnx --top 5",
    )
    add = parser.add_argument
    networks = "a .ckpt of camtrain, a bundle, or the folder of a run (its best epoch)"
    add("checkpoint", type=Path, metavar="CHECKPOINT", help=networks)
    add_backbone(parser)

    add = parser.add_argument_group("the file").add_argument
    add("--format", required=True, metavar="{safetensors,onnx,pt2}", help="what is written")
    add("--output", type=Path, metavar="FILE", help="where to (default: beside the checkpoint)")
    add("--overwrite", action="store_true", help="replace an older file")

    add = parser.add_argument_group("what it computes").add_argument
    add("--raw", action="store_true", help="take uint8 RGB pixels, normalize in the graph")
    top = "maps of the N best classes of each image only (default: of all)"
    add("--top", type=int, metavar="N", help=top)
    add("--heatmaps", action="store_true", help="also give heatmaps at the size of the input")
    refine = "also give maps refined by affinity, or none (default: as the network says)"
    add("--refine", choices=get_args(Refine), help=refine)
    bits = "of backbone and neck (ONNX only): fp16, half the size; int8, a quarter (default fp32)"
    add("--precision", choices=get_args(ExportPrecision), default="fp32", help=bits)

    add = parser.add_argument_group("how it is checked").add_argument
    images = "of pictures, to check on and to calibrate int8 on (default: the val data)"
    add("--images", type=Path, metavar="FOLDER", help=images)
    drop = (
        "percentage points that int8 may lose of accuracy and of MaxBoxAcc; without labels, of "
        f"pictures of the same best class (default {MAX_DROP:g})"
    )
    add("--max_drop", type=float, metavar="POINTS", help=drop)
    return parser
