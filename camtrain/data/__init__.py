"""From files to tensors: decoding, transforms, sources of labelled pictures, torch data sets."""

from camtrain.data.augmentations import AUGMENTATIONS, Augmentation, Augmented
from camtrain.data.auto_augment import AutoAugment
from camtrain.data.dataset import (
    Batch,
    Damaged,
    EpochSampler,
    PreparedDataset,
    Sample,
    collate,
    seed_of,
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
from camtrain.data.folder import ImageFolder, available_splits
from camtrain.data.source import FileSource, Picture, Source
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
from camtrain.data.views import View

__all__ = [
    "AUGMENTATIONS",
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
    "Picture",
    "PreparedDataset",
    "Sample",
    "Source",
    "SourceOptions",
    "Split",
    "View",
    "available_splits",
    "boxes_to_input",
    "collate",
    "decode_image",
    "fit_channels",
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
