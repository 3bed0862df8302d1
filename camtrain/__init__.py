"""camtrain: CNN classifiers become class activation mapping networks, trained, watched, shipped.

The public names load on first use, so that ``import camtrain`` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from camtrain.errors import CamtrainError
from camtrain.version import __version__ as __version__

if TYPE_CHECKING:
    from camtrain.inference.prediction import Prediction as Prediction
    from camtrain.inference.predictor import Predictor as Predictor
    from camtrain.inference.predictor import load as load
    from camtrain.localization import boxes_from_heatmap as boxes_from_heatmap
    from camtrain.model.cam import CAMOutput as CAMOutput
    from camtrain.model.cam import heatmaps as heatmaps
    from camtrain.model.camnet import CAMNet as CAMNet
    from camtrain.model.convert import convert as convert
    from camtrain.model.create import create_model as create_model
    from camtrain.model.gradcam import gradcam as gradcam
    from camtrain.preprocessing import Preprocessing as Preprocessing

_HOMES = {
    "CAMNet": "camtrain.model.camnet",
    "CAMOutput": "camtrain.model.cam",
    "Prediction": "camtrain.inference.prediction",
    "Predictor": "camtrain.inference.predictor",
    "Preprocessing": "camtrain.preprocessing",
    "boxes_from_heatmap": "camtrain.localization",
    "convert": "camtrain.model.convert",
    "create_model": "camtrain.model.create",
    "gradcam": "camtrain.model.gradcam",
    "heatmaps": "camtrain.model.cam",
    "load": "camtrain.inference.predictor",
}

__all__ = [
    "CAMNet",
    "CAMOutput",
    "CamtrainError",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "boxes_from_heatmap",
    "convert",
    "create_model",
    "gradcam",
    "heatmaps",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'camtrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
