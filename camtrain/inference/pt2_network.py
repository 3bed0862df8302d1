"""Exported programs, ``.pt2``, run by torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from camtrain.errors import CamtrainValueError
from camtrain.inference.export.extra import quiet_exporter
from camtrain.inference.exported import ExportedNetwork
from camtrain.inference.network import Precision, find_device
from camtrain.inference.onnx_network import refuse_precision
from camtrain.inference.pt2_check import check_archive


def read(
    path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> ExportedNetwork:
    """The network of an exported program that camtrain wrote.

    ``torch.export.load`` runs only after ``check_archive`` has found nothing in the file but
    torch's own operators, numbers and names. What remains: a file made for it can compute anything
    these operators can, take any amount of memory and time when pictures are predicted, and reach
    the errors of torch's own readers of zip archives and graphs. Files of strangers are better
    asked for as ``.safetensors``.

    Args:
        path: Ends in ``.pt2``.
        device: See ``TorchNetwork``.
        precision: Only ``fp32``.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: It is no archive that camtrain wrote, or of a newer format version, or
            there is no such device or precision.
    """
    path = Path(path)
    network = ExportedNetwork(path, check_archive(path))
    refuse_precision(precision)
    found = find_device(device)
    module = _module(path, found)

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode():
            outputs: Sequence[Tensor] = module(images.to(found))
            return outputs

    network.run = run
    return network


def _module(path: Path, device: torch.device) -> torch.nn.Module:
    try:
        with quiet_exporter():
            program: ExportedProgram = torch.export.load(path)
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            return program.module()
    except Exception as error:  # what a damaged graph makes torch raise cannot be known
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CamtrainValueError(
            f"{path} cannot be loaded by torch {torch.__version__} ({reason:.300}); export it "
            "again with this version."
        ) from error
