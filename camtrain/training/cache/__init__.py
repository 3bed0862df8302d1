"""The feature cache: what a frozen backbone makes of every picture, kept instead of made again."""

from camtrain.training.cache.choice import check_cache, uses_cache
from camtrain.training.cache.dataset import FeatureDataset
from camtrain.training.cache.filling import cached_split, check_disk

__all__ = [
    "FeatureDataset",
    "cached_split",
    "check_cache",
    "check_disk",
    "uses_cache",
]
