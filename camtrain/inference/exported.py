"""Exported networks, ``.onnx`` and ``.pt2``: reading them, and running them behind one class."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from camtrain.data.transforms import to_pixels
from camtrain.errors import CamtrainValueError, check_choice, needs_extra, one_line
from camtrain.header import METADATA_KEY, parse_description, refusing_damage
from camtrain.inference.file_checks import check_archive, read_onnx_header
from camtrain.inference.network import Precision, find_device
from camtrain.maps import CAMOutput, check_classes
from camtrain.model.refine import Refine, check_refine

ExportPrecision = Literal["fp32", "fp16", "int8"]
Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class ExportOptions:
    """The inputs and outputs of an exported file.

    Attributes:
        raw: It takes uint8 pixels, (B, C, H, W), colours in the order RGB, and normalizes them;
            else it takes float32, normalized.
        top: It gives the maps of that many best classes, and their numbers; None for all K.
        heatmaps: It also gives heatmaps: the maps upsampled to the input and normalized (minmax);
            of refined maps where it gives those.
        refine: ``affinity``: it also gives ``refined_maps``; the network must refine its maps.
        foreground: It gives ``refined_maps`` in the foreground, of a network that has such a head.
        precision: ``fp16`` or ``int8``: backbone and neck compute in float16 or in 8 bits; pool,
            head and maps in float32.
    """

    raw: bool = False
    top: int | None = None
    heatmaps: bool = False
    refine: Refine = "none"
    foreground: bool = False
    precision: ExportPrecision = "fp32"

    def __post_init__(self) -> None:
        """Check every value."""
        if self.top is not None and self.top < 1:
            raise CamtrainValueError(f"top must be at least 1, got {self.top}.")
        check_refine(self.refine)
        check_choice("precision", self.precision, get_args(ExportPrecision))

    @property
    def has_refined_maps(self) -> bool:
        """Whether heatmaps are made of other maps than class maps."""
        return self.refine != "none" or self.foreground

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs in order."""
        extra = {
            "classes": self.top is not None,
            "refined_maps": self.has_refined_maps,
            "heatmaps": self.heatmaps,
        }
        return ("logits", "maps", *(name for name, is_given in extra.items() if is_given))

    def to_dict(self) -> dict[str, Any]:
        """The plain values, for the metadata of the file."""
        values = asdict(self)
        for name, default in (("refine", "none"), ("foreground", False)):
            if values[name] == default:
                del values[name]  # older readers do not know it
        return values


class ExportedNetwork:
    """The network of an exported file; see ``camtrain.inference.network.Network``.

    Attributes:
        description: The metadata of the file.
        options: What the file takes and gives.
        input_hw: (H, W) of the only images it takes, in pixels; None for any size.
    """

    def __init__(self, path: Path, metadata: bytes | None) -> None:
        """Check the metadata of a file; ``read_exported`` sets ``run`` afterwards.

        Args:
            path: Of the file, for messages.
            metadata: JSON; None where the file has none.

        Raises:
            CamtrainValueError: There are no metadata, or they are damaged.
        """
        if metadata is None:
            raise CamtrainValueError(
                f"{path} was not exported by camtrain: it has no camtrain metadata; export one "
                "with `camtrain export CHECKPOINT`."
            )
        self.path = path
        self.description = parse_description(metadata, path)
        with refusing_damage(path):
            export = dict(self.description.export or {})
            size_hw = export.pop("input_hw")
            self.input_hw = None if size_hw is None else (int(size_hw[0]), int(size_hw[1]))
            self.options = ExportOptions(**export)
            if self.description.class_names is None or self.description.preprocessing is None:
                raise CamtrainValueError("class_names or preprocessing are missing")
        self.class_names: Sequence[str] = self.description.class_names
        self.preprocessing = self.description.preprocessing
        self.task = self.description.task
        self.refine = self.options.refine
        self.top = self.options.top
        self.run: Run

    def class_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """As ``display_maps``, but always with class maps."""
        return self.output_maps("maps", images, top=top, classes=classes)

    def display_maps(
        self, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """As ``CAMNet.display_maps``: refined maps if the file gives them, else class maps.

        Raises:
            CamtrainValueError: The file takes no images of this size or channels, or it gives the
                maps of its best classes only and others are asked for.
        """
        name = "refined_maps" if self.options.has_refined_maps else "maps"
        return self.output_maps(name, images, top=top, classes=classes)

    def output_maps(
        self, name: str, images: Tensor, *, top: int | None = None, classes: Tensor | None = None
    ) -> CAMOutput:
        """Logits, the maps of the output ``name`` of the file, and their classes."""
        self._check_images(images)
        if classes is not None:
            check_classes(classes, len(images), len(self.class_names))
        if self.options.raw:
            images = to_pixels(images.cpu(), self.preprocessing)
        outputs = self._outputs(images)
        logits, maps = outputs["logits"], outputs[name]
        if top is not None:
            classes = logits.topk(min(top, logits.shape[1])).indices
        elif classes is None:
            classes = torch.arange(logits.shape[1]).expand_as(logits)
        classes = classes.to(logits.device, torch.int64).reshape(len(images), -1)
        places = self._places(outputs, classes)
        rows = torch.arange(len(images), device=maps.device)[:, None]
        return CAMOutput(logits, maps[rows, places], classes)

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the file by name.

        Raises:
            CamtrainValueError: The graph fails, or gives other outputs than it says.
        """
        names = self.options.output_names
        try:
            outputs = dict(zip(names, self.run(images), strict=True))
            shapes = [tuple(outputs[name].shape) for name in names]
        except Exception as error:  # what a graph makes its runtime raise cannot be known
            raise CamtrainValueError(
                f"{self.path} fails while it runs ({one_line(error)}); export it again."
            ) from error
        batch, classes = len(images), len(self.class_names)
        maps = min(self.top or classes, classes)
        for name, shape in zip(names, shapes, strict=True):
            expected = (batch, classes if name == "logits" else maps)
            if shape[:2] != expected or len(shape) != (2 if name in ("logits", "classes") else 4):
                raise CamtrainValueError(
                    f"{self.path} gives {name} of the shape {shape} for {batch} pictures and "
                    f"{classes} classes; export it again."
                )
        return outputs

    def _check_images(self, images: Tensor) -> None:
        channels = len(self.preprocessing.mean)
        height, width = self.input_hw or (images.shape[-2], images.shape[-1])
        if images.ndim != 4 or images.shape[1:] != (channels, height, width):
            sides = f"{height}, {width}" if self.input_hw else "H, W"
            raise CamtrainValueError(
                f"This exported network takes images (B, {channels}, {sides}), got "
                f"{tuple(images.shape)}; use the bundle for others."
            )

    def _places(self, outputs: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        """The positions (B, k) of ``classes`` (B, k) among the maps that the file gives."""
        if self.top is None:
            return classes
        is_there = outputs["classes"][:, None] == classes[:, :, None]  # (B, k, k of the file)
        if not is_there.any(2).all():
            count = outputs["classes"].shape[1]
            raise CamtrainValueError(
                f"This file gives the maps of its {count} best classes only; ask for top={count} "
                "or fewer, or export it without --top."
            )
        return is_there.int().argmax(2)


def read_exported(
    path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> ExportedNetwork:
    """The network of an ONNX file or of an exported program that camtrain wrote.

    The metadata are read first: a file without ours never reaches a runtime. An ONNX graph holds
    operators and numbers, no code. ``torch.export.load`` runs only if ``check_archive`` has seen
    nothing in the file but torch's own operators, numbers and names. Even so, a hostile file can
    take any amount of memory and time, and a ``.pt2`` can reach the errors of torch's readers of
    archives and graphs. Ask strangers for a ``.safetensors`` instead.

    Args:
        path: Ends in ``.onnx`` or ``.pt2``.
        device: See ``TorchNetwork``. For ONNX ``cpu``, or ``cuda`` where an onnxruntime with CUDA
            is installed; ``auto`` is the better of those that are there.
        precision: Only ``fp32``: the precision of the file was chosen at its export.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: Not a file that camtrain wrote, or of a newer format version; the
            runtime is missing or refuses it; or there is no such device or precision.
    """
    path = Path(path)
    is_onnx = path.suffix.lower() == ".onnx"
    if is_onnx:
        metadata, domains = read_onnx_header(path)
        network = ExportedNetwork(path, metadata.get(METADATA_KEY))
        if domains - {"", "ai.onnx"}:
            raise CamtrainValueError(
                f"{path} uses operators of {', '.join(sorted(domains - {''}))}, which "
                "camtrain never exports; export it again."
            )
    else:
        network = ExportedNetwork(path, check_archive(path))
    if precision != "fp32":
        raise CamtrainValueError(
            f"precision of an exported network was chosen at its export, got {precision!r}; load "
            "the bundle, or export it with --precision fp16."
        )
    names = network.options.output_names
    network.run = _load_onnx(path, device, names) if is_onnx else _load_pt2(path, device)
    return network


def _load_onnx(path: Path, device: str | torch.device, output_names: Sequence[str]) -> Run:
    with needs_extra("Running ONNX files"):
        import onnxruntime
    available = onnxruntime.get_available_providers()
    has_cuda = "CUDAExecutionProvider" in available and torch.cuda.is_available()
    torch_device = torch.device("cpu") if device == "auto" and not has_cuda else find_device(device)
    if torch_device.type == "cpu":
        providers: list[object] = ["CPUExecutionProvider"]
    elif torch_device.type == "cuda" and has_cuda:
        providers = [("CUDAExecutionProvider", {"device_id": torch_device.index or 0})]
    else:
        raise CamtrainValueError(
            f"device must be cpu for this onnxruntime, which has no {torch_device.type}, got "
            f"{str(device)!r}."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # torch.set_num_threads holds here too
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions share no class of their own
        raise CamtrainValueError(
            f"onnxruntime refuses {path} ({one_line(error)}); export it again."
        ) from error

    def run(images: Tensor) -> Sequence[Tensor]:
        outputs = session.run(list(output_names), {"images": images.cpu().numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run


def _load_pt2(path: Path, device: str | torch.device) -> Run:
    torch_device = find_device(device)
    try:
        with quiet_exporter():
            program = torch.export.load(path)
            if torch_device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, torch_device)
            module = program.module()
    except Exception as error:  # what a damaged graph makes torch raise cannot be known
        raise CamtrainValueError(
            f"{path} cannot be loaded by torch {torch.__version__} ({one_line(error)}); export it "
            "again with this version."
        ) from error

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode():
            outputs: Sequence[Tensor] = module(images.to(torch_device))
            return outputs

    return run


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the warnings and notes of torch's exporters off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
