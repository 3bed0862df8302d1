"""Networks of timm in a repository of the Hugging Face Hub, or in a folder of the same layout.

``timm/hf-hub:ORG/NAME[@REVISION]`` and ``timm/local-dir:PATH`` stand for a ``config.json``, which
names one of timm's architectures, its arguments, preprocessing and classes, and for its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError, one_line
from camtrain.model.backbones import full_name
from camtrain.model.weights import Weights

_FILES = "config.json and model.safetensors"
_NETWORK_PACKAGES = ("httpx", "huggingface_hub", "requests")


class HubNetwork(NamedTuple):
    """What ``config.json`` says of a network; only its weights need the source again."""

    source: str  # hf-hub:ORG/NAME[@REVISION] or local-dir:PATH
    backbone: str  # timm/ARCHITECTURE
    backbone_args: dict[str, Any]
    config: Any  # timm's PretrainedCfg: its preprocessing and its classes

    @property
    def in_chans(self) -> int:
        """The channels of its images."""
        return int(self.config.input_size[0])

    def weights(self) -> Weights:
        """Its published weights, by the names of the architecture; raises as ``hub_network``."""
        import timm

        with _explaining(self.source, "weights"):
            network = timm.create_model(self.source, pretrained=True)
        names, count = self.config.label_names, self.config.num_classes
        class_names = tuple(map(str, names)) if names and len(names) == count else None
        return Weights(network.state_dict(), f"timm/{self.source}", class_names)


def is_hub_name(name: object) -> bool:
    """Whether the name of a backbone is that of its place, see above."""
    text = name.removeprefix("timm/") if isinstance(name, str) else ""
    return text.startswith(("hf-hub:", "local-dir:"))


def hub_network(name: str) -> HubNetwork:
    """The network of a name for which ``is_hub_name`` holds.

    Raises:
        CamtrainFileNotFoundError: It could not be fetched or is not there; says what to fetch, and
            where to put it.
        CamtrainValueError: Its files are damaged, or its architecture is none of timm's.
    """
    import timm
    from timm.models import PretrainedCfg, _hub

    source = name.removeprefix("timm/")
    kind, _, place = source.partition(":")
    with _explaining(source, "config.json"):
        read: Any = _hub.load_model_config_from_hf
        if kind == "local-dir":
            read = _hub.load_model_config_from_path
        values, architecture, args = read(place)
        config, backbone = PretrainedCfg(**values), full_name(f"timm/{architecture}")
        args = {n: value for n, value in args.items() if n not in ("num_classes", "in_chans")}
        usual: Any = timm.get_pretrained_cfg(architecture)
        if config.fixed_input_size and tuple(config.input_size) != usual.input_size:
            args.setdefault("img_size", list(config.input_size[1:]))
        return HubNetwork(source, backbone, args, config)


@contextmanager
def _explaining(source: str, part: str) -> Iterator[None]:
    """Turn whatever timm raises into one sentence that names the source and the next step."""
    kind, _, place = source.partition(":")
    repository, _, revision = place.partition("@")
    advice = f"give a folder with {_FILES}, as timm.models.save_for_hf writes them"
    if kind == "hf-hub":
        page = f"https://huggingface.co/{repository}" + (f"/tree/{revision}" if revision else "")
        advice = f"fetch {_FILES} of {page} into a folder and give timm/local-dir:FOLDER"
    try:
        yield
    except Exception as error:  # what damaged files make timm raise cannot be known
        text = f"The {part} of timm/{source} could not be read ({one_line(error)}); {advice}."
        package = type(error).__module__.partition(".")[0]
        if isinstance(error, OSError) or package in _NETWORK_PACKAGES:
            raise CamtrainFileNotFoundError(text) from error
        raise CamtrainValueError(text) from error
