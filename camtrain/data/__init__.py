"""From files to tensors: decoding, transforms, sources of labelled pictures, torch data sets."""

from camtrain.data.augmentations import AUGMENTATIONS, augmentation
from camtrain.data.dataset import Batch, PreparedDataset, Sample, collate
from camtrain.data.decoding import read_image, to_rgb
from camtrain.data.digits import ClutteredDigits
from camtrain.data.folder import ImageFolder, available_splits
from camtrain.data.loader import ResumableLoader, leave_signals_to_parent
from camtrain.data.sampler import EpochSampler, SamplerName
from camtrain.data.seeds import seed_of
from camtrain.data.source import Picture, Source
from camtrain.data.sources import SOURCES, SourceOptions, make_source, source_splits
from camtrain.data.split import Split
from camtrain.data.transforms import (
    boxes_to_input,
    fit_channels,
    maps_on_picture,
    normalize,
    prepare,
    resize,
    to_pixels,
)

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Batch",
    "ClutteredDigits",
    "EpochSampler",
    "ImageFolder",
    "Picture",
    "PreparedDataset",
    "ResumableLoader",
    "Sample",
    "SamplerName",
    "Source",
    "SourceOptions",
    "Split",
    "augmentation",
    "available_splits",
    "boxes_to_input",
    "collate",
    "fit_channels",
    "leave_signals_to_parent",
    "make_source",
    "maps_on_picture",
    "normalize",
    "prepare",
    "read_image",
    "resize",
    "seed_of",
    "source_splits",
    "to_pixels",
    "to_rgb",
]
