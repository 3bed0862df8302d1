"""camtrain: CNN classifiers become class activation mapping networks, trained, watched, shipped.

The public names load on first use, so that ``import camtrain`` costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camtrain.errors import CamtrainError as CamtrainError
from camtrain.lazy import lazy_names
from camtrain.version import __version__ as __version__

if TYPE_CHECKING:
    from camtrain.inference.prediction import Prediction as Prediction
    from camtrain.inference.predictor import Predictor as Predictor
    from camtrain.inference.predictor import load as load
    from camtrain.localization import boxes_from_heatmap as boxes_from_heatmap
    from camtrain.maps import CAMOutput as CAMOutput
    from camtrain.maps import heatmaps as heatmaps
    from camtrain.model.camnet import CAMNet as CAMNet
    from camtrain.model.convert import convert as convert
    from camtrain.model.create import create_model as create_model
    from camtrain.model.gradcam import gradcam as gradcam
    from camtrain.preprocessing import Preprocessing as Preprocessing

_HOMES = {
    "camtrain.errors": "CamtrainError",
    "camtrain.inference.prediction": "Prediction",
    "camtrain.inference.predictor": "Predictor load",
    "camtrain.localization": "boxes_from_heatmap",
    "camtrain.maps": "CAMOutput heatmaps",
    "camtrain.model.camnet": "CAMNet",
    "camtrain.model.convert": "convert",
    "camtrain.model.create": "create_model",
    "camtrain.model.gradcam": "gradcam",
    "camtrain.preprocessing": "Preprocessing",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
