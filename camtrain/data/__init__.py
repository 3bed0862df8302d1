"""From files to tensors: decoding, transforms, sources of labelled pictures, torch data sets."""

from camtrain.data.augmentations import AUGMENTATIONS, Augmentation, Augmented
from camtrain.data.auto_augment import AutoAugment
from camtrain.data.dataset import (
    Batch,
    Damaged,
    Key,
    PreparedDataset,
    Sample,
    collate,
    index_of,
    sample_or_damaged,
)
from camtrain.data.decoding import (
    DamagedImageError,
    Decode,
    Decoded,
    decode_image,
    read_image,
    to_rgb,
)
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
from camtrain.data.loader import ResumableLoader, leave_signals_to_parent
from camtrain.data.sampler import EpochSampler, SamplerName
from camtrain.data.seeds import seed_of
from camtrain.data.source import FileSource, Picture, Source
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
from camtrain.data.tree import IMAGE_SUFFIXES
from camtrain.data.views import View

__all__ = [
    "AUGMENTATIONS",
    "IMAGE_SUFFIXES",
    "SOURCES",
    "Augmentation",
    "Augmented",
    "AutoAugment",
    "Batch",
    "ClutteredDigits",
    "Damaged",
    "DamagedImageError",
    "Decode",
    "Decoded",
    "EpochSampler",
    "FileSource",
    "ImageFolder",
    "Key",
    "ListedFiles",
    "ListedSource",
    "Listing",
    "Picture",
    "PreparedDataset",
    "ResumableLoader",
    "Sample",
    "SamplerName",
    "Source",
    "SourceOptions",
    "Split",
    "View",
    "Without",
    "boxes_to_input",
    "collate",
    "decode_image",
    "fit_channels",
    "index_of",
    "is_divided",
    "leave_signals_to_parent",
    "make_sources",
    "make_sources_without",
    "maps_on_picture",
    "normalize",
    "prepare",
    "read_exclude",
    "read_image",
    "resize",
    "sample_or_damaged",
    "seed_of",
    "source_of",
    "to_pixels",
    "to_rgb",
    "without",
    "write_exclude",
    "write_split",
]
