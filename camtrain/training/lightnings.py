"""The two packages of Lightning: ours, ``pytorch_lightning``, and ``lightning.pytorch``.

They hold the same classes twice, and neither takes the modules or data modules of the other.
Loggers and ``CAMLogger`` are only called, so they work in both.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from camtrain.errors import CamtrainTypeError

_OURS, _OTHER = "pytorch_lightning", "lightning.pytorch"


def is_lightnings(value: object, name: str) -> bool:
    """Whether a value is an instance of the class of this name, of either package."""
    classes = ((kind.__name__, f"{kind.__module__}.") for kind in type(value).__mro__)
    return any(kind == name and path.startswith((_OURS, _OTHER)) for kind, path in classes)


def is_on_gpu(trainer: object) -> bool:
    """Whether a trainer, or None, computes on a GPU of CUDA."""
    device = getattr(getattr(trainer, "strategy", None), "root_device", None)
    return device is not None and device.type == "cuda"


def refuse_mixed_packages() -> None:
    """Let the trainers of either package say which import is right for what they do not take.

    They say it themselves of Lightning's own classes alone, not of derived ones.
    """
    for package in (_OURS, _OTHER):
        for name in ("compile", "model_helpers"):
            utilities: Any = sys.modules.get(f"{package}.utilities.{name}")
            if hasattr(utilities, "_check_mixed_imports"):
                utilities._check_mixed_imports = partial(_check_package, package)


def _check_package(package: str, instance: object) -> None:
    """Raise CamtrainTypeError if what a trainer of this package was given is of the other."""
    other = _OURS if package == _OTHER else _OTHER
    classes = [kind for kind in type(instance).__mro__ if kind.__module__.startswith(f"{other}.")]
    if not classes:
        return
    step = "write `from pytorch_lightning import Trainer`, and so for callbacks and loggers"
    if other == _OTHER:
        step = f"derive it from `{_OURS}.{classes[0].__name__}`"
    raise CamtrainTypeError(
        f"{type(instance).__name__} needs a Trainer of {other} and got one of {package}; {step}."
    )
