"""The bundle: one safetensors file that holds a trained network and all it takes to use it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import camtrain
from camtrain.errors import CamtrainError, CamtrainFileNotFoundError, CamtrainValueError
from camtrain.model.camnet import CAMNet
from camtrain.model.create import from_recipe
from camtrain.preprocessing import Preprocessing

FORMAT_VERSION = 1
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
        CamtrainValueError: The network cannot be described, or the file would not be a
            ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CamtrainValueError(f"A bundle is a .safetensors file, got {str(path)!r}.")
    if net.recipe is None or net.preprocessing is None:
        raise CamtrainValueError(
            "This network cannot be described in a bundle, since it was converted from a module "
            "that only your "
            "code can build; build it with camtrain.create_model(NAME, neck=()), which converts it "
            "by name."
        )
    metadata = {
        "format_version": FORMAT_VERSION,
        "camtrain_version": camtrain.__version__,
        "architecture": net.recipe,
        "class_names": list(names_of(net)),
        "preprocessing": net.preprocessing.to_dict(),
        "map_threshold": threshold,
        "scores": dict(scores or {}),
    }
    # Laid out anew: safetensors refuses the strides of channels-last weights.
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, {METADATA_KEY: json.dumps(metadata)})
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CamtrainValueError(f"{path} is not a readable safetensors file: {error}.") from error
    try:
        net = from_recipe(metadata["architecture"])
        net.load_state_dict(tensors)
        net.name_classes(metadata["class_names"])
        net.preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        threshold, scores = float(metadata["map_threshold"]), dict(metadata["scores"])
    except CamtrainError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CamtrainValueError(
            f"{path} is a damaged bundle: its tensors and its metadata do not fit "
            f"({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); take it from its source again."
        ) from error
    return Bundle(net.eval(), threshold, scores)


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
        metadata = json.loads(text)
        version = int(metadata["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CamtrainValueError(f"{path} has unreadable camtrain metadata ({error}).") from error
    if version > FORMAT_VERSION:
        raise CamtrainValueError(
            f"{path} has bundle format version {version}, this camtrain ({camtrain.__version__}) "
            "reads up to "
            f"{FORMAT_VERSION}; install a newer camtrain."
        )
    assert isinstance(metadata, dict)
    return metadata


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
