"""An ONNX file whose backbone and neck compute in 8 bits, from one that computes in float32."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from camtrain.data import prepare
from camtrain.data.transforms import to_pixels
from camtrain.errors import CamtrainError, CamtrainValueError, one_line
from camtrain.header import METADATA_KEY
from camtrain.inference.export.agreement import Agreement
from camtrain.inference.export.check import Pictures
from camtrain.inference.exported import ExportedNetwork, quiet_exporter
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

MAX_DROP = 2.0  # percentage points
_CALIBRATION_PICTURES = 128
_ROUNDS = 15
# Those of the trunk that hold weights, and those between them that onnxruntime computes in 8 bits.
_WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu")


@dataclass(frozen=True)
class Quantization:
    """What 8 bits gain.

    Attributes:
        pictures: Number of pictures of the calibration.
        megabytes: Size of the float32 file and of this one, in MB.
        milliseconds: Time of one picture with either, in ms.
        threads: Number of threads of both.
    """

    pictures: int
    megabytes: tuple[float, float]
    milliseconds: tuple[float, float]
    threads: int

    def __str__(self) -> str:
        """One line of figures."""
        (size, small), (time_, short) = self.megabytes, self.milliseconds
        return (
            f"{small:.1f} MB instead of {size:.1f}; {short:.1f} ms a picture instead of "
            f"{time_:.1f} ({self.threads} threads), calibrated on {self.pictures} pictures"
        )


def quantize_onnx(
    source: Path,
    target: Path,
    net: CAMNet,
    pictures: Pictures,
    *,
    metadata: str,
    raw: bool = False,
) -> int:
    """Write the QDQ form of a float32 file: standard operators, weights in int8.

    Pool, head and maps stay float32. Weights have 7 bits and a scale per channel: with 8 the sums
    of processors without VNNI overflow, and the file would say other things there.

    Args:
        source: A file of ``write_onnx``.
        target: The file to write.
        net: The network that ``source`` was made of.
        pictures: To find the range of every feature map on: at most 128, evenly spaced.
        metadata: Of the file to write.
        raw: The file takes uint8 pixels.

    Returns:
        The number of pictures of the calibration.

    Raises:
        CamtrainValueError: The network has no layer to quantize, or onnxruntime cannot do it.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    assert net.preprocessing is not None
    nodes = trunk_nodes(onnx.load(source), net.head.weight)
    if not nodes:
        raise CamtrainValueError(
            "The network has no convolution and no linear layer before its head, so int8 changes "
            "nothing; export it with --precision fp32."
        )
    reader = _CalibrationReader(_inputs(pictures, net.preprocessing, raw=raw))
    try:
        with quiet_exporter():
            quantize_static(
                source,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                extra_options={"CalibMovingAverage": True},  # a single picture widens no range
                nodes_to_quantize=nodes,
            )
    except (CamtrainError, OSError):  # a damaged picture, a full disk
        raise
    except Exception as error:  # each network fails in its own way
        raise CamtrainValueError(
            f"onnxruntime cannot quantize this network ({one_line(error)}); export it with "
            "--precision fp16."
        ) from error
    model = onnx.load(target)
    standard = [domain for domain in model.opset_import if domain.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.checker.check_model(model)
    target.write_bytes(model.SerializeToString())
    return reader.count


def trunk_nodes(model: onnx.ModelProto, head_weight: Tensor) -> list[str]:
    """Names of the operators to quantize: those that logits need and that use no head.

    An operator that holds weights is one of them only if one of its inputs is a constant.

    Args:
        model: In float32.
        head_weight: (K, C); the exporter also stores it transposed, or as a convolution.
    """
    import onnx

    nodes, constants = model.graph.node, {tensor.name for tensor in model.graph.initializer}
    weight = head_weight.detach().cpu().numpy()
    of_head = {
        tensor.name
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) == weight.size
        and any(
            np.array_equal(onnx.numpy_helper.to_array(tensor).ravel(), values.ravel())
            for values in (weight, weight.T)
        )
    }
    assert of_head
    needed = {"logits"}
    for node in nodes:  # in the order of computation
        if of_head.intersection(node.input):
            of_head.update(node.output)
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
    return [
        node.name
        for node in nodes
        if needed.intersection(node.output)
        and not of_head.intersection(node.output)
        and (
            node.op_type in _BETWEEN
            or (node.op_type in _WITH_WEIGHTS and constants.intersection(node.input))
        )
    ]


def check_loss(agreement: Agreement, max_drop: float) -> None:
    """Refuse a network that loses more than ``max_drop`` percentage points.

    Raises:
        CamtrainValueError: It does.
    """
    name, loss = max(agreement.losses().items(), key=lambda item: item[1])
    if loss > max_drop + 1e-9:  # 0.80 - 0.78 is more than 0.02
        raise CamtrainValueError(
            f"In int8 the network loses {loss:.2f} percentage points of {name} on "
            f"{agreement.pictures} pictures, more than max_drop={max_drop:g}; no file was written, "
            "so allow a larger --max_drop, or export it with --precision fp16."
        )


def measure_gain(
    before: ExportedNetwork, after: ExportedNetwork, pictures: int, preprocessing: Preprocessing
) -> Quantization:
    """Sizes, and the median times of a picture, the two files taking turns."""
    images = torch.zeros(1, len(preprocessing.mean), *preprocessing.size)
    times: list[list[float]] = [[], []]
    for turn in range(_ROUNDS + 1):
        for network, values in zip((before, after), times, strict=True):
            start = time.perf_counter()
            network.display_maps(images, top=1)
            if turn:  # the first warms up
                values.append(1e3 * (time.perf_counter() - start))
    size, small = (network.path.stat().st_size / 1e6 for network in (before, after))
    return Quantization(
        pictures, (size, small), (median(times[0]), median(times[1])), torch.get_num_threads()
    )


def _inputs(pictures: Pictures, preprocessing: Preprocessing, *, raw: bool) -> Iterator[Tensor]:
    """What the file takes, (1, C, H, W), of each picture of the calibration."""
    for picture in pictures.sample(_CALIBRATION_PICTURES):
        images = prepare(picture.image, preprocessing)[None]
        yield to_pixels(images, preprocessing) if raw else images


class _CalibrationReader:
    """onnxruntime's ``CalibrationDataReader``: the next input, then None.

    Attributes:
        count: The number of inputs that were read.
    """

    def __init__(self, images: Iterable[Tensor]) -> None:
        self.images = iter(images)
        self.count = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next input by name; None after the last."""
        batch = next(self.images, None)
        if batch is None:
            return None
        self.count += 1
        return {"images": batch.numpy()}
