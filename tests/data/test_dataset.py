"""Samples, batches, and the law that an augmentation depends on (seed, epoch, index) alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from camtrain.data import (
    Batch,
    ClutteredDigits,
    EpochSampler,
    Picture,
    PreparedDataset,
    collate,
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

    def read(self, index: int) -> Picture:
        """The same noise whenever it is read."""
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 20 + index, 30), dtype=torch.uint8, generator=generator)
        boxes_xyxy = torch.tensor([[1, 2, 3, 4]] * (index % 3)).reshape(-1, 4)
        return Picture(image, self.labels[index], boxes_xyxy, f"noise/{index}")


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
