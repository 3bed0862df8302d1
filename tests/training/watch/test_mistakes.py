"""The most confident mistakes: neither batches nor order matter, and the worst come first."""

import pytest
import torch
from torch import Tensor

from camtrain.training.watch.mistakes import Mistakes
from tests.training.conftest import quiet_trainer, small_module

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(30, 3, generator=GENERATOR)
LABELS = torch.randint(0, 3, (30,), generator=GENERATOR)
IMAGES = torch.rand(30, 3, 4, 5, generator=GENERATOR)


def found(sizes: list[int], labels: Tensor = LABELS, count: int = 5) -> list[tuple[float, int]]:
    mistakes, first = Mistakes(count), 0
    mistakes.reset()
    net = small_module(num_classes=3, task="multilabel" if labels.ndim > 1 else "multiclass").net
    for size in sizes:
        rows = slice(first, first + size)
        mistakes.update(net, LOGITS[rows], [IMAGES[rows], labels[rows]])
        first += size
    worst = mistakes.of_all_processes(quiet_trainer())
    for one in worst:
        assert one.image is not None
        assert torch.equal(one.image, IMAGES[one.index])
        assert torch.equal(one.label, labels[one.index])
    return [(one.confidence, one.index) for one in worst]


def test_they_are_the_worst_by_the_plain_arithmetic() -> None:
    confidences, predicted = LOGITS.softmax(1).max(1)
    wrong = [
        (c, i) for i, c in enumerate(confidences.tolist()) if int(predicted[i]) != int(LABELS[i])
    ]
    expected = sorted(wrong, key=lambda pair: -pair[0])[:5]
    assert [place for _, place in found([30])] == [place for _, place in expected]
    assert [score for score, _ in found([30])] == pytest.approx([score for score, _ in expected])


@pytest.mark.parametrize("sizes", [[1] * 30, [7, 7, 7, 9], [29, 1]])
def test_batches_do_not_matter(sizes: list[int]) -> None:
    assert [place for _, place in found(sizes)] == [place for _, place in found([30])]


def test_of_several_labels_any_is_right() -> None:
    several = torch.zeros(30, 3)
    several[torch.arange(30), LOGITS.argmax(1)] = 1
    assert found([30], several) == []
    several[4] = 0
    assert [place for _, place in found([30], several)] == [4]


def test_none_are_kept_where_none_are_wanted_or_made() -> None:
    assert found([30], count=0) == []
    assert found([30], LOGITS.argmax(1)) == []
    mistakes = Mistakes(2)
    mistakes.update(small_module().net, LOGITS, [IMAGES, LABELS])
    mistakes.reset()
    assert mistakes.of_all_processes(quiet_trainer()) == []


def test_features_come_along() -> None:
    mistakes, features = Mistakes(3), torch.rand(30, 8, 2, 3)
    mistakes.update(small_module(num_classes=3).net, LOGITS, [IMAGES, LABELS], features=features)
    for one in mistakes.of_all_processes(quiet_trainer()):
        assert one.features is not None
        assert torch.equal(one.features, features[one.index])


def test_places_of_several_processes_interleave() -> None:
    mistakes, wrong = Mistakes(30), (LOGITS.argmax(1) + 1) % 3
    mistakes.reset(rank=1, processes=2)
    net = small_module(num_classes=3).net
    for rows in (slice(0, 7), slice(7, 30)):
        mistakes.update(net, LOGITS[rows], [IMAGES[rows], wrong[rows]])
    places = [one.index for one in mistakes.of_all_processes(quiet_trainer())]
    assert sorted(places) == list(range(1, 60, 2))
