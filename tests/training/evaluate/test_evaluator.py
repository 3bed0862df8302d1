"""What is measured of each class, and of the maps of kept features."""

import torch
from torch import Tensor

from camtrain.data import Batch
from camtrain.preprocessing import Preprocessing
from camtrain.training.evaluate.box_scores import WholeMaps
from camtrain.training.evaluate.scores import Evaluation
from tests.training.run.test_results import batch_with_masks

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])


def evaluation(**settings: object) -> Evaluation:
    made = Evaluation(3, **settings)
    made.reset()
    return made


def boxed_batch(boxes: list[Tensor]) -> Batch:
    return batch_with_masks()._replace(boxes_xyxy=boxes, input_boxes_xyxy=boxes)


def test_confusions_are_by_truth_and_prediction() -> None:
    measured = evaluation()
    measured.update(LOGITS, None, torch.tensor([0, 1]))
    found = measured.by_class()
    assert found.confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert found.average_precision is None
    assert found.boxes_seen.tolist() == [0, 0, 0]


def test_localization_is_counted_for_the_true_class() -> None:
    measured, maps = evaluation(), torch.zeros(2, 4, 6)
    maps[:, 1:3, 2:4] = 1.0
    right, wrong = torch.tensor([[20, 10, 40, 30]]), torch.tensor([[0, 0, 5, 5]])
    batch = boxed_batch([right, wrong])
    measured.update(LOGITS, WholeMaps(maps, maps), batch.labels, batch)
    found = measured.by_class()
    assert found.boxes_seen.tolist() == [1, 0, 1]
    assert found.boxes_right.tolist() == [1, 0, 0]


def test_several_labels_have_an_average_precision_each() -> None:
    measured = evaluation(task="multilabel")
    measured.update(LOGITS, None, torch.tensor([[1, 0, 0], [0, 1, 0]]))
    found = measured.by_class()
    assert found.confusion is None
    assert found.average_precision[:2].tolist() == [1.0, 0.5]
    assert found.average_precision[2].isnan()
    assert measured.compute()["map"] == 0.75


def test_thousands_of_classes_are_not_confused() -> None:
    assert Evaluation(2000).confusion is not None
    assert Evaluation(2001).confusion is None


def test_spread_vectors_of_kept_features_are_no_maps() -> None:
    features = torch.rand(2, 5, 4, 6)
    features[1] = features[1, :, :1, :1]
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    batch = boxed_batch([box, box])._replace(images=features, is_cached=True)
    measured = evaluation()
    measured.update_statistics(torch.rand(2, 4, 6), batch, Preprocessing((8, 12)))
    assert [int(counts.sum()) for counts in measured.statistics.histograms().values()] == [1, 1, 1]
