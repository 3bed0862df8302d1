"""Kept features in place of pictures: the same order, the same mirroring, the same truth."""

from pathlib import Path

import numpy as np
import pytest
import torch

from camtrain.data import DamagedImageError, ImageFolder, PreparedDataset, collate
from camtrain.preprocessing import Preprocessing
from camtrain.training.cache import FeatureDataset

ROUND = Preprocessing(size=(20, 28), mean=(0.5,) * 3, std=(0.5,) * 3)


def pictures_of(root: Path, split: str = "train", **settings: object) -> PreparedDataset:
    return PreparedDataset(ImageFolder(root, split), ROUND, **settings)


def numbered(pictures: PreparedDataset, views: int) -> dict[str, np.ndarray]:
    """Vectors (N, V, 2) that say which picture and view they are of."""
    count = len(pictures)
    vectors = np.stack(np.meshgrid(range(count), range(views), indexing="ij"), axis=-1)
    return {"vectors": vectors.astype(np.float32), "kept": np.ones(count, bool)}


@pytest.mark.parametrize("seed", [0, 7])
def test_features_are_mirrored_when_the_pictures_would_be(photographs: Path, seed: int) -> None:
    pictures, bare = pictures_of(photographs, augment="flip", seed=seed), pictures_of(photographs)
    features = FeatureDataset(pictures, numbered(pictures, 2), for_training=True)
    seen = set()
    for epoch in range(4):
        for index in range(len(pictures)):
            plain, mirrored = bare[index].image, bare[index].image.flip(-1)
            view = int(features[epoch, index].image[1])
            assert torch.equal(pictures[epoch, index].image, mirrored if view else plain)
            assert int(features[epoch, index].image[0]) == index
            seen.add(view)
    assert seen == {0, 1}


def test_the_mirroring_leaves_torch_s_random_state(photographs: Path) -> None:
    pictures = pictures_of(photographs, augment="flip")
    before = torch.random.get_rng_state()
    pictures.is_mirrored((3, 1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_training_sample_knows_label_and_path(photographs: Path) -> None:
    pictures = pictures_of(photographs)
    features = FeatureDataset(pictures, numbered(pictures, 1), for_training=True)
    sample, expected = features[2, 9], pictures[9]
    assert (sample.label, sample.path, sample.index) == (expected.label, expected.path, 9)
    assert sample.image.tolist() == [[[9.0]], [[0.0]]]
    assert len(features) == len(pictures)
    assert features.labels == pictures.labels


def test_a_validation_sample_brings_its_truth_and_is_read_once(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = pictures_of(photographs, "val")
    features = FeatureDataset(pictures, numbered(pictures, 1), for_training=False)
    expected = pictures[5]
    reads = []
    monkeypatch.setattr(
        PreparedDataset, "__getitem__", lambda _, key: reads.append(key) or expected
    )
    for epoch in range(3):
        sample = features[epoch, 5]
        assert torch.equal(sample.boxes_xyxy, expected.boxes_xyxy)
        assert sample.size_hw == expected.size_hw == (40, 56)
        assert sample.image.shape == (2, 1, 1)
    assert len(reads) == 1


def test_maps_where_there_are_boxes_and_constant_ones_elsewhere(photographs: Path) -> None:
    pictures = pictures_of(photographs, "val")
    maps = np.arange(2 * 2 * 3 * 4, dtype=np.float16).reshape(2, 1, 2, 3, 4)
    arrays = {**numbered(pictures, 1), "maps": maps}
    features = FeatureDataset(pictures, arrays, places_with_maps=[1, 4], for_training=False)
    assert torch.equal(features.features(4), torch.from_numpy(maps[1, 0]))
    spread = features.features(3)
    assert spread.shape == (2, 3, 4)
    assert spread.mean((-2, -1)).tolist() == [3.0, 0.0]
    batch = collate([features[index] for index in range(4)], is_cached=True)
    assert batch.is_cached
    assert batch.images.shape == (4, 2, 3, 4)


def test_bfloat16_is_kept_bit_by_bit(photographs: Path) -> None:
    pictures = pictures_of(photographs)
    halves = torch.randn(len(pictures), 1, 2, 3, 4).bfloat16()
    arrays = {"kept": np.ones(16, bool), "maps": halves.view(torch.int16).numpy()}
    places = range(len(pictures))
    features = FeatureDataset(
        pictures, arrays, places_with_maps=places, is_bfloat16=True, for_training=True
    )
    assert torch.equal(features[0, 3].image, halves[3, 0])


def test_a_picture_that_could_not_be_read_is_damaged(photographs: Path) -> None:
    pictures = pictures_of(photographs)
    arrays = numbered(pictures, 2)
    arrays["kept"][3] = False
    features = FeatureDataset(pictures, arrays, for_training=True)
    Path(pictures[3].path).write_bytes(b"")
    with pytest.raises(DamagedImageError, match="cannot be read"):
        features[0, 3]
    batch = collate(features.__getitems__([(0, 2), (0, 3), (0, 4)]))
    assert batch.indices.tolist() == [2, 4]
    assert [(one.item, one.input_shape) for one in batch.damaged] == [(3, (2, 1, 1))]
    vectors, places = features.vectors()
    assert places == [index for index in range(16) if index != 3 for _ in range(2)]
    assert vectors[:, 0].tolist() == places
