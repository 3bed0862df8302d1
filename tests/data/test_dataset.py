"""Samples, batches, and the law that an augmentation depends on (seed, epoch, index) alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from camtrain.data import (
    AutoAugment,
    Batch,
    ClutteredDigits,
    Damaged,
    DamagedImageError,
    EpochSampler,
    ImageFolder,
    PreparedDataset,
    SourcePicture,
    collate,
    decode_image,
    prepare,
)
from camtrain.errors import CamtrainValueError
from camtrain.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(24, 36))


class Noise:
    """Pictures of noise, sizes (20 + i, 30), sorted by class."""

    class_names = ("a", "b")

    def __init__(self, length: int = 11) -> None:
        self.labels = [2 * index // length for index in range(length)]

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.labels)

    def read(self, index: int) -> SourcePicture:
        """The same noise whenever it is read."""
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 20 + index, 30), dtype=torch.uint8, generator=generator)
        boxes_xyxy = torch.tensor([[1, 2, 3, 4]] * (index % 3)).reshape(-1, 4)
        return SourcePicture(image, self.labels[index], boxes_xyxy, f"noise/{index}")


def epoch_images(epoch: int, options: dict[str, Any]) -> dict[int, Tensor]:
    """The images of one epoch as a loader gives them, by their place in the data set."""
    dataset = PreparedDataset(Noise(), PREPROCESSING, augment="imagenet", seed=5)
    sampler = EpochSampler(len(dataset), shuffle=True, seed=5)
    sampler.set_epoch(epoch)
    loader = DataLoader(dataset, sampler=sampler, collate_fn=collate, **options)
    return {
        int(i): image
        for batch in loader
        for i, image in zip(batch.indices, batch.images, strict=True)
    }


@pytest.mark.parametrize(
    "options", [{"batch_size": 3}, {"batch_size": 4, "num_workers": 2}, {"batch_size": 1}]
)
def test_an_augmentation_depends_on_seed_epoch_and_index_alone(options: dict[str, Any]) -> None:
    torch.manual_seed(len(options))
    found = epoch_images(2, options)
    dataset = PreparedDataset(Noise(), PREPROCESSING, augment="imagenet", seed=5)
    assert found.keys() == set(range(len(dataset)))
    for index, image in found.items():
        assert torch.equal(image, dataset[2, index].image)
        assert not torch.equal(image, dataset[3, index].image)
        draws = [dataset[2, index, draw].image for draw in (0, 1, 1)]
        assert torch.equal(draws[1], draws[2])
        assert not torch.equal(draws[0], draws[1])  # twice in one epoch, another way each time
    other_seed = PreparedDataset(Noise(), PREPROCESSING, augment="imagenet", seed=6)
    assert not torch.equal(other_seed[2, 0].image, found[0])


def test_an_item_leaves_the_global_random_numbers_as_they_were() -> None:
    dataset = PreparedDataset(Noise(), PREPROCESSING, augment="light")
    state = torch.get_rng_state()
    first = dataset[0].image
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, dataset[0, 0].image)  # a plain index means epoch 0


def test_without_augmentation_a_sample_is_what_prediction_sees() -> None:
    source = Noise()
    sample = PreparedDataset(source, PREPROCESSING)[7, 4]
    assert torch.equal(sample.image, prepare(source.read(4).image, PREPROCESSING))
    assert (sample.label, sample.size_hw, sample.index) == (0, (24, 30), 4)
    assert sample.boxes_xyxy.tolist() == [[1, 2, 3, 4]]


def test_a_limit_is_spread_over_the_classes() -> None:
    dataset = PreparedDataset(Noise(100), PREPROCESSING, limit=4)
    assert dataset.indices == [0, 25, 50, 75]
    assert dataset.labels == [0, 0, 1, 1]
    assert [dataset[index].index for index in range(len(dataset))] == [0, 1, 2, 3]
    assert len(PreparedDataset(Noise(5), PREPROCESSING, limit=9)) == 5
    with pytest.raises(CamtrainValueError, match="limit must be at least 1"):
        PreparedDataset(Noise(), PREPROCESSING, limit=0)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sampler, twin = (EpochSampler(50, shuffle=True, seed=1) for _ in range(2))
    first = list(sampler)
    assert first == list(sampler) == list(twin)
    assert sorted(index for _, index in first) == list(range(50))
    sampler.set_epoch(1)
    assert {epoch for epoch, _ in sampler} == {1}
    assert [index for _, index in sampler] != [index for _, index in first]
    assert list(EpochSampler(50, shuffle=True, seed=2)) != first
    assert list(EpochSampler(3, shuffle=False, seed=1)) == [(0, 0), (0, 1), (0, 2)]
    assert len(sampler) == 50


def test_a_batch_keeps_every_box_size_and_label() -> None:
    dataset = PreparedDataset(Noise(), PREPROCESSING)
    batch = collate([dataset[index] for index in (2, 9, 10)])
    assert isinstance(batch, Batch)
    assert batch.images.shape == (3, 3, 24, 36)
    assert batch.images.dtype == torch.float32
    assert batch.labels.tolist() == [0, 1, 1]
    assert [len(boxes) for boxes in batch.boxes_xyxy] == [2, 0, 1]
    assert batch.sizes_hw.tolist() == [[22, 30], [29, 30], [30, 30]]
    assert batch.indices.tolist() == [2, 9, 10]


def test_workers_draw_the_same_digits() -> None:
    gray = Preprocessing(size=(64, 64), mean=(0.5,), std=(0.5,))
    dataset = PreparedDataset(ClutteredDigits("train", length=10), gray)
    here, there = (
        torch.cat([b.images for b in DataLoader(dataset, 4, collate_fn=collate, num_workers=n)])
        for n in (0, 2)
    )
    assert here.shape == (10, 1, 64, 64)
    assert torch.equal(here, there)


class Files:
    """One class of picture files, each with the same box."""

    class_names = ("a", "b")

    def __init__(self, paths: list[Path], box: tuple[int, ...]) -> None:
        self.paths, self.labels = [str(path) for path in paths], [0] * len(paths)
        self.boxes_xyxy = torch.tensor([box])

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def read(self, index: int) -> SourcePicture:
        """The picture, whole."""
        return self.read_file(index)

    def read_file(self, index: int, **options: Any) -> SourcePicture:
        """The picture, decoded as the options say."""
        path, boxes_xyxy = self.paths[index], self.boxes(index)
        image, size_hw, factor = decode_image(path, **options)
        return SourcePicture(image, self.labels[index], boxes_xyxy, path, None, size_hw, factor)

    def boxes(self, index: int) -> Tensor:
        """The one box."""
        return self.boxes_xyxy


@pytest.fixture
def large(tmp_path: Path) -> Files:
    """A JPEG of 500 x 701 pixels, dark with a bright box."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (500, 701, 3)).astype(np.uint8)
    pixels[120:360, 200:520] += 180
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    return Files([tmp_path / "large.jpg"], (200, 120, 520, 360))


def test_a_reduced_sample_is_the_whole_one_within_a_few_levels(large: Files) -> None:
    preprocessing = Preprocessing(size=(48, 64), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    for name in ("none", "paper", "imagenet", "light"):
        whole, reduced = (
            PreparedDataset(large, preprocessing, augment=name, reduced=reduced)
            for reduced in (False, True)
        )
        for epoch in range(6):
            one, other = whole[epoch, 0], reduced[epoch, 0]
            assert other.size_hw == one.size_hw == (500, 701)
            assert torch.equal(other.boxes_xyxy, one.boxes_xyxy)
            # The part begins where a reduced pixel does: within 7 of 500 pixels.
            assert (other.input_boxes_xyxy - one.input_boxes_xyxy).abs().max() < 4
            bright = (other.image[1] > 120).nonzero()
            found = torch.cat([bright.amin(0).flip(0), bright.amax(0).flip(0) + 1])
            assert (found - other.input_boxes_xyxy[0]).abs().max() <= 1
            if name in ("none", "paper"):
                assert (one.image - other.image).abs().mean() < 2  # levels of 255
                assert torch.equal(other.input_boxes_xyxy, one.input_boxes_xyxy)
            assert not torch.equal(one.image, other.image)


def test_small_pictures_are_never_reduced(large: Files) -> None:
    preprocessing = Preprocessing(size=(260, 360))
    for epoch in range(4):
        one, other = (
            PreparedDataset(large, preprocessing, augment="imagenet", reduced=reduced)[epoch, 0]
            for reduced in (False, True)
        )
        assert torch.equal(one.image, other.image)


def test_hide_and_seek_hides_cells_under_the_mean_colour_and_nothing_else() -> None:
    plain = PreparedDataset(Noise(), PREPROCESSING)
    hiding = PreparedDataset(Noise(), PREPROCESSING, hide_and_seek=0.5)
    hidden = 0
    for index in range(11):
        before, after = plain[index].image, hiding[index].image
        cells = (before != after).any(0).reshape(4, 6, 4, 9).permute(0, 2, 1, 3).flatten(2)
        share = cells.float().mean(-1)
        assert ((share == 0) | (share > 0.9)).all()
        hidden += int((share > 0).sum())
        covered = (before != after).any(0)
        assert after[:, covered].abs().max() < 0.02
        assert torch.equal(hiding[index].image, after)
        assert not torch.equal(hiding[1, index].image, after)
    assert 50 < hidden < 126  # of 176


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_an_auto_augment_depends_on_seed_epoch_and_index_alone(policy: AutoAugment) -> None:
    dataset = PreparedDataset(Noise(), PREPROCESSING, auto_augment=policy)
    plain = PreparedDataset(Noise(), PREPROCESSING)
    first = [dataset[2, index].image for index in range(11)]
    assert not any(len(dataset[2, index].input_boxes_xyxy) for index in range(11))  # pixels move
    torch.manual_seed(1)
    assert all(torch.equal(dataset[2, index].image, first[index]) for index in range(11))
    assert sum(torch.equal(plain[index].image, first[index]) for index in range(11)) < 5


def test_a_loader_is_told_of_damaged_files_and_others_get_an_error(
    photographs: Path,
) -> None:
    files = sorted(photographs.glob("train/*/*.png"))
    files[2].write_bytes(files[2].read_bytes()[:500])
    source = ImageFolder(photographs, "train")
    for workers in (0, 2):
        dataset = PreparedDataset(source, PREPROCESSING)
        with pytest.raises(DamagedImageError, match=r"2\.png cannot be read"):
            dataset[2]
        first, *rest = DataLoader(dataset, 4, collate_fn=collate, num_workers=workers)
        assert first.indices.tolist() == [0, 1, 3]
        assert first.places.tolist() == [0, 1, 3]
        assert len(first.images) == len(first.paths) == len(first.input_boxes_xyxy) == 3
        [damaged] = first.damaged
        assert isinstance(damaged, Damaged)
        assert damaged.item == 2
        assert str(files[2]) in damaged.message
        assert not any(batch.damaged for batch in rest)


def test_a_batch_may_be_damaged_altogether() -> None:
    batch = collate([Damaged(3, "The image x cannot be read.", (3, 24, 36))] * 2)
    assert batch.images.shape == (0, 3, 24, 36)
    assert batch.labels.shape == batch.indices.shape == batch.places.shape == (0,)
    assert batch.sizes_hw.shape == (0, 2)
    assert len(batch.damaged) == 2


def test_stored_pixels_need_a_source_of_files(large: Files) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    with Image.open(large.paths[0]) as image:
        image.save(large.paths[0], exif=exif)
    assert PreparedDataset(large, PREPROCESSING)[0].size_hw == (701, 500)
    assert PreparedDataset(large, PREPROCESSING, exif=False)[0].size_hw == (500, 701)
    assert PreparedDataset(large, PREPROCESSING, exif=False).picture(0).image.shape[1:] == (
        500,
        701,
    )
    with pytest.raises(CamtrainValueError, match="exif must be true for Noise"):
        PreparedDataset(Noise(), PREPROCESSING, exif=False)


def test_a_device_gets_images_and_labels_alone() -> None:
    dataset = PreparedDataset(Noise(), PREPROCESSING)
    batch = collate([dataset[index] for index in range(3)])
    moved = batch.to(torch.device("meta"))
    assert moved.images.is_meta
    assert moved.labels.is_meta
    assert all(column is other for column, other in zip(moved[2:], batch[2:], strict=True))
