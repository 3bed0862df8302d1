"""What the network sees: by the law of the maps, and by the metric of localization."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from camtrain.localization import LocalizationAccuracy
from camtrain.model.camnet import CAMNet
from camtrain.training import CAMDataModule
from camtrain.training.watch import looking
from camtrain.training.watch.looking import Look, Looker, as_row
from camtrain.training.watch.mistakes import Mistake
from tests.training.conftest import small_module


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
    looker = Looker(dataset, range(8), 8, net, keeps_trunk=False)
    for place, look in enumerate(looker.look(net).watched):
        logits = net.eval()(dataset[place].image[None])[0].detach()
        assert look.predicted.label == int(logits.argmax())
        assert look.true is not None
        assert look.true.label == dataset.labels[place]
        for seen in (look.true, look.predicted):
            logit = seen.class_map.mean() + net.head.bias[seen.label].detach()
            torch.testing.assert_close(logit, logits[seen.label], atol=1e-5, rtol=1e-5)
            assert seen.score == pytest.approx(logits.softmax(0)[seen.label].item(), abs=1e-5)
        assert look.is_right == (look.true.label == look.predicted.label)


@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_a_box_is_right_where_the_metric_says_so(
    net: CAMNet, photographs: Path, resize_mode: str
) -> None:
    dataset = dataset_of(photographs, resize_mode=resize_mode)
    looks = Looker(dataset, range(8), 8, net, keeps_trunk=False).look(net).watched
    for place, look in enumerate(looks):
        assert look.true is not None
        metric, sample = LocalizationAccuracy(), dataset[place]
        heatmap, logits = look.true.heatmap[None], torch.zeros(1, 2)
        label, size = torch.tensor([sample.label]), torch.tensor([sample.size_hw])
        metric.update(heatmap, logits, label, [sample.boxes_xyxy], size)
        assert look.is_located == bool(metric.compute()["gt_known"])


def test_without_boxes_nothing_is_said_about_them(net: CAMNet, photographs: Path) -> None:
    (photographs / "boxes.csv").unlink()
    looks = Looker(dataset_of(photographs), [0], 8, net, keeps_trunk=False).look(net)
    assert looks.watched[0].is_located is None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which part of the network was asked for how many pictures."""
    calls: list[tuple[str, int]] = []
    original = looking.computed

    def counted(
        net: CAMNet, part: Callable[[torch.Tensor], torch.Tensor], inputs: list[torch.Tensor]
    ) -> torch.Tensor:
        parts = {"trunk": "backbone", "neck": "neck"}
        calls.append((parts.get(part.__name__, "network"), len(inputs)))
        return original(net, part, inputs)

    monkeypatch.setattr(looking, "computed", counted)
    return calls


def same_maps(one: list[Look], other: list[Look]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.predicted.class_map, b.predicted.class_map)


def test_an_unchanging_backbone_sees_a_picture_once(
    net: CAMNet, photographs: Path, made: list[tuple[str, int]]
) -> None:
    dataset = dataset_of(photographs)
    mistakes = [Mistake(0.9, place, torch.tensor(0)) for place in (1, 6)]
    plain = Looker(dataset, [0, 1, 2], 8, net, keeps_trunk=False)
    kept = Looker(dataset, [0, 1, 2], 8, net, keeps_trunk=True)
    for wanted in ([], mistakes, mistakes):
        one, other = plain.look(net, wanted), kept.look(net, wanted)
        assert len(one.watched) == 3
        assert len(one.mistakes) == len(wanted)
        same_maps(one.watched, other.watched)
        same_maps([look for _, look in one.mistakes], [look for _, look in other.mistakes])
    # A watched picture that is a mistake is one picture.
    assert [count for name, count in made if name == "network"] == [3, 4, 4]
    assert [count for name, count in made if name == "backbone"] == [3, 1]


def test_what_the_validation_has_computed_is_not_computed_again(
    net: CAMNet, photographs: Path, made: list[tuple[str, int]]
) -> None:
    dataset = dataset_of(photographs)
    looker = Looker(dataset, [0, 1, 2], 8, net, keeps_trunk=False)
    images = torch.stack([dataset[place].image for place in range(8)])
    features = looking.computed(net, net.features, list(images))
    mistakes = [Mistake(0.9, 6, torch.tensor(0), features=features[6])]
    made.clear()
    looker.take(torch.arange(8), features)
    taken = looker.look(net, mistakes)
    assert made == []
    again = looker.look(net, [Mistake(0.9, 6, torch.tensor(0))])
    assert made == [("network", 4)]  # those of the next epoch are others
    same_maps(taken.watched, again.watched)
    same_maps([taken.mistakes[0][1]], [again.mistakes[0][1]])


def test_a_picture_of_no_class_has_only_a_predicted_one(net: CAMNet) -> None:
    dataset = [(torch.rand(3, 20, 28), torch.zeros(2))]
    [look] = Looker(dataset, [0], 8, net, keeps_trunk=False).look(net).watched
    assert look.true is None
    assert not look.is_right
    row = as_row(looking.read_input(*dataset[0], net, path=""), look, ["a", "b"])
    assert row.true_name == "no class"
    assert not row.true_heatmap.any()


def test_damaged_pictures_are_passed_over(net: CAMNet, photographs: Path) -> None:
    sorted(photographs.glob("val/*/*.png"))[1].write_bytes(b"no picture")
    dataset = dataset_of(photographs)
    looker = Looker(dataset, [0, 1, 2, 3], 3, net, keeps_trunk=False)
    assert list(looker.watched) == [0, 2, 3]
    broken = Mistake(0.9, 1, torch.tensor(0))
    assert len(looker.look(net, [broken]).mistakes) == 0


def test_mistakes_of_which_only_the_input_is_known_are_nobody_s(net: CAMNet) -> None:
    """Their place says when they were met, not which pictures they are."""
    images = torch.rand(4, 3, 20, 28)
    dataset = [(image, torch.tensor(0)) for image in images]
    looker = Looker(dataset, [0, 1], 2, net, keeps_trunk=False)
    features = looking.computed(net, net.features, [images[3]])[0]
    mistake = Mistake(0.9, 0, torch.tensor(1), image=images[3], features=features)
    looks = looker.look(net, [mistake])
    same_maps(looks.watched, looker.look(net).watched)
    [(picture, look)] = looks.mistakes
    assert torch.equal(picture.image, images[3])
    alone = Looker([(images[3], torch.tensor(1))], [0], 1, net, keeps_trunk=False).look(net)
    same_maps([look], alone.watched)


def test_pictures_of_several_sizes_go_through_the_network(net: CAMNet) -> None:
    sizes = [(20, 28), (32, 24), (20, 28)]
    dataset = [(torch.rand(3, *size), torch.tensor(0)) for size in sizes]
    looks = Looker(dataset, [0, 1, 2], 3, net, keeps_trunk=False).look(net).watched
    assert [look.predicted.heatmap.shape for look in looks] == [torch.Size(s) for s in sizes]
