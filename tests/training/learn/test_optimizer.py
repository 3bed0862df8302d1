"""Parameter groups, optimizers, schedules: exact rates at exact steps."""

import doctest
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import camtrain
from camtrain.errors import CamtrainError
from camtrain.training import CAMDataModule, CAMModule
from camtrain.training.learn import optimizer as optimization
from camtrain.training.learn.optimizer import (
    SCHEDULES,
    check_optimization,
    configure,
    make_optimizer,
    parameter_groups,
    warmup_cosine,
)
from tests.conftest import everyday
from tests.training.conftest import quiet_trainer, small_module

NET = camtrain.create_model("camtrain/digits", 3, neck=(4,), backbone_args={"width": 1})


def options_of(**settings: Any) -> dict[str, Any]:
    """The settings of a module, checked."""
    parameters = inspect.signature(CAMModule).parameters
    options = {name: parameter.default for name, parameter in parameters.items()} | settings
    check_optimization(options)
    return options


def rates_of(
    steps: int,
    *,
    per_epoch: float = 10,
    of: Callable[[list[float]], float] = max,
    **settings: Any,
) -> list[float]:
    """The head's rate of every step, driven as Lightning drives it."""
    settings = {"lr": 1e-3, "warmup_epochs": 0.0, **settings}
    made = configure(NET, options_of(**settings), steps=steps, steps_per_epoch=per_epoch)
    if isinstance(made, torch.optim.Optimizer):
        return [of([group["lr"] for group in made.param_groups])] * steps
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for step in range(1, steps + 1):
        rates.append(of([group["lr"] for group in optimizer.param_groups]))
        optimizer.step()
        if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
            schedule.step()
        else:
            schedule.step_update(step)
    return rates


def test_the_examples_print_what_they_say() -> None:
    failed, attempted = doctest.testmod(optimization)
    assert attempted > 0
    assert failed == 0


def test_the_schedule_of_the_paper_falls_at_exact_steps() -> None:
    """Zhou et al.: 1e-3, a tenth after each 40,000 steps; here per 40, with 18.77 per epoch."""
    arguments = {"decay_steps": 40, "decay_rate": 0.1}
    rates = rates_of(130, per_epoch=18.77, schedule="step", schedule_args=arguments)
    expected = [1e-3] * 40 + [1e-4] * 40 + [1e-5] * 40 + [1e-6] * 10
    assert rates == pytest.approx(expected)


def test_epochs_become_steps() -> None:
    by_epoch = {"decay_milestones": [2, 3], "decay_rate": 0.5}
    rates = rates_of(40, schedule="multistep", schedule_args=by_epoch)
    # timm's milestones are met one step before.
    assert rates == pytest.approx([1e-3] * 19 + [5e-4] * 10 + [2.5e-4] * 11)
    warm = rates_of(30, schedule="constant", warmup_epochs=0.5)
    assert warm == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4] + [1e-3] * 25)


def test_cosines_are_those_of_the_formula() -> None:
    expected = [0.5e-3 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    assert rates_of(20, schedule="cosine") == pytest.approx(expected)
    assert rates_of(20) == pytest.approx(expected)
    warm = rates_of(30, warmup_epochs=1.0)
    assert warm == [1e-3 * warmup_cosine(step, 10, 30) for step in range(30)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_has_rates_and_scales_them_by_layer(schedule: str) -> None:
    arguments = {"step": {"decay_steps": 7}, "multistep": {"decay_milestones": [1]}}.get(schedule)
    settings: dict[str, Any] = {"schedule": schedule, "schedule_args": arguments}
    rates = rates_of(30, warmup_epochs=0.2, **settings)
    assert all(0 <= rate <= 1e-3 for rate in rates)
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    whole = rates_of(30, warmup_epochs=0.2, **settings, backbone_lr_ratio=0.1)
    backbone = rates_of(30, warmup_epochs=0.2, **settings, backbone_lr_ratio=0.1, of=min)
    assert whole == rates
    assert backbone == pytest.approx([0.1 * rate for rate in rates])


@pytest.mark.parametrize("schedule", everyday(SCHEDULES, "cosine", "step"))
def test_every_schedule_is_continued_from_plain_values(
    schedule: str,
    data: CAMDataModule,
    tmp_path: Path,
) -> None:
    arguments = {"step": {"decay_steps": 3}, "multistep": {"decay_milestones": [1]}}.get(schedule)
    settings = {"schedule": schedule, "schedule_args": arguments, "warmup_epochs": 0.5}

    class Rates(Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, *_: Any
        ) -> None:
            self.found.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:  # in the middle of an epoch
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    whole, rest = Rates(), Rates()
    quiet_trainer(max_epochs=3, callbacks=[whole]).fit(small_module(**settings), data)
    path = tmp_path / "a.ckpt"
    quiet_trainer(max_epochs=3, callbacks=[rest]).fit(
        small_module(**settings), data, ckpt_path=path, weights_only=True
    )
    assert rest.found == whole.found[3:]


def test_every_parameter_is_in_one_group() -> None:
    for settings in ({}, {"backbone_lr_ratio": 0.1}, {"layer_decay": 0.5}):
        groups = parameter_groups(NET, options_of(**settings))
        known = [id(p) for group in groups for p in group["params"]]
        assert sorted(known) == sorted(id(p) for p in NET.parameters())


def scales_of(net: camtrain.CAMNet, **settings: Any) -> dict[str, float]:
    groups = parameter_groups(net, options_of(**settings))
    by_id = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in net.named_parameters()}


def test_layers_learn_slower_the_earlier_they_are() -> None:
    net = camtrain.create_model("timm/resnet18", 3, weights=None)
    scales = scales_of(net, layer_decay=0.5, backbone_lr_ratio=0.1)
    assert scales["head.weight"] == scales["neck.conv1.weight"] == 1.0
    # The stem and eight blocks; the last one is one layer before the head.
    assert scales["backbone.trunk.layer4.1.conv2.weight"] == pytest.approx(0.1 * 0.5)
    assert scales["backbone.trunk.layer4.0.conv2.weight"] == pytest.approx(0.1 * 0.5**2)
    assert scales["backbone.trunk.conv1.weight"] == pytest.approx(0.1 * 0.5**9)
    traced = scales_of(camtrain.create_model("resnet18", 3, weights=None), layer_decay=0.5)
    found = [scale for name, scale in traced.items() if name.startswith("backbone.")]
    assert found == sorted(found)
    assert found[-1] == 0.5
    assert len(set(found)) == 5  # 60 parameters, 12 per layer


def test_a_parameter_without_a_gradient_is_left_alone_by_every_usual_optimizer() -> None:
    for name in ("sgd", "nesterov", "adamw", "adam", "lamb", "lion", "lookahead_adamw", "rmsprop"):
        frozen = torch.nn.Parameter(torch.ones(3, 2))
        free = torch.nn.Parameter(torch.ones(3, 2))
        groups = [{"params": [frozen, free], "weight_decay": 0.5, "lr_scale": 1.0}]
        optimizer = make_optimizer(groups, options_of(optimizer=name, lr=0.1))
        for _ in range(7):
            free.grad = torch.ones(3, 2)
            optimizer.step()
        assert torch.equal(frozen, torch.ones(3, 2)), name
        assert not torch.equal(free, torch.ones(3, 2)), name


def test_sgd_has_no_nesterov_momentum_unless_told() -> None:
    groups = parameter_groups(NET, options_of())
    plain = make_optimizer(groups, options_of(optimizer="sgd", momentum=0.7))
    assert isinstance(plain, torch.optim.SGD)
    assert plain.defaults["momentum"] == 0.7
    assert not plain.defaults["nesterov"]
    nesterov = make_optimizer(parameter_groups(NET, options_of()), options_of(optimizer="nesterov"))
    assert nesterov.defaults["nesterov"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamz"}, "got 'adamz'; the nearest are adam"),
        ({"opt_args": [1]}, "opt_args must be a dictionary"),
        ({"schedule": "cosinus"}, "schedule must be one of warmup_cosine, cosine, tanh"),
        ({"schedule": "step"}, "give it in schedule_args, as decay_epochs or decay_steps"),
        ({"schedule": "multistep"}, "as decay_milestones"),
        ({"schedule_args": {"min_lr": 0.1}}, "choose schedule=cosine, which takes them"),
        ({"backbone_lr_ratio": 0.0}, "to train no backbone at all give freeze_backbone"),
        ({"layer_decay": 1.5}, r"layer_decay lie in \(0, 1\]"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\)"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1"),
        ({"mixup": -0.1}, "at least 0, got -0.1"),
        ({"class_weights": [1.0]}, "one number above 0 for each of the 2 classes"),
        ({"class_weights": [1.0, -1.0]}, "above 0 for each"),
        ({"class_weights": "even"}, "must be balanced, a list"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        small_module(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"opt_args": {"beta": 1}}, "optimizer adamw cannot be built with opt_args={'beta': 1}"),
        ({"optimizer": "adahessian"}, "needs second derivatives"),
        ({"schedule": "cosine", "schedule_args": {"lowest": 1}}, "does not take schedule_args"),
    ],
)
def test_what_only_the_builder_knows_is_one_sentence_too(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CamtrainError, match=message):
        configure(NET, options_of(**settings), steps=10, steps_per_epoch=5)
