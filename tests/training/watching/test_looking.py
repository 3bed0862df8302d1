"""What the network sees: by the law of the maps, and by the metric of localization."""

from pathlib import Path

import pytest
import torch

from camtrain.localization import LocalizationAccuracy
from camtrain.model.camnet import CAMNet
from camtrain.training import CAMDataModule
from camtrain.training.watching import looking
from camtrain.training.watching.looking import Looker, as_row
from camtrain.training.watching.mistakes import Mistake
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
    looker = Looker(dataset, range(8), net, keeps_features=False)
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
    looks = Looker(dataset, range(8), net, keeps_features=False).look(net).watched
    for place, look in enumerate(looks):
        assert look.true is not None
        metric, sample = LocalizationAccuracy(), dataset[place]
        heatmap, logits = look.true.heatmap[None], torch.zeros(1, 2)
        label, size = torch.tensor([sample.label]), torch.tensor([sample.size_hw])
        metric.update(heatmap, logits, label, [sample.boxes_xyxy], size)
        assert look.is_located == bool(metric.compute()["gt_known"])


def test_without_boxes_nothing_is_said_about_them(net: CAMNet, photographs: Path) -> None:
    (photographs / "boxes.csv").unlink()
    looks = Looker(dataset_of(photographs), [0], net, keeps_features=False).look(net)
    assert looks.watched[0].is_located is None


def test_kept_features_show_the_same_and_are_made_once(
    net: CAMNet, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = looking.trunk_of

    def counted(images: list[torch.Tensor], net: CAMNet) -> torch.Tensor:
        made.append(len(images))
        return original(images, net)

    monkeypatch.setattr(looking, "trunk_of", counted)
    dataset = dataset_of(photographs)
    mistakes = [Mistake(0.9, place, torch.tensor(0), None) for place in (1, 6)]
    plain = Looker(dataset, [0, 1, 2], net, keeps_features=False)
    kept = Looker(dataset, [0, 1, 2], net, keeps_features=True)
    for wanted in ([], mistakes, mistakes):
        one, other = plain.look(net, wanted), kept.look(net, wanted)
        assert len(one.watched) == len(other.watched) == 3
        assert len(one.mistakes) == len(other.mistakes) == len(wanted)
        for a, b in zip(one.watched, other.watched, strict=True):
            torch.testing.assert_close(a.predicted.class_map, b.predicted.class_map)
    assert made == [3, 3, 4, 1, 4]  # a watched picture that is a mistake is one picture


def test_a_picture_of_no_class_has_only_a_predicted_one(net: CAMNet) -> None:
    dataset = [(torch.rand(3, 20, 28), torch.zeros(2))]
    [look] = Looker(dataset, [0], net, keeps_features=False).look(net).watched
    assert look.true is None
    assert not look.is_right
    row = as_row(looking.read_input(*dataset[0], net, path=""), look, ["a", "b"])
    assert row.true_name == "no class"
    assert not row.true_heatmap.any()


def test_damaged_pictures_are_left_out(net: CAMNet, photographs: Path) -> None:
    sorted(photographs.glob("val/*/*.png"))[1].write_bytes(b"no picture")
    looker = Looker(dataset_of(photographs), [0, 1, 2], net, keeps_features=False)
    assert len(looker.pictures) == 2
    broken = Mistake(0.9, 1, torch.tensor(0), None)
    assert len(looker.look(net, [broken]).mistakes) == 0
