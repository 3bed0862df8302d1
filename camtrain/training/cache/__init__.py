"""The feature cache: what a frozen backbone computes of every picture, stored and used again."""

from camtrain.training.cache.dataset import FeatureDataset
from camtrain.training.cache.filling import cached_split, check_disk
from camtrain.training.cache.plan import announce_missing_cache, check_cache, uses_cache

__all__ = [
    "FeatureDataset",
    "announce_missing_cache",
    "cached_split",
    "check_cache",
    "check_disk",
    "uses_cache",
]
