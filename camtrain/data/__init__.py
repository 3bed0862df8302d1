"""From files to tensors: decoding, transforms, sources of labelled pictures, torch data sets."""

from camtrain.data.augmentations import AUGMENTATIONS, augmentation
from camtrain.data.dataset import Batch, EpochSampler, PreparedDataset, Sample, collate, seed_of
from camtrain.data.decoding import read_image, to_rgb
from camtrain.data.digits import ClutteredDigits
from camtrain.data.division import write_split
from camtrain.data.exclude import (
    Without,
    make_sources_without,
    read_exclude,
    without,
    write_exclude,
)
from camtrain.data.folder import ImageFolder
from camtrain.data.listing import ListedFiles, ListedSource, Listing, source_of
from camtrain.data.source import Picture, Source
from camtrain.data.sources import SOURCES, SourceOptions, is_divided, make_sources
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
    "ListedFiles",
    "ListedSource",
    "Listing",
    "Picture",
    "PreparedDataset",
    "Sample",
    "Source",
    "SourceOptions",
    "Split",
    "Without",
    "augmentation",
    "boxes_to_input",
    "collate",
    "fit_channels",
    "is_divided",
    "make_sources",
    "make_sources_without",
    "maps_on_picture",
    "normalize",
    "prepare",
    "read_exclude",
    "read_image",
    "resize",
    "seed_of",
    "source_of",
    "to_pixels",
    "to_rgb",
    "without",
    "write_exclude",
    "write_split",
]
