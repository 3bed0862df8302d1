"""What a network must know of its data to be shipped: class names, preprocessing, their head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from pytorch_lightning import Trainer

from camtrain.arguments import print_paragraph
from camtrain.errors import CamtrainValueError, join_first, warn
from camtrain.header import read_safetensors_description
from camtrain.model.camnet import CAMNet
from camtrain.model.hub import is_hub_name
from camtrain.model.recipes import USUAL_NECK
from camtrain.preprocessing import Preprocessing

Fact = TypeVar("Fact")


class DataFacts:
    """Brings class names and preprocessing from the data, or from the arguments, to the network.

    The trained head of a bundle that was given as ``weights`` is kept for the same classes, in any
    order; other classes get a new head. That is decided here, where the classes are known.

    Args:
        hparams: The settings of ``CAMModule``.

    Attributes:
        assumptions: What nobody has said and files will say, by the argument that says it.
    """

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        names = hparams["class_names"]
        self._names: tuple[str, ...] | None = None if names is None else tuple(names)
        values = plain_preprocessing(hparams["preprocessing"])
        self._preprocessing = None if values is None else Preprocessing.from_dict(values)
        file = Path(hparams["weights"] or "")
        self._is_frozen = bool(hparams["freeze_head"])
        is_bundle = file.suffix == ".safetensors" and read_safetensors_description(file) is not None
        self._bundle = file if is_bundle else None  # until the training begins
        self._head_line = ""
        self.assumptions: dict[str, str] = {}

    def tell(self, net: CAMNet, data: object) -> None:
        """Give a network its class names, its preprocessing and their head.

        Args:
            net: The network.
            data: A data module, whose attributes ``class_names``, or ``classes``, and
                ``preprocessing`` are read where they exist; or None.

        Raises:
            CamtrainValueError: Data and arguments contradict each other, or do not fit the network.
        """
        names = _agreed("class_names", _class_names_of(data), self._names)
        if names is not None:
            net.name_classes(names)
        preprocessing = _agreed("preprocessing", _preprocessing_of(data), self._preprocessing)
        in_chans = (net.description.architecture or {})["in_chans"]
        if preprocessing is not None and len(preprocessing.mean) != in_chans:
            raise CamtrainValueError(
                f"mean must hold one number for each of the in_chans={in_chans} channels of "
                f"the network, got {len(preprocessing.mean)}, and so must std; both belong to the "
                "data, or to preprocessing."
            )
        gray = (0.5,) * in_chans
        usual = Preprocessing() if in_chans == 3 else Preprocessing(mean=gray, std=gray)
        net.preprocessing = preprocessing or net.preprocessing or usual
        if self._bundle is not None:
            self._head_line = _take_head(net, self._bundle, names, is_frozen=self._is_frozen)
        self.assumptions = {}
        if net.class_names is None:
            called = join_first(net.display_names, 3)
            self.assumptions["class_names"] = f"the classes are called {called}"
        if preprocessing is None:
            self.assumptions["preprocessing"] = f"pictures are prepared by {net.preprocessing}"

    def announce(self, trainer: Trainer) -> None:
        """At the start of a training, print what became of a trained head, and warn."""
        self.forget_bundle()
        if self._head_line and trainer.is_global_zero and trainer.ckpt_path is None:
            print_paragraph(self._head_line)
        self.warn("The checkpoints and bundles of this training will say")

    def forget_bundle(self) -> None:
        """Leave the head as it is from now on."""
        self._bundle = None

    def warn(self, beginning: str) -> None:
        """Warn of the assumptions, if there are any; the sentence begins with what says them."""
        if self.assumptions:
            warn(
                f"{beginning} that {' and '.join(self.assumptions.values())}, since neither the "
                f"data nor CAMModule says it; give CAMModule {' and '.join(self.assumptions)}, or "
                "your data module attributes of these names.",
                stacklevel=2,
            )


def complete_settings(settings: dict[str, Any], net: CAMNet) -> dict[str, Any]:
    """Change the settings in a checkpoint so that they build its network from the file alone.

    Returns:
        The changed ones as they were given, with which a continued training is compared.
    """
    changes = {"weights": None, "num_classes": net.head.out_features}
    if is_hub_name(settings["backbone"]) and net.recipe is not None:
        changes |= {name: net.recipe[name] for name in ("backbone", "backbone_args", "in_chans")}
    given = {name: settings[name] for name in changes}
    settings.update(changes)
    return given


def plain_preprocessing(value: Preprocessing | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A preprocessing as checkpoints and YAML hold it."""
    if isinstance(value, Mapping):
        value = Preprocessing.from_dict(dict(value))
    return None if value is None else value.to_dict()


def _class_names_of(data: object) -> tuple[str, ...] | None:
    names = getattr(data, "class_names", None) or getattr(data, "classes", None)
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names or ()) if is_list else None


def _preprocessing_of(data: object) -> Preprocessing | None:
    value = getattr(data, "preprocessing", None)
    if isinstance(value, dict):
        return Preprocessing.from_dict(value)
    return value if isinstance(value, Preprocessing) else None  # else it is a transform


def _agreed(name: str, of_data: Fact | None, given: Fact | None) -> Fact | None:
    """What the data says or else the argument; raises CamtrainValueError where they differ."""
    if None not in (of_data, given) and of_data != given:
        raise CamtrainValueError(
            f"{name} must be that of the data, {_differing(of_data, given)}, got "
            f"{_differing(given, of_data)}; leave it out."
        )
    return given if of_data is None else of_data


def _differing(fact: object, other: object) -> str:
    """What a message says of a fact: of a preprocessing only the values that the other lacks."""
    if not isinstance(fact, Preprocessing) or not isinstance(other, Preprocessing):
        return str(fact)
    other_values = asdict(other)
    return ", ".join(f"{name} {v}" for name, v in asdict(fact).items() if v != other_values[name])


@torch.no_grad()
def _take_head(net: CAMNet, file: Path, names: Sequence[str] | None, *, is_frozen: bool) -> str:
    """Load the head of a bundle if its classes are those of the network, else draw a new head.

    Returns:
        A line that says which.

    Raises:
        CamtrainValueError: A new head would stay frozen.
    """
    description, recipe = read_safetensors_description(file), net.recipe
    assert description is not None
    architecture = description.architecture
    assert architecture is not None
    assert recipe is not None
    stored = description.class_names or ()
    names = stored if names is None and len(stored) == net.head.out_features else names
    has_same_neck = all(recipe[name] == architecture[name] for name in USUAL_NECK)
    is_same = names is not None and sorted(names) == sorted(stored)
    tensors = safetensors.torch.load_file(file)
    weight, bias = tensors["head.weight"], tensors["head.bias"]
    if is_same and has_same_neck and names is not None:
        order = [stored.index(name) for name in names]
        net.head.weight.copy_(weight[order])
        net.head.bias.copy_(bias[order])
        net.name_classes(names)
        return f"The trained head of {file} is kept, with its classes {join_first(names, 5)}."
    reason = "its neck is another" if is_same else f"it knows the classes {join_first(stored, 5)}"
    ours = "" if is_same else f", and the data has {join_first(names or net.display_names, 5)}"
    if is_frozen:
        raise CamtrainValueError(
            f"freeze_head keeps the trained head of {file}, which cannot be kept: {reason}{ours}; "
            "give pictures of its classes, or leave freeze_head out."
        )
    if net.head.weight.shape == weight.shape and torch.equal(net.head.weight.cpu(), weight):
        with torch.random.fork_rng(devices=[]):
            net.head.reset_parameters()
    return f"A new head begins, in place of the trained head of {file}: {reason}{ours}."
