"""From files to tensors: decoding, transforms, sources of labelled pictures, torch data sets.

The names load on first use: decoding a picture loads no reader of a data set.
"""

from typing import TYPE_CHECKING

from camtrain.lazy import lazy_names

if TYPE_CHECKING:
    from camtrain.data.augment import AUGMENTATIONS as AUGMENTATIONS
    from camtrain.data.augment import Augmentation as Augmentation
    from camtrain.data.augment import AutoAugment as AutoAugment
    from camtrain.data.dataset import Batch as Batch
    from camtrain.data.dataset import Damaged as Damaged
    from camtrain.data.dataset import Key as Key
    from camtrain.data.dataset import PreparedDataset as PreparedDataset
    from camtrain.data.dataset import Sample as Sample
    from camtrain.data.dataset import collate as collate
    from camtrain.data.dataset import index_of as index_of
    from camtrain.data.dataset import sample_or_damaged as sample_or_damaged
    from camtrain.data.decoding import IMAGE_SUFFIXES as IMAGE_SUFFIXES
    from camtrain.data.decoding import DamagedImageError as DamagedImageError
    from camtrain.data.decoding import Decoded as Decoded
    from camtrain.data.decoding import decode_image as decode_image
    from camtrain.data.decoding import read_image as read_image
    from camtrain.data.decoding import to_rgb as to_rgb
    from camtrain.data.digits import ClutteredDigits as ClutteredDigits
    from camtrain.data.exclude import Without as Without
    from camtrain.data.exclude import make_sources_without as make_sources_without
    from camtrain.data.exclude import read_exclude as read_exclude
    from camtrain.data.exclude import without as without
    from camtrain.data.exclude import write_exclude as write_exclude
    from camtrain.data.loading import EpochSampler as EpochSampler
    from camtrain.data.loading import ResumableLoader as ResumableLoader
    from camtrain.data.loading import SamplerName as SamplerName
    from camtrain.data.loading import seed_of as seed_of
    from camtrain.data.source import FileSource as FileSource
    from camtrain.data.source import ListedFiles as ListedFiles
    from camtrain.data.source import ListedSource as ListedSource
    from camtrain.data.source import Listing as Listing
    from camtrain.data.source import Picture as Picture
    from camtrain.data.source import Source as Source
    from camtrain.data.source import SourcePicture as SourcePicture
    from camtrain.data.source import Split as Split
    from camtrain.data.source import source_of as source_of
    from camtrain.data.sources import SOURCES as SOURCES
    from camtrain.data.sources import ImageFolder as ImageFolder
    from camtrain.data.sources import SourceOptions as SourceOptions
    from camtrain.data.sources import is_divided as is_divided
    from camtrain.data.sources import make_sources as make_sources
    from camtrain.data.splits import write_split as write_split
    from camtrain.data.transforms import CropGeometry as CropGeometry
    from camtrain.data.transforms import boxes_to_input as boxes_to_input
    from camtrain.data.transforms import fit_channels as fit_channels
    from camtrain.data.transforms import normalize as normalize
    from camtrain.data.transforms import prepare as prepare
    from camtrain.data.transforms import resize as resize
    from camtrain.data.transforms import to_pixels as to_pixels
    from camtrain.data.workers import leave_signals_to_parent as leave_signals_to_parent
    from camtrain.data.workers import usable_workers as usable_workers
    from camtrain.maps import maps_on_picture as maps_on_picture

_HOMES = {
    "camtrain.data.augment": "AUGMENTATIONS Augmentation AutoAugment",
    "camtrain.data.dataset": (
        "Batch Damaged Key PreparedDataset Sample collate index_of sample_or_damaged"
    ),
    "camtrain.data.decoding": (
        "IMAGE_SUFFIXES DamagedImageError Decoded decode_image read_image to_rgb"
    ),
    "camtrain.data.digits": "ClutteredDigits",
    "camtrain.data.exclude": "Without make_sources_without read_exclude without write_exclude",
    "camtrain.data.loading": "EpochSampler ResumableLoader SamplerName seed_of",
    "camtrain.data.source": (
        "FileSource ListedFiles ListedSource Listing Picture Source SourcePicture Split source_of"
    ),
    "camtrain.data.sources": "SOURCES ImageFolder SourceOptions is_divided make_sources",
    "camtrain.data.splits": "write_split",
    "camtrain.data.transforms": (
        "CropGeometry boxes_to_input fit_channels normalize prepare resize to_pixels"
    ),
    "camtrain.data.workers": "leave_signals_to_parent usable_workers",
    "camtrain.maps": "maps_on_picture",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
