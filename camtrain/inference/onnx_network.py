"""ONNX files in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from camtrain.errors import CamtrainValueError
from camtrain.header import METADATA_KEY
from camtrain.inference.export.extra import needs_extra
from camtrain.inference.exported import ExportedNetwork
from camtrain.inference.network import Precision, find_device
from camtrain.inference.onnx_file import read_header

if TYPE_CHECKING:
    import onnxruntime


def read(
    path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> ExportedNetwork:
    """The network of an ONNX file that camtrain exported.

    The metadata are read before anything else: the graph of a file without ours never reaches the
    runtime. A graph holds operators and numbers, no code; that of a file from a stranger can still
    take any amount of memory and time.

    Args:
        path: Ends in ``.onnx``.
        device: ``cpu``, or ``cuda`` where an onnxruntime with CUDA is installed; ``auto`` is the
            better of those that are there.
        precision: Only ``fp32``: the precision of the file was chosen at its export.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: It is no ONNX file or not ours, onnxruntime is missing or refuses it, or
            there is no such device or precision.
    """
    path = Path(path)
    header = read_header(path)
    network = ExportedNetwork(path, header.metadata.get(METADATA_KEY))
    if header.domains - {"", "ai.onnx"}:
        raise CamtrainValueError(
            f"{path} uses operators of {', '.join(sorted(header.domains - {''}))}, which camtrain "
            "never exports; export it again."
        )
    refuse_precision(precision)
    session = _session(path, device)
    names = list(network.options.output_names)

    def run(images: Tensor) -> Sequence[Tensor]:
        outputs = session.run(names, {"images": images.cpu().numpy()})
        return [torch.from_numpy(output) for output in outputs]

    network.run = run
    return network


def refuse_precision(precision: Precision) -> None:
    """Refuse every precision but ``fp32``, which means that of the file."""
    if precision != "fp32":
        raise CamtrainValueError(
            f"precision of an exported network was chosen at its export, got {precision!r}; load "
            "the bundle, or export it with --precision fp16."
        )


def _session(path: Path, device: str | torch.device) -> onnxruntime.InferenceSession:
    with needs_extra("Running ONNX files"):
        import onnxruntime
    there = onnxruntime.get_available_providers()
    has_cuda = "CUDAExecutionProvider" in there and torch.cuda.is_available()
    found = torch.device("cpu") if device == "auto" and not has_cuda else find_device(device)
    if found.type == "cpu":
        providers: list[object] = ["CPUExecutionProvider"]
    elif found.type == "cuda" and has_cuda:
        providers = [("CUDAExecutionProvider", {"device_id": found.index or 0})]
    else:
        raise CamtrainValueError(
            f"device must be cpu for this onnxruntime, which has no {found.type}, got "
            f"{str(device)!r}."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # torch.set_num_threads holds here too
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions share no class of their own
        reason = " ".join(str(error).split())
        raise CamtrainValueError(
            f"onnxruntime refuses {path} ({reason:.300}); export it again."
        ) from error
