"""What is known of a network beside its tensors: one value, and how every file stores it.

Bundles (``.safetensors``), checkpoints (``.ckpt``) and exported networks (``.onnx``, ``.pt2``) hold
the same plain values. No other module names their format version or the key they are stored under.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, one_line
from camtrain.files import check_names, check_nested, check_stored, checked_numbers, open_regular
from camtrain.labels import Task, check_task
from camtrain.preprocessing import Preprocessing
from camtrain.thresholds import DEFAULT_THRESHOLD, Threshold, check_any_threshold, stored_threshold
from camtrain.version import __version__

METADATA_KEY = "camtrain"
# Files of a run's folder: its settings, and the network of its best epoch in two formats.
CONFIG_NAME = "config.yaml"
BUNDLE_NAME = "model.safetensors"
BEST_NAME = "checkpoints/best.ckpt"
# Every version has stored these arguments of `create_model`.
_ARGUMENTS = (
    *("backbone", "num_classes", "cut", "stride", "neck", "neck_kernel", "neck_groups"),
    *("neck_norm", "pool", "dropout", "in_chans", "backbone_args"),
)
MOST_METADATA = 2**24  # bytes; the names of 20,000 classes take a few hundred thousand
_MOST_PIXELS = 2**26  # of the network's input
# What a checkpoint holds beside the description; some may be missing.
_PARTS: dict[str, type] = {
    **dict.fromkeys(("state_dict", "hyper_parameters", "datamodule_hyper_parameters"), dict),
    **dict.fromkeys(("callbacks", "loops", "run"), dict),
    **dict.fromkeys(("epoch", "global_step"), int),
}
_NEWEST_FORMAT = 4  # threshold auto; 3: with a foreground head; 2: where maps are refined; else 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """A network, described by plain values.

    Attributes:
        architecture: The arguments of ``camtrain.create_model`` that build the network, and
            ``own_head``; None for a network that only the user's code can build.
        class_names: K names, or None.
        preprocessing: What the network expects to be done to its pictures, or None.
        task: ``multiclass`` or ``multilabel``.
        refine: What heatmaps are made of: ``none``, the class maps; ``affinity``, refined maps; of
            class maps in the foreground where the architecture has a ``foreground`` head.
        refine_layers: The layers by which places are compared, and which that head reads.
        threshold: Map threshold of the boxes, in [0, 1), or ``auto``.
        is_calibrated: Whether it was chosen on pictures with boxes; None where the file is silent.
        other_thresholds: Calibrated thresholds of other kinds of maps, see ``kind_of_maps``.
        scores: What these weights reached, by logged name.
        export: The options of an exported file; None for bundles and checkpoints.
    """

    architecture: Mapping[str, Any] | None
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    task: Task = "multiclass"
    refine: str = "none"
    refine_layers: tuple[str, ...] = ()
    threshold: Threshold = DEFAULT_THRESHOLD
    is_calibrated: bool | None = None
    other_thresholds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    export: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the thresholds."""
        for threshold in (self.threshold, *self.other_thresholds.values()):
            check_any_threshold(threshold)

    @property
    def calibrated_threshold(self) -> float | None:
        """The threshold if it was chosen on pictures with boxes, else None.

        Old checkpoints do not say how it was chosen; there, any value but the default was.
        """
        is_other = self.threshold != DEFAULT_THRESHOLD
        is_calibrated = is_other if self.is_calibrated is None else self.is_calibrated
        return self.threshold if is_calibrated and self.threshold != "auto" else None

    @property
    def kind_of_maps(self) -> str:
        """What the maps are, in words: a threshold belongs to the kind it was calibrated on."""
        maps = "class maps in the foreground" if self.foreground else "class maps"
        if self.refine == "none":
            return maps
        layers = f" of {', '.join(self.refine_layers)}" if self.refine_layers else ""
        return f"{maps if self.foreground else 'maps'} refined by {self.refine}{layers}"

    @property
    def foreground(self) -> bool:
        """Whether the network has a foreground head."""
        return bool((self.architecture or {}).get("foreground"))

    @property
    def threshold_origin(self) -> str:
        """Where the threshold comes from, in words."""
        if self.calibrated_threshold is not None:
            return f"calibrated on {self.kind_of_maps}"
        if self.threshold == "auto":
            return "Otsu's of each heatmap, not calibrated"
        if self.threshold == DEFAULT_THRESHOLD:
            return f"the default, since none is calibrated on {self.kind_of_maps}"
        return "given, not calibrated"

    def with_maps(self, refine: str, layers: Sequence[str]) -> Description:
        """The same network with other maps, and the threshold calibrated on them or the default."""
        other = replace(self, refine=refine, refine_layers=tuple(layers))
        if other.kind_of_maps == self.kind_of_maps:
            return self
        thresholds = dict(self.other_thresholds)
        if self.calibrated_threshold is not None:
            thresholds[self.kind_of_maps] = self.calibrated_threshold
        calibrated = thresholds.pop(other.kind_of_maps, None)
        return replace(
            other,
            threshold=DEFAULT_THRESHOLD if calibrated is None else calibrated,
            is_calibrated=calibrated is not None,
            other_thresholds=thresholds,
        )

    @property
    def refinement(self) -> dict[str, Any] | None:
        """How maps are refined, and what is read for it; None where nothing is."""
        if self.refine == "none" and not self.foreground:
            return None
        return {"method": self.refine, "layers": list(self.refine_layers)}

    def to_dict(self) -> dict[str, Any]:
        """The plain values, as files store them."""
        version = 3 if self.foreground else 1 if self.refinement is None else 2
        values: dict[str, Any] = {
            "format_version": 4 if self.threshold == "auto" else version,
            "camtrain_version": __version__,
            "architecture": None if self.architecture is None else dict(self.architecture),
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "map_threshold": self.threshold,
            "scores": dict(self.scores),
        }
        if self.refinement is not None:
            values["refine"] = self.refinement
        if self.is_calibrated is not None:
            values["is_calibrated"] = self.is_calibrated
        if self.other_thresholds:
            values["other_thresholds"] = dict(self.other_thresholds)
        if self.export is not None:
            values |= {"task": self.task, "export": dict(self.export)}
        return values

    def to_json(self) -> str:
        """The plain values as text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Description:
        """The inverse of ``to_dict``; values that older versions did not store get their defaults.

        Raises:
            Exception: Of any type, where the values are not those that camtrain writes.
        """
        check_nested(values)
        architecture, task = values.get("architecture"), values.get("task", "multiclass")
        if architecture is not None:
            architecture = {**architecture, "task": architecture.get("task", task)}
            for argument in _ARGUMENTS:
                architecture[argument]  # raises KeyError
            task = architecture["task"]
            if not isinstance(architecture["backbone"], str):
                raise CamtrainValueError("backbone must be a name")
        names, preprocessing = values["class_names"], values["preprocessing"]
        refinement = values.get("refine") or {"method": "none", "layers": ()}
        check_names("refine", [refinement["method"], *refinement["layers"]])
        is_calibrated = values.get("is_calibrated")
        if not isinstance(is_calibrated, bool | None):
            raise CamtrainValueError("is_calibrated must be true or false")
        if math.prod(size := (preprocessing or {}).get("size", (1,))) > _MOST_PIXELS:
            raise CamtrainValueError(f"size must be of at most {_MOST_PIXELS} pixels, got {size}")
        return cls(
            architecture=architecture,
            class_names=None if names is None else check_names("class_names", names),
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            task=check_task(task),
            refine=refinement["method"],
            refine_layers=tuple(refinement["layers"]),
            threshold=stored_threshold(values["map_threshold"]),
            is_calibrated=is_calibrated,
            other_thresholds=checked_numbers(
                "other_thresholds", values.get("other_thresholds", {})
            ),
            scores=checked_numbers("scores", values.get("scores", {})),
            export=values.get("export"),
        )


def parse_description(text: str | bytes, path: Path) -> Description:
    """The description that a bundle or an exported file holds.

    Args:
        text: JSON.
        path: Of the file, for messages.

    Raises:
        CamtrainValueError: The text is damaged, or of a newer format version.
    """
    with refusing_damage(path):
        if len(text) > MOST_METADATA:
            raise CamtrainValueError(f"{len(text)} characters")
        values = json.loads(text)
        version = int(values["format_version"])
        if version <= _NEWEST_FORMAT:
            if values["preprocessing"] is None:
                raise CamtrainValueError("preprocessing is missing")
            return Description.from_dict(values)
    raise CamtrainValueError(
        f"{path} has format version {version}, this camtrain ({__version__}) reads up to "
        f"{_NEWEST_FORMAT}; install a newer camtrain."
    )


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Raise one CamtrainValueError for any exception that reading a file's metadata raises."""
    try:
        yield
    except Exception as error:  # what damaged values make the readers raise cannot be known
        raise CamtrainValueError(
            f"{path} has unreadable camtrain metadata ({one_line(error)}); take it from its source "
            "again, or export it again."
        ) from error


def model_file(path: str | Path, name: str = BUNDLE_NAME) -> Path:
    """The file of a network; a run's folder stands for the network of its best epoch.

    Args:
        path: A file, which is returned as it is, or the folder of a run.
        name: The file in such a folder: ``BUNDLE_NAME`` to predict, else ``BEST_NAME``.

    Raises:
        CamtrainFileNotFoundError: The folder is not that of a run, or no epoch was the best yet.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / CONFIG_NAME).is_file():
        raise CamtrainFileNotFoundError(
            f"{path} is not the folder of a run (no {CONFIG_NAME} in it); give runs/NAME, or a "
            f"file such as runs/NAME/{name}."
        )
    if not (path / name).is_file():
        raise CamtrainFileNotFoundError(
            f"The run in {path} has no {name} yet, since no epoch was validated; continue it with "
            "camtrain fit --ckpt_path last, or give the path of another file."
        )
    return path / name


def read_safetensors_description(path: Path) -> Description | None:
    """The description in a ``.safetensors`` file; None where it is not a bundle of camtrain.

    Raises:
        CamtrainValueError: The file is damaged, or of a newer format version.
    """
    open_regular(path).close()  # safetensors calls whatever cannot be opened missing
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise CamtrainValueError(f"{path} is not a readable safetensors file: {error}.") from error
    return None if text is None else parse_description(text, path)


def read_torch_file(path: Path, *, mmap: bool = False) -> Any:  # noqa: ANN401
    """What ``torch.save`` has written: plain values and tensors, no more than the file's size.

    Raises:
        Exception: Of any type, where the file is damaged or holds more; no code from it is run.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_stored(archive, path.stat().st_size)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    check_nested(content)
    return content


def read_checkpoint_content(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Everything in a Lightning checkpoint of this project; only plain values are read.

    Args:
        path: Ends in ``.ckpt``.
        mmap: Leave the tensors on the disk until they are used.

    Raises:
        CamtrainFileNotFoundError: No such file.
        CamtrainValueError: No checkpoint of this project, or one of more than plain values.
    """
    if not path.is_file():
        raise CamtrainFileNotFoundError(
            f"No checkpoint at {path.absolute()}; give the path of a best.ckpt or last.ckpt."
        )
    try:
        content = read_torch_file(path, mmap=mmap)
        checkpoint_description(content)
        _check_parts(content)
        return dict(content)
    except Exception as error:  # what a damaged file makes torch raise cannot be known
        raise CamtrainValueError(
            f"{path} is not a camtrain checkpoint that can be read safely ({one_line(error)}); "
            "give another one, or take it from its source again."
        ) from error


def _check_parts(content: Mapping[str, Any]) -> None:
    """Raise CamtrainValueError unless the parts that are read later are of the right types."""
    for name, kind in _PARTS.items():
        part = content.get(name, kind())
        if not isinstance(part, kind):
            raise CamtrainValueError(f"{name} must be a {kind.__name__}")
        check_names(name, list(part) if isinstance(part, dict) else [])
    if not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
        raise CamtrainValueError("state_dict must hold tensors")
    if not all(isinstance(state, dict) for state in content.get("callbacks", {}).values()):
        raise CamtrainValueError("callbacks must hold the state of each")


def checkpoint_description(content: Mapping[str, Any]) -> Description:
    """The description in the content of a checkpoint."""
    return Description.from_dict(content[METADATA_KEY])
