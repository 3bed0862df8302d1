"""The options of a training, one by one: what each is, and what it must change."""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping

from camtrain.training import CAMDataModule, CAMModule

BASE: dict[str, Any] = {"lr": 0.01, "warmup_epochs": 0.5}

# Settings of the module and of the trainer under which the trained weights must be others.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "freeze_backbone": ({"freeze_backbone": True}, {}),
    "freeze_until": ({"freeze_until": "conv3"}, {}),
    "unfreeze_at_epoch": ({"freeze_backbone": True, "unfreeze_at_epoch": 1}, {}),
    "unfreeze_until": ({"freeze_until": "norm2", "unfreeze_at_epoch": 1, "ema_decay": 0.9}, {}),
    "backbone_lr_ratio": ({"backbone_lr_ratio": 0.1}, {}),
    "layer_decay": ({"layer_decay": 0.5}, {}),
    "sgd": ({"optimizer": "sgd"}, {}),
    "momentum": ({"optimizer": "sgd", "momentum": 0.0}, {}),
    "timm's optimizer": ({"optimizer": "lamb"}, {}),
    "opt_args": ({"opt_args": {"betas": [0.5, 0.9]}}, {}),
    "weight_decay": ({"weight_decay": 0.5}, {}),
    "warmup_epochs": ({"warmup_epochs": 0.0}, {}),
    "cosine": ({"schedule": "cosine", "schedule_args": {"min_lr": 1e-3}}, {}),
    "step": ({"schedule": "step", "schedule_args": {"decay_steps": 2, "decay_rate": 0.1}}, {}),
    "multistep": ({"schedule": "multistep", "schedule_args": {"decay_milestones": [1]}}, {}),
    "tanh": ({"schedule": "tanh"}, {}),
    "poly": ({"schedule": "poly", "schedule_args": {"decay_rate": 2.0}}, {}),
    "wsd": ({"schedule": "wsd"}, {}),
    "rsqrt": ({"schedule": "rsqrt"}, {}),
    "constant": ({"schedule": "constant"}, {}),
    "no schedule": ({"schedule": "none"}, {}),
    "label_smoothing": ({"label_smoothing": 0.2}, {}),
    "class_weights": ({"class_weights": [0.2] + [1.0] * 9}, {}),
    "balanced": ({"class_weights": "balanced"}, {}),
    "mixup": ({"mixup": 0.5}, {}),
    "cutmix": ({"cutmix": 1.0}, {}),
    "mixup and cutmix": ({"mixup": 0.5, "cutmix": 1.0}, {}),
    "ema_decay": ({"ema_decay": 0.5}, {}),
    "find_lr": ({"find_lr": True}, {}),
    "multilabel": ({"task": "multilabel"}, {}),
    "foreground": ({"foreground": True}, {}),
    "foreground in bf16-mixed": ({"foreground": True}, {"precision": "bf16-mixed"}),
    "foreground of frozen features": ({"foreground": True, "freeze_backbone": True}, {}),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}),
    "accumulation": ({}, {"accumulate_grad_batches": 2}),
    "clipping": ({}, {"gradient_clip_val": 0.01}),
    "early stopping": (
        {},
        {"callbacks": lambda: [EarlyStopping("val/loss", min_delta=100, patience=1)]},
    ),
    "fast_dev_run": ({}, {"fast_dev_run": 2}),
}
# Under which they may be the same: these change where and how it is computed.
SPEED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "channels_last": ({"channels_last": False}, {}),
    "compile": ({"compile": True}, {}),
}


def trained(
    settings: dict[str, Any], trainer_settings: dict[str, Any], **more: Any
) -> tuple[CAMModule, Trainer]:
    """A network of a few hundred weights after three epochs on drawn digits."""
    seed_everything(0, verbose=False)
    data = CAMDataModule(
        *("digits",),
        **{"size": (24, 32), "mean": [0.5], "std": [0.5], "augment": "none", "batch_size": 8},
        **{"workers": 0, "lengths": (50, 20, 20)},
    )
    module = CAMModule(
        *("camtrain/digits", 10),
        **{**BASE, "in_chans": 1, "neck": (), "backbone_args": {"width": 2}, **settings},
    )
    made = {name: value() if callable(value) else value for name, value in trainer_settings.items()}
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = Trainer(**{**defaults, **more, **made})
    trainer.fit(module, data)
    return module, trainer


def state_hash(module: CAMModule) -> str:
    """Of all parameters, to the last bit."""
    found = hashlib.sha256()
    for parameter in module.net.parameters():
        found.update(parameter.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def train_by_two(option: str, out: Path) -> None:
    """Train with an option in this process, one of two; write down what came out in each."""
    warnings.simplefilter("ignore")
    os.chdir(out)  # the learning rate finder puts its checkpoint there
    settings, more = {"nothing": ({}, {}), **OPTIONS, **SPEED}[option]
    module, trainer = trained(settings, more, strategy="ddp", devices=2)
    result = {"hash": state_hash(module), "steps": trainer.global_step}
    (out / f"{option}{trainer.global_rank}.json").write_text(json.dumps(result))
