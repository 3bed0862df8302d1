"""What validate and test measure: a trained network, and settings that may differ from its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from camtrain.errors import CamtrainValueError
from camtrain.header import (
    BEST_NAME,
    METADATA_KEY,
    Description,
    checkpoint_description,
    model_file,
    read_checkpoint_content,
    refusing_damage,
)
from camtrain.inference.bundle import read_network
from camtrain.model.modules import check_user, user_network
from camtrain.training.cli.help import PAGES
from camtrain.training.datamodule import CAMDataModule
from camtrain.training.module import CAMModule
from camtrain.training.run.resume import as_plain, check_is_file, split_beside
from camtrain.training.watch import CAMLogger

# Settings that a trained network follows. `gmp` pools features, which gives maps another meaning.
_OF_NETWORK = {"refine", "refine_layers", "stride", "channels_last"}
_POOLS = {"avg", "max", "lse"}
_OF_TRAINING = {
    *("augment", "auto_augment", "hide_and_seek", "reduced_decoding", "max_damaged", "sampler"),
    *("cache_features", "cache_dir"),
}
# Scores do not depend on these.
_OF_SPEED = {"channels_last", "batch_size", "workers", "shards_cache", "shards_cache_gb"}
_OF_EVERY_VERB = {"config", "print_config", "seed_everything"}


class MeasuredNetwork:
    """A checkpoint or a bundle that is measured.

    Attributes:
        path: Of the file.
        settings: Those of its network and its data, as a config; a bundle knows of its data only
            the classes and the preprocessing.
    """

    def __init__(self, path: str | Path, backbone: str | None = None) -> None:
        """Read it.

        Args:
            path: A checkpoint, a bundle, or the folder of a run, which stands for its best epoch.
            backbone: The import path of a network of the user.

        Raises:
            CamtrainFileNotFoundError: No such file, or a folder that is not that of a run.
            CamtrainValueError: Not a file of this project.
        """
        self.path = model_file(path, BEST_NAME)
        check_is_file(self.path)
        is_bundle = self.path.suffix == ".safetensors"
        content = _read_bundle(self.path, backbone) if is_bundle else None
        self._checkpoint = content or read_checkpoint_content(self.path)
        check_user(self._description.architecture, user_network(backbone))
        with refusing_damage(self.path):
            self.settings = self._read_settings()
        if backbone is not None:
            self.settings["model"]["backbone"] = backbone

    @property
    def _description(self) -> Description:
        return checkpoint_description(self._checkpoint)

    def _read_settings(self) -> dict[str, dict[str, Any]]:
        model = dict(self._checkpoint["hyper_parameters"])
        data = dict(self._checkpoint.get("datamodule_hyper_parameters", {}))
        for name in ("num_classes", "_instantiator"):
            model.pop(name, None)
            data.pop(name, None)
        names, preprocessing = self._description.class_names, self._description.preprocessing
        data["class_names"] = None if names is None else list(names)
        # The file in the run's folder comes first: the run may have been moved since.
        stored = data.get("split_file")
        exists = stored is not None and Path(stored).is_file()
        data["split_file"] = split_beside(self.path) or (stored if exists else None)
        for name in ("mean", "std", "channel_order") if preprocessing else ():
            data[name] = getattr(preprocessing, name)
        states = self._checkpoint.get("callbacks", {}).items()
        of_watching = [state for key, state in states if key.startswith(CAMLogger.__name__)]
        counts = [state["faithfulness"] for state in of_watching if "faithfulness" in state]
        return {"model": model, "data": data, "cams": {"faithfulness": [*counts, None][0]}}

    def changes(self, settings: Mapping[str, Any], split: str) -> dict[str, Any]:
        """The settings, by name, that differ from those of the network and change its scores.

        Raises:
            CamtrainValueError: A trained network cannot follow a setting.
        """
        changes = {}
        for part, kind in (("model", CAMModule), ("data", CAMDataModule)):
            defaults = inspect.signature(kind).parameters
            for name in sorted(settings[part].keys() & defaults.keys() - {"num_classes"}):
                value = settings[part][name]
                stored = self.settings[part].get(name, defaults[name].default)
                if _comparable(name, value) == _comparable(name, stored):
                    continue
                is_read = name == "refine_layers" and self._description.foreground
                pools = {value, stored} if name == "pool" else set()
                if is_read or not _can_follow(part, name, pools):
                    raise CamtrainValueError(
                        f"{part}.{name}={as_plain(value)} comes too late for {self.path}, which "
                        f"was trained with {as_plain(stored)}; leave it out: of a trained network "
                        "only refine, refine_layers, stride and pool (avg, max, lse) may change, "
                        "and how pictures are read and prepared."
                    )
                changes[name] = value
        limit = f"limit_{split}_batches"
        if (value := settings["trainer"][limit]) is not None:
            changes[limit] = value
        count = settings["cams"]["faithfulness"]
        if split == "test" and count != self.settings["cams"]["faithfulness"]:
            changes["faithfulness"] = count
        return {name: value for name, value in changes.items() if name not in _OF_SPEED}

    def load_into(self, module: CAMModule, changes: Mapping[str, Any]) -> None:
        """Give a module the network, with the changed settings, which the module was built with."""
        description = self._description
        new = {name: changes[name] for name in ("pool", "stride") if name in changes}
        if new:
            description = replace(
                description, architecture={**(description.architecture or {}), **new}
            )
        if {"refine", "refine_layers"} & changes.keys():
            maps = module.net.description
            description = description.with_maps(maps.refine, maps.refine_layers)
        seed = self._checkpoint[METADATA_KEY]["seed"]
        metadata = {"seed": seed, **description.to_dict()}
        module.on_load_checkpoint({**self._checkpoint, METADATA_KEY: metadata})
        module.load_state_dict(self._checkpoint["state_dict"])

    def results_folder(self, split: str, changes: Mapping[str, Any]) -> Path:
        """Where scores go: into the run or beside the file, each setting into a folder of its own.

        Example:
            ``runs/NAME/test``; with changes ``runs/NAME/test-refine=affinity-size=448``.
        """
        folder = self.path.absolute().parent
        folder = folder.parent if folder.name == "checkpoints" else folder
        if self.path.stem != "best":
            changes = {"ckpt_path": self.path.stem, **changes}
        words = [f"{name}={_as_word(value)}" for name, value in changes.items()]
        return folder / "-".join([split, *words])


def check_options(verb: str, args: Sequence[str]) -> None:
    """Refuse options of the command line that the verb would ignore.

    Raises:
        CamtrainValueError: An option belongs to another verb.
    """
    options = {
        name: {n for group in page.groups.values() for n in group} for name, page in PAGES.items()
    }
    foreign = set().union(*options.values()) - options[verb] - _OF_EVERY_VERB
    for name in (arg.partition("=")[0].removeprefix("--") for arg in args):
        is_of_network = verb != "fit" and name.startswith(("model.", "data."))
        if name in foreign and not is_of_network:
            owner = next(other for other, names in options.items() if name in names)
            raise CamtrainValueError(
                f"--{name} is an option of camtrain {owner}, and camtrain {verb} would ignore it; "
                f"leave it out (camtrain {verb} --help lists its options)."
            )


def _read_bundle(path: Path, backbone: str | None) -> dict[str, Any]:
    """A bundle in the form of a checkpoint."""
    bundle = read_network(path, backbone=backbone)
    description = bundle.description
    model = {**(description.architecture or {}), "weights": None, "refine": description.refine}
    for name in ("own_head", "is_whole"):
        model.pop(name, None)
    if description.refine_layers:
        model["refine_layers"] = list(description.refine_layers)
    return {
        "state_dict": {f"net.{name}": t for name, t in bundle.net.state_dict().items()},
        "hyper_parameters": model,
        "datamodule_hyper_parameters": asdict(description.preprocessing)
        if description.preprocessing
        else {},
        METADATA_KEY: {"seed": 0, **description.to_dict()},
        "epoch": 0,  # a bundle does not know it
    }


def _can_follow(part: str, name: str, pools: set[str]) -> bool:
    if part == "data":
        return name not in _OF_TRAINING
    return name in _OF_NETWORK or bool(pools and pools <= _POOLS)


def _comparable(name: str, value: object) -> object:
    return Path(str(value)).resolve() if name == "root" and value is not None else as_plain(value)


def _as_word(value: object) -> str:
    """A value within the name of a folder."""
    text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = Path(text).stem if "/" in text else text
    return re.sub(r"[^\w.+]+", "_", text)[:40]
