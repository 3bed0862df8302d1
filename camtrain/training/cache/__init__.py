"""The feature cache: what a frozen backbone computes of every picture, stored and used again."""

from camtrain.training.cache.dataset import FeatureDataset
from camtrain.training.cache.filling import cached_split, check_disk
from camtrain.training.cache.plan import check_cache, uses_cache

__all__ = ["FeatureDataset", "cached_split", "check_cache", "check_disk", "uses_cache"]
