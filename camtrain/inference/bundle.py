"""The bundle: one safetensors file that holds a trained network and all it takes to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError
from camtrain.localization.boxes import check_threshold
from camtrain.model.camnet import CAMNet
from camtrain.model.create import from_recipe
from camtrain.preprocessing import Preprocessing
from camtrain.version import __version__

FORMAT_VERSION = 2  # of networks that refine their maps; the others still say 1
METADATA_KEY = "camtrain"
DEFAULT_THRESHOLD = 0.2


@dataclass(frozen=True)
class Bundle:
    """A trained network and what it takes to use it.

    Attributes:
        net: The network, in evaluation mode; it carries its class names and its preprocessing.
        threshold: Map threshold of the boxes, in [0, 1): calibrated, or 0.2 where no boxes were
            seen.
        scores: What the epoch of these weights reached, by logged name.
    """

    net: CAMNet
    threshold: float = DEFAULT_THRESHOLD
    scores: Mapping[str, float] = field(default_factory=dict)


def write_bundle(
    path: str | Path,
    net: CAMNet,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    scores: Mapping[str, float] | None = None,
) -> None:
    """Write a bundle atomically: an older file stays whole until the new one is complete.

    Args:
        path: Ends in ``.safetensors``; its folder must exist.
        net: A network from ``camtrain.create_model`` with a preprocessing.
        threshold: Map threshold of the boxes, in [0, 1).
        scores: What these weights reached, by logged name.

    Raises:
        CamtrainFileNotFoundError: The folder does not exist.
        CamtrainValueError: The network cannot be described, the threshold lies outside [0, 1), or
            the file would not be a ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CamtrainValueError(f"A bundle is a .safetensors file, got {str(path)!r}.")
    if not path.parent.is_dir():
        raise CamtrainFileNotFoundError(
            f"The folder of the bundle {path.absolute()} does not exist; create it first."
        )
    if net.recipe is None or net.preprocessing is None:
        raise CamtrainValueError(
            "This network cannot be described in a bundle, since only your code can build the "
            "module it was converted from; build it with camtrain.create_model(NAME, neck=()), "
            "which converts it by name."
        )
    metadata = describe(net, threshold=threshold, scores=scores)
    # Laid out anew: safetensors refuses the strides of channels-last weights.
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}.part")
    try:
        temporary.touch()
        usual_mode = temporary.stat().st_mode
        save_file(tensors, temporary, {METADATA_KEY: json.dumps(metadata)})
        temporary.chmod(usual_mode)  # safetensors 0.8 lets only the owner read its files
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def describe(
    net: CAMNet, *, threshold: float, scores: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What a bundle says about its network, as plain values; exported files say it too.

    Raises:
        CamtrainValueError: The threshold lies outside [0, 1).
    """
    assert net.preprocessing is not None
    said = {
        "format_version": FORMAT_VERSION if net.stages else 1,
        "camtrain_version": __version__,
        "architecture": None if net.recipe is None else {**net.recipe, "task": net.task},
        "class_names": list(names_of(net)),
        "preprocessing": net.preprocessing.to_dict(),
        "map_threshold": check_threshold(threshold),
        "scores": dict(scores or {}),
    }
    return {**said, "refine": describe_refine(net)} if net.stages else said


def describe_refine(net: CAMNet) -> dict[str, Any] | None:
    """How a network refines its maps, as plain values; None where it does not."""
    return {"method": net.refine, "layers": list(net.stages.layers)} if net.stages else None


def set_refine(net: CAMNet, said: Mapping[str, Any] | None) -> None:
    """Let a network refine its maps as ``describe_refine`` says."""
    net.set_refine(said["method"] if said else "none", said["layers"] if said else None)


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle; no code from the file runs.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: Not a bundle, a newer format version, or tensors that do not fit its
            architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"No bundle at {path.absolute()}; give the path of a model.safetensors."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(path, file.metadata())
            names: list[str] = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CamtrainValueError(f"{path} is not a readable safetensors file: {error}.") from error
    return _assemble(path, metadata, tensors)


def read_checkpoint(path: str | Path) -> Bundle:
    """Read a Lightning checkpoint of this project as a bundle, without Lightning.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: Not a checkpoint of this project, or one that holds more than plain
            values, which is not run.
    """
    path = Path(path)
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"No checkpoint at {path.absolute()}; give the path of a best.ckpt or last.ckpt."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        metadata = {"scores": {}, **content["camtrain"]}
        tensors = {
            name.removeprefix("net."): tensor
            for name, tensor in content["state_dict"].items()
            if name.startswith("net.")
        }
    except Exception as error:  # what a damaged file makes torch raise cannot be known
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CamtrainValueError(
            f"{path} is not a camtrain checkpoint that can be read safely ({reason:.400})."
        ) from error
    return _assemble(path, metadata, tensors)


def _assemble(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> Bundle:
    try:
        _check_name(metadata["architecture"]["backbone"])
        net = from_recipe(metadata["architecture"])
        net.load_state_dict(tensors)
        if metadata["class_names"] is not None:
            net.name_classes(metadata["class_names"])
        net.preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        set_refine(net, metadata.get("refine"))
        threshold = check_threshold(float(metadata["map_threshold"]))
        scores = {name: float(score) for name, score in metadata["scores"].items()}
    except Exception as error:  # what damaged values make torch raise cannot be known
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CamtrainValueError(
            f"{path} holds tensors and metadata that do not fit ({reason:.400}); take it from its "
            "source again."
        ) from error
    return Bundle(net.eval(), threshold, scores)


def _check_name(name: str) -> None:
    """Refuse what timm would look for in a folder or on a network, such as ``hf-hub:...``."""
    if not re.fullmatch(r"(torchvision|timm|camtrain)/[\w.-]+", name):
        raise CamtrainValueError(f"backbone must be LIBRARY/NAME, got {name!r}.")


def names_of(net: CAMNet) -> Sequence[str]:
    """The class names of a network; their numbers where it has none."""
    return net.class_names or [str(number) for number in range(net.head.out_features)]


def _metadata(path: Path, header: dict[str, str] | None) -> dict[str, Any]:
    text = (header or {}).get(METADATA_KEY)
    if text is None:
        raise CamtrainValueError(
            f"{path} holds weights but is not a camtrain bundle; pass it to camtrain.create_model "
            "as weights=."
        )
    try:
        metadata: dict[str, Any] = json.loads(text)
        version = int(metadata["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CamtrainValueError(
            f"{path} has unreadable camtrain metadata ({type(error).__name__}: {error}); take it "
            "from its source again."
        ) from error
    if version > FORMAT_VERSION:
        raise CamtrainValueError(
            f"{path} has bundle format version {version}, this camtrain ({__version__}) "
            f"reads up to {FORMAT_VERSION}; install a newer camtrain."
        )
    return metadata
