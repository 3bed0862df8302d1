"""Sources as torch data sets: prepared samples and batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from camtrain.data.augment import Augmentation, AutoAugment
from camtrain.data.decoding import DamagedImageError
from camtrain.data.loading import seed_of
from camtrain.data.source import FileSource, Shrink, Source, SourcePicture
from camtrain.data.transforms import normalize
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing

Key = int | tuple[int, ...]  # index, (epoch, index) or (epoch, index, draw)


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture as the network takes it.

    Attributes:
        image: (C, h, w) float32, normalized.
        label: Index of its class; for several labels multi-hot, (K,) float32.
        boxes_xyxy: (n, 4) int64, half-open, in pixels of the original picture.
        size_hw: (H, W) of the original picture.
        index: Its place in the data set.
        path: Where the picture came from.
        mask: (H, W) uint8 in pixels of the original picture, see ``SourcePicture``; (0, 0) without
            one.
        input_boxes_xyxy: (m, 4) float32, half-open, in pixels of ``image``: the boxes that are
            still seen, clipped to it; none where a policy of ``auto_augment`` may move the pixels.
    """

    image: Tensor
    label: int | Tensor
    boxes_xyxy: Tensor
    size_hw: tuple[int, int]
    index: int
    path: str
    mask: Tensor
    input_boxes_xyxy: Tensor


class Damaged(NamedTuple):
    """Takes the place of a sample whose picture cannot be read."""

    item: int  # its place in the data set
    message: str  # one sentence that names the file
    input_shape: tuple[int, int, int]  # (C, h, w) of the image that is missing


class Batch(NamedTuple):
    """Samples side by side; see ``Sample`` for the columns of the same names.

    Attributes:
        images: (B, C, h, w) float32, normalized.
        labels: (B,) int64; for several labels per picture multi-hot, (B, K) float32.
        boxes_xyxy: B tensors.
        sizes_hw: (B, 2) int64.
        indices: (B,) int64.
        paths: B paths.
        masks: B tensors.
        input_boxes_xyxy: B tensors.
        places: (B,) int64, places in the batch as it was planned, with the damaged pictures.
        damaged: Pictures that could not be read, and are in none of the columns above.
        is_cached: ``images`` holds cached features of the backbone, (B, C, h, w); where the pooled
            vector is all that is needed, a map of 1 x 1, whose pooling is itself. Such training
            batches know neither boxes nor sizes.
    """

    images: Tensor
    labels: Tensor
    boxes_xyxy: list[Tensor]
    sizes_hw: Tensor
    indices: Tensor
    paths: list[str]
    masks: list[Tensor]
    input_boxes_xyxy: list[Tensor]
    places: Tensor
    damaged: tuple[Damaged, ...]
    is_cached: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Send tensors of single pictures to another process as arrays.

        Each tensor that processes share is an open file, and some systems allow 1,024.
        """
        columns = [[_as_array(v) for v in c] if isinstance(c, list) else c for c in self]
        return _batch_of_arrays, tuple(columns)

    def to(self, device: torch.device) -> Batch:
        """The batch with images and labels on a device; nothing reads the other columns there."""
        is_queued = device.type == "cuda"
        images, labels = (t.to(device, non_blocking=is_queued) for t in self[:2])
        return self._replace(images=images, labels=labels)

    def pin_memory(self) -> Batch:
        """The batch with images and labels in pinned memory, for torch's loader."""
        return self._replace(images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def take(self, places: list[int]) -> Batch:
        """The batch with only the pictures at these places of it."""
        columns: dict[str, Any] = {
            name: column[places] if isinstance(column, Tensor) else [column[n] for n in places]
            for name, column in self._asdict().items()
            if isinstance(column, Tensor | list)
        }
        return self._replace(**columns)


def _as_array(value: object) -> object:
    return value.numpy(force=True) if isinstance(value, Tensor) else value


def _batch_of_arrays(*columns: Any) -> Batch:
    """The inverse of ``Batch.__reduce__``."""
    tensors: list[Any] = [
        [v if isinstance(v, str) else torch.from_numpy(v) for v in c] if isinstance(c, list) else c
        for c in columns
    ]
    return Batch(*tensors)


class PreparedDataset(Dataset[Sample]):
    """The pictures of a source, augmented and normalized.

    An item is asked for by ``(epoch, index)``, as ``EpochSampler`` does, or by ``index``, which
    means epoch 0. The augmentation depends on seed, epoch and index alone (and on the draw, where
    an epoch draws an item several times), and leaves torch's random state as it was. A loader gets
    ``Damaged`` for a file that cannot be read; ``dataset[key]`` raises the error.

    Args:
        source: Where the pictures come from.
        preprocessing: Size and normalization.
        augment: Name of the augmentation; ``"none"`` is what evaluation and prediction do.
        auto_augment: See ``Augmentation``.
        hide_and_seek: See ``Augmentation``.
        seed: Of the augmentation.
        limit: Keep at most this many pictures, evenly spaced over the source.
        exif: Turn pictures upright; False for a source whose boxes are those of the stored pixels.
        reduced: Decode large JPEGs at 1/2, 1/4 or 1/8 where the network's input needs no more
            pixels: much faster, on average half a gray level of 255 off. Boxes, masks and sizes
            stay those of the whole picture.

    Raises:
        CamtrainValueError: An unknown augmentation, a limit below 1, or ``exif=False`` for a source
            that decodes its files itself.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        *,
        augment: str = "none",
        auto_augment: AutoAugment | None = None,
        hide_and_seek: float = 0.0,
        seed: int = 0,
        limit: int | None = None,
        exif: bool = True,
        reduced: bool = False,
    ) -> None:
        """Choose the items; no picture is read yet."""
        if limit is not None and limit < 1:
            raise CamtrainValueError(f"limit must be at least 1 picture, or None, got {limit}.")
        self._files = source if isinstance(source, FileSource) else None
        if self._files is None and not exif:
            raise CamtrainValueError(
                f"exif must be true for {type(source).__name__}, which reads its pictures itself."
            )
        self.source = source
        self.preprocessing = preprocessing
        self.seed = seed
        self.exif = exif
        self.reduced = reduced and preprocessing.interpolation != "nearest"
        self.augmentation = Augmentation(augment, preprocessing, auto_augment, hide_and_seek)
        count = min(len(source), limit or len(source))
        self.indices = [place * len(source) // count for place in range(count)]

    @property
    def labels(self) -> list[int] | Tensor:
        """The label of every item; for several labels per picture multi-hot, (N, K)."""
        labels = self.source.labels
        if isinstance(labels, Tensor):
            return labels[self.indices]
        return [labels[index] for index in self.indices]

    @property
    def groups(self) -> Tensor | None:
        """The group of every item, see ``EpochSampler``; None without groups."""
        groups = getattr(self.source, "groups", None)
        return None if groups is None else torch.as_tensor(groups)[self.indices]

    def __len__(self) -> int:
        """The number of items."""
        return len(self.indices)

    def picture(self, index: int, shrink: Shrink | None = None) -> SourcePicture:
        """The picture at ``index`` without augmentation; for ``shrink`` see ``decode_image``."""
        row = self.indices[index]
        if self._files is None:
            return self.source.read(row)
        return self._files.read_file(row, exif=self.exif, shrink=shrink)

    def __getitem__(self, key: Key) -> Sample:
        """The sample at ``(epoch, index)`` or ``(epoch, index, draw)``."""
        index = index_of(key)
        with self._seed_for_sample(key):
            draw = cache(self.augmentation.draw)  # once per picture: decoding may ask for it first
            shrink = (lambda size_hw: draw(size_hw).shrink) if self.reduced else None
            picture = self.picture(index, shrink)
            geometry = draw(picture.size_hw).aligned(picture.factor)
            image = self.augmentation.apply(geometry, picture.image, factor=picture.factor)
        has_moved = self.augmentation.auto_augment is not None
        return Sample(
            image=normalize(image, self.preprocessing),
            label=picture.label,
            boxes_xyxy=picture.boxes_xyxy,
            size_hw=picture.size_hw,
            index=index,
            path=picture.path,
            mask=torch.zeros(0, 0, dtype=torch.uint8) if picture.mask is None else picture.mask,
            input_boxes_xyxy=geometry.boxes(picture.boxes_xyxy[: 0 if has_moved else None]),
        )

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample | Damaged]:
        """The samples of a batch, for torch's loader."""
        input_shape = (len(self.preprocessing.mean), *self.preprocessing.size)
        return [sample_or_damaged(self, key, input_shape) for key in keys]

    def is_mirrored(self, key: Key) -> bool:
        """Whether the picture at ``(epoch, index)`` is mirrored, without reading it."""
        with self._seed_for_sample(key):
            return self.augmentation.draw(self.preprocessing.size).is_mirrored

    @contextmanager
    def _seed_for_sample(self, key: Key) -> Iterator[None]:
        """Seed torch's random numbers for one sample in a context, and restore them after it."""
        with torch.random.fork_rng(devices=[]):
            numbers = key if isinstance(key, tuple) else (0, key)
            # not torch.manual_seed, which would seed the GPU's random numbers too
            torch.default_generator.manual_seed(seed_of(self.seed, *numbers))
            yield


def index_of(key: Key) -> int:
    """The place in the data set that a key names."""
    return key[1] if isinstance(key, tuple) else key


def sample_or_damaged(
    dataset: Dataset[Sample], key: Key, input_shape: tuple[int, int, int]
) -> Sample | Damaged:
    """The sample of a data set at ``key``, or ``Damaged`` where its picture cannot be read."""
    try:
        return dataset[key]
    except DamagedImageError as error:
        return Damaged(index_of(key), str(error), input_shape)


def damaged_error(message: str) -> DamagedImageError:
    """The error of an evaluation that meets a damaged file, with the option that allows it."""
    return DamagedImageError(f"{message.removesuffix('.')}, or give --data.allow_damaged true.")


class DamagedFiles:
    """Warns once of each damaged file, and raises where there may be none, or no more of them.

    Args:
        max_damaged: Training files that may be damaged.
        allow_damaged: Whether files of evaluation may be.
    """

    def __init__(self, max_damaged: int, *, allow_damaged: bool) -> None:
        self.max_damaged = max_damaged
        self.allow_damaged = allow_damaged
        self._items: set[tuple[bool, int]] = set()  # of training or not, place in the split
        self._refusal: str | None = None  # of this process, see `refuse`

    def record(self, batch: Batch, *, is_training: bool, processes: int = 1) -> None:
        """Warn of the damaged files of a batch.

        Raises:
            DamagedImageError: In evaluation, of the first; in training, of one too many. One of
                several processes leaves that to ``refuse``: the others would wait for it.
        """
        try:
            self._record(batch, is_training=is_training)
        except DamagedImageError as error:
            if processes == 1:
                raise
            self._refusal = self._refusal or str(error)

    def refuse(self, processes: int) -> None:
        """Raise DamagedImageError in every process, if one has met what may not be."""
        if processes > 1:
            refusals = [self._refusal] * processes
            torch.distributed.all_gather_object(refusals, self._refusal)
            self._refusal = None
            for refusal in filter(None, refusals):
                raise DamagedImageError(refusal)

    def _record(self, batch: Batch, *, is_training: bool) -> None:
        for item, message, _ in batch.damaged:
            if not is_training and not self.allow_damaged:
                raise damaged_error(message)
            if (is_training, item) not in self._items:
                self._items.add((is_training, item))
                warnings.warn(f"Skipped: {message}", stacklevel=3)
            count = sum(of_training for of_training, _ in self._items)
            if is_training and count > self.max_damaged:
                raise DamagedImageError(
                    f"More than max_damaged={self.max_damaged} files are damaged; the last one: "
                    f"{message}"
                )


def collate(samples: Sequence[Sample | Damaged], *, is_cached: bool = False) -> Batch:
    """Stack samples to a batch; give it to a ``DataLoader`` as ``collate_fn``."""
    damaged = tuple(sample for sample in samples if isinstance(sample, Damaged))
    numbered = [(n, sample) for n, sample in enumerate(samples) if isinstance(sample, Sample)]
    images = [sample.image for _, sample in numbered]
    labels = [torch.as_tensor(sample.label) for _, sample in numbered]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, *damaged[0].input_shape),
        labels=torch.stack(labels) if labels else torch.empty(0, dtype=torch.int64),
        boxes_xyxy=[sample.boxes_xyxy for _, sample in numbered],
        sizes_hw=torch.tensor([sample.size_hw for _, sample in numbered]).reshape(-1, 2).long(),
        indices=torch.tensor([sample.index for _, sample in numbered], dtype=torch.int64),
        paths=[sample.path for _, sample in numbered],
        masks=[sample.mask for _, sample in numbered],
        input_boxes_xyxy=[sample.input_boxes_xyxy for _, sample in numbered],
        places=torch.tensor([place for place, _ in numbered], dtype=torch.int64),
        damaged=damaged,
        is_cached=is_cached,
    )
