"""One class or several per picture: the label of every data set, read in one place."""

import numpy as np
import pytest
import torch

from camtrain.errors import CamtrainValueError
from camtrain.labels import (
    best_classes,
    check_task,
    class_counts,
    class_scores,
    classes_of,
    label_names,
)


def test_the_classes_of_a_label() -> None:
    for label in (3, torch.tensor(3), np.int64(3)):
        assert classes_of(label) == (3,)
    for several in (torch.tensor([0.0, 1.0, 1.0]), np.array([False, True, True]), [0, 1, 1]):
        assert classes_of(several) == (1, 2)
    assert classes_of(torch.zeros(3)) == ()


def test_a_class_without_a_name_is_a_number() -> None:
    assert label_names(torch.tensor([1, 0, 1]), ("cat", "dog")) == ["cat", "2"]
    assert label_names(1, ("cat", "dog")) == ["dog"]


def test_the_best_of_several_classes_may_be_improbable_and_a_class_alone_may_not() -> None:
    classes, confidences = best_classes(torch.tensor([[0.1, 0.2], [0.9, 0.8]]))
    assert (classes.tolist(), confidences.tolist()) == ([1, 0], pytest.approx([0.2, 0.9]))
    classes, confidences = best_classes(torch.tensor([[0.5], [0.2], [torch.nan]]))
    assert classes.tolist() == [0, -1, -1]
    assert confidences.tolist() == pytest.approx([0.5, 0.8, torch.nan], nan_ok=True)


def test_pictures_are_counted_by_class() -> None:
    assert class_counts([2, 0, 2], 4).tolist() == [1, 0, 2, 0]
    assert class_counts([], 2).tolist() == [0, 0]
    several = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert class_counts(torch.tensor(several), 3).tolist() == [1, 0, 2]
    assert class_counts(np.array(several) > 0, 3).tolist() == [1, 0, 2]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 2]])
def test_class_numbers_of_other_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(CamtrainValueError, match=r"class numbers 0\.\.2, got (0 to 3|-1 to 2)"):
        class_counts(labels, 3)


def test_scores_are_a_softmax_or_sigmoids() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0]])
    assert torch.equal(class_scores(logits, "multiclass"), logits.softmax(1))
    assert torch.equal(class_scores(logits, "multilabel"), logits.sigmoid())


def test_an_unknown_task_is_refused() -> None:
    assert check_task("multilabel") == "multilabel"
    with pytest.raises(CamtrainValueError, match="multiclass or multilabel, got 'segmentation'"):
        check_task("segmentation")
