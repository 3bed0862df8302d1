"""What the network sees: by the law of the maps, and by the metric of localization."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from camtrain.localization import LocalizationAccuracy
from camtrain.model.camnet import CAMNet
from camtrain.training import CAMDataModule
from camtrain.training.watch import results as results_module
from camtrain.training.watch.mistakes import Mistake, Mistakes
from camtrain.training.watch.results import PictureResult, WatchRunner
from camtrain.training.watch.snapshot import EpochSnapshot, Moment
from tests.training.conftest import quiet_trainer, small_module


@pytest.fixture
def net() -> CAMNet:
    torch.manual_seed(0)
    return small_module().net


def dataset_of(photographs: Path, **settings: object) -> object:
    data = CAMDataModule(root=photographs, size=32, workers=0, **settings)
    data.setup("validate")
    return data.datasets["val"]


def test_the_mean_of_a_map_is_its_logit_without_the_bias(net: CAMNet, photographs: Path) -> None:
    dataset = dataset_of(photographs)
    runner = WatchRunner(dataset, range(8), 8, net, is_backbone_cached=False)
    for index, result in enumerate(runner.run(net)[0]):
        logits = net.eval()(dataset[index].image[None])[0].detach()
        assert result.predicted.label == int(logits.argmax())
        assert result.true is not None
        assert result.true.label == dataset.labels[index]
        for side in (result.true, result.predicted):
            logit = side.class_map.mean() + net.head.bias[side.label].detach()
            torch.testing.assert_close(logit, logits[side.label], atol=1e-5, rtol=1e-5)
            assert side.score == pytest.approx(logits.softmax(0)[side.label].item(), abs=1e-5)
        assert result.is_right == (result.true.label == result.predicted.label)


@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_a_box_is_right_where_the_metric_says_so(
    net: CAMNet, photographs: Path, resize_mode: str
) -> None:
    dataset = dataset_of(photographs, resize_mode=resize_mode)
    results = WatchRunner(dataset, range(8), 8, net, is_backbone_cached=False).run(net)[0]
    for index, result in enumerate(results):
        assert result.true is not None
        metric, sample = LocalizationAccuracy(), dataset[index]
        heatmap, logits = result.true.heatmap[None], torch.zeros(1, 2)
        label, size = torch.tensor([sample.label]), torch.tensor([sample.size_hw])
        metric.update(heatmap, logits, label, [sample.boxes_xyxy], size)
        assert result.is_located == bool(metric.compute()["gt_known"])


def test_without_boxes_nothing_is_said_about_them(net: CAMNet, photographs: Path) -> None:
    (photographs / "boxes.csv").unlink()
    runner = WatchRunner(dataset_of(photographs), [0], 8, net, is_backbone_cached=False)
    [result], _ = runner.run(net)
    assert result.is_located is None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which part of the network was asked for how many pictures."""
    calls: list[tuple[str, int]] = []
    original = results_module.compute

    def counted(
        net: CAMNet, part: Callable[[torch.Tensor], torch.Tensor], inputs: list[torch.Tensor]
    ) -> torch.Tensor:
        parts = {"backbone": "backbone", "neck": "neck"}
        calls.append((parts.get(part.__name__, "network"), len(inputs)))
        return original(net, part, inputs)

    monkeypatch.setattr(results_module, "compute", counted)
    return calls


def same_maps(one: list[PictureResult], other: list[PictureResult]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.predicted.class_map, b.predicted.class_map)


def test_an_unchanging_backbone_sees_a_picture_once(
    net: CAMNet, photographs: Path, made: list[tuple[str, int]]
) -> None:
    dataset = dataset_of(photographs)
    mistakes = [Mistake(0.9, place, torch.tensor(0)) for place in (1, 6)]
    plain = WatchRunner(dataset, [0, 1, 2], 8, net, is_backbone_cached=False)
    cached = WatchRunner(dataset, [0, 1, 2], 8, net, is_backbone_cached=True)
    for wanted in ([], mistakes, mistakes):
        plain_results, cached_results = plain.run(net, wanted), cached.run(net, wanted)
        assert [len(results) for results in plain_results] == [3, len(wanted)]
        for some, same in zip(plain_results, cached_results, strict=True):
            same_maps(some, same)
    # A watched picture that is a mistake is one picture.
    assert [count for name, count in made if name == "network"] == [3, 4, 4]
    assert [count for name, count in made if name == "backbone"] == [3, 1]


def test_what_the_validation_has_computed_is_not_computed_again(
    net: CAMNet, photographs: Path, made: list[tuple[str, int]]
) -> None:
    dataset = dataset_of(photographs)
    runner = WatchRunner(dataset, [0, 1, 2], 8, net, is_backbone_cached=False)
    images = torch.stack([dataset[index].image for index in range(8)])
    features = results_module.compute(net, net.features, list(images))
    mistakes = [Mistake(0.9, 6, torch.tensor(0), features=features[6])]
    made.clear()
    runner.keep_features(torch.arange(8), features)
    taken, [mistake] = runner.run(net, mistakes)
    assert made == []
    again, [same_mistake] = runner.run(net, [Mistake(0.9, 6, torch.tensor(0))])
    assert made == [("network", 4)]  # those of the next epoch are others
    same_maps([*taken, mistake], [*again, same_mistake])


def test_a_picture_of_no_class_has_only_a_predicted_one(net: CAMNet) -> None:
    dataset = [(torch.rand(3, 20, 28), torch.zeros(2))]
    [result] = WatchRunner(dataset, [0], 8, net, is_backbone_cached=False).run(net)[0]
    assert result.true is None
    assert not result.is_right
    row = EpochSnapshot(Moment(0), 0, ["a", "b"], [result], [], None).rows[result]
    assert row.true_name == "no class"
    assert not row.true_heatmap.any()


@pytest.mark.parametrize("bias", [9.0, -9.0])
def test_a_class_alone_is_found_from_a_score_of_a_half_on(bias: float) -> None:
    net = small_module(num_classes=1, task="multilabel").net
    torch.nn.init.constant_(net.head.bias, bias)
    images, labels = torch.rand(4, 3, 24, 32), torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    pictures = list(zip(images, labels, strict=True))
    results, _ = WatchRunner(pictures, range(4), 4, net, is_backbone_cached=False).run(net)
    assert [result.is_right for result in results] == [bias > 0, bias < 0] * 2
    assert [result.true is None for result in results] == [False, True] * 2
    assert {result.predicted.label for result in results} == {0}
    mistakes = Mistakes(8)
    mistakes.update(net, net.eval()(images).detach(), [images, labels])
    worst = mistakes.of_all_processes(quiet_trainer())
    assert sorted(mistake.index for mistake in worst) == ([1, 3] if bias > 0 else [0, 2])
    assert all(mistake.confidence > 0.99 for mistake in worst)


def test_damaged_pictures_are_passed_over(net: CAMNet, photographs: Path) -> None:
    sorted(photographs.glob("val/*/*.png"))[1].write_bytes(b"no picture")
    dataset = dataset_of(photographs)
    runner = WatchRunner(dataset, [0, 1, 2, 3], 3, net, is_backbone_cached=False)
    assert list(runner.pictures) == [0, 2, 3]
    broken = Mistake(0.9, 1, torch.tensor(0))
    assert runner.run(net, [broken])[1] == []


def test_mistakes_of_which_only_the_input_is_known_are_nobody_s(net: CAMNet) -> None:
    """Their place says when they were met, not which pictures they are."""
    images = torch.rand(4, 3, 20, 28)
    dataset = [(image, torch.tensor(0)) for image in images]
    runner = WatchRunner(dataset, [0, 1], 2, net, is_backbone_cached=False)
    features = results_module.compute(net, net.features, [images[3]])[0]
    mistake = Mistake(0.9, 0, torch.tensor(1), image=images[3], features=features)
    watched, [result] = runner.run(net, [mistake])
    same_maps(watched, runner.run(net)[0])
    assert torch.equal(result.picture.image, images[3])
    alone = WatchRunner([(images[3], torch.tensor(1))], [0], 1, net, is_backbone_cached=False)
    same_maps([result], alone.run(net)[0])


def test_pictures_of_several_sizes_go_through_the_network(net: CAMNet) -> None:
    sizes = [(20, 28), (32, 24), (20, 28)]
    dataset = [(torch.rand(3, *size), torch.tensor(0)) for size in sizes]
    results = WatchRunner(dataset, [0, 1, 2], 3, net, is_backbone_cached=False).run(net)[0]
    assert [result.predicted.heatmap.shape for result in results] == [torch.Size(s) for s in sizes]
