"""The loss of a network with a foreground head: by hand, and what it is refused with."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camtrain import CAMNet
from camtrain.errors import CamtrainValueError
from camtrain.model.foreground import ForegroundHead
from camtrain.model.refine import BackboneOutput
from camtrain.training.learn.objective import AREA, absence_loss, foreground_loss
from tests.training.conftest import small_module


def network(task: str = "multiclass") -> tuple[CAMNet, BackboneOutput]:
    torch.manual_seed(0)
    net = CAMNet(nn.Identity(), nn.Linear(4, 3), task=task)  # type: ignore[arg-type]
    net.foreground = ForegroundHead([5])
    return net, BackboneOutput(torch.randn(2, 4, 3, 2), torch.randn(2, 5, 3, 2))


def parts_of(net: CAMNet, output: BackboneOutput) -> tuple[list[Tensor], Tensor]:
    """Logits of whole, foreground and rest, place by place; and the foreground."""
    assert net.foreground is not None
    foreground = net.foreground(output.vectors)
    logits = []
    for weights in (torch.ones_like(foreground), foreground, 1 - foreground):
        pooled = (output.features * weights).sum((2, 3)) / weights.sum((2, 3))
        logits.append(net.head(pooled))
    return logits, foreground


def test_loss_of_one_class_per_picture_by_hand() -> None:
    net, output = network()
    labels = torch.tensor([2, 0])
    (whole, inside, background), foreground = parts_of(net, output)
    scores = background.softmax(1)[[0, 1], labels]
    expected = F.cross_entropy(whole, labels) + F.cross_entropy(inside, labels)
    expected = expected - (1 - scores).log().mean() + AREA * foreground.mean()
    torch.testing.assert_close(foreground_loss(net, output, labels), expected)
    losses = foreground_loss(net, output, labels, reduction="none")
    assert losses.shape == (2,)
    torch.testing.assert_close(losses.mean(), expected)


def test_loss_of_several_classes_per_picture_by_hand() -> None:
    net, output = network("multilabel")
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]])
    (whole, inside, background), foreground = parts_of(net, output)
    expected = sum(
        F.binary_cross_entropy_with_logits(logits, labels.float()) for logits in (whole, inside)
    )
    absent = -(1 - background.sigmoid()[0, [0, 2]]).log().sum() / labels.numel()
    expected = expected + absent + AREA * foreground.mean()
    torch.testing.assert_close(foreground_loss(net, output, labels), expected)
    losses = foreground_loss(net, output, labels, reduction="none")
    torch.testing.assert_close(losses.mean(), expected)


def test_class_weights_are_those_of_the_labels() -> None:
    logits, labels = torch.randn(3, 2), torch.tensor([0, 1, 1])
    losses = [absence_loss(logits[[i]], labels[[i]], "multiclass") for i in range(3)]
    weighted = absence_loss(logits, labels, "multiclass", class_weights=torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(weighted, (4 * losses[0] + losses[1] + losses[2]) / 6)


def test_a_sure_classifier_has_a_finite_loss_and_a_gradient() -> None:
    logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    loss = absence_loss(logits, torch.tensor([0]), "multiclass")
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1.0, -1.0])


def test_the_layers_that_it_reads_learn_nothing_from_it() -> None:
    net, output = network()
    vectors, features = output.vectors.requires_grad_(), output.features.requires_grad_()
    foreground_loss(net, BackboneOutput(features, vectors), torch.tensor([2, 0])).backward()
    assert vectors.grad is None
    assert features.grad is not None
    assert net.foreground is not None
    assert net.foreground.conv.weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "max"}, "pool=max has not; choose avg or lse"),
        ({"cutmix": 1.0}, "got cutmix 1.0; leave one of them out"),
        ({"compile": True}, "got compile True"),
        ({"head_solver": "logistic", "freeze_backbone": True}, "got head_solver logistic"),
        ({"freeze_head": True}, "--model.foreground true and --model.freeze_backbone true"),
        ({"freeze_head": True, "freeze_backbone": True}, "weights=DEFAULT bring none"),
        ({"foreground": False, "freeze_head": True}, "leaves only the foreground head"),
    ],
)
def test_settings_that_exclude_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainValueError, match=message):
        small_module(**{"foreground": True, **settings})
