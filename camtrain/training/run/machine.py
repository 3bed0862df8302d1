"""The machine that a training runs on: its random numbers, its device, and the GPU's memory."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning import Trainer

from camtrain.errors import CamtrainValueError
from camtrain.training.run.folder import RunFolder


def random_state() -> dict[str, Any]:
    """The state of the random numbers of Python, NumPy and torch, as plain values and tensors."""
    version, internal, next_gauss = random.getstate()
    kind, keys, *position = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *position],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def machine_state(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint says of the machine; call in every process.

    It holds the ``random_state`` of every process, in order of rank, device and precision.
    """
    states = [random_state()] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, random_state())
    precision = str(trainer.precision)
    return {"random": states, "device": device_name(trainer), "precision": precision}


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what ``random_state`` has returned."""
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *position))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # another machine has other devices
        torch.cuda.set_rng_state_all(state["cuda"])


def device_name(trainer: Trainer) -> str:
    """What a training computes on, such as ``cpu`` or ``NVIDIA H200``."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def announce_other_device(trainer: Trainer, stored_run: Mapping[str, Any]) -> None:
    """Print what is not the same where a training goes on on another device or in other precision.

    Args:
        trainer: Of the training.
        stored_run: What its checkpoint says of the run.
    """
    current = (device_name(trainer), str(trainer.precision))
    stored = (stored_run.get("device", current[0]), stored_run.get("precision", current[1]))
    if stored != current and trainer.is_global_zero:
        print(
            f"The training was on {' in '.join(stored)} and goes on on {' in '.join(current)}: "
            "weights, optimizer, schedule, order and augmentation of the pictures go on as they "
            "were, but numbers are rounded otherwise and dropout draws others, so it does not end "
            "with the bits with which it would have ended there."
        )


def out_of_memory(
    error: BaseException, trainer: Trainer, run: RunFolder | None
) -> CamtrainValueError | None:
    """The sentence for a GPU whose memory is too small for a batch; None for other errors.

    Args:
        error: What ended the training.
        trainer: Of the training.
        run: Its folder, where it has one.
    """
    if not isinstance(error, torch.OutOfMemoryError):
        return None
    tried = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    reason = f" (the last tensor takes {tried[1]})" if tried else ""
    less = (
        "a smaller data.batch_size (with trainer.accumulate_grad_batches steps have as many "
        "pictures), a smaller data.size, a smaller model.neck or trainer.precision bf16-mixed"
    )
    step = f"give {less}."
    if run is not None and run.last.is_file():
        new = f"model.weights {run.bundle}" if run.bundle.is_file() else "its settings"
        step = (
            f'{run.last} is whole, and goes on with ckpt_path="last" where more memory is free; '
            f"or start a new run from {new} and give {less}."
        )
    return CamtrainValueError(
        f"The memory of {device_name(trainer)} is too small for {_batch(trainer)}{reason}; {step}"
    )


def _batch(trainer: Trainer) -> str:
    """A batch in words: its number of pictures, their channels and their size, as far as known."""
    data, module = getattr(trainer, "datamodule", None), cast("Any", trainer.lightning_module)
    loader = trainer.train_dataloader or getattr(trainer, "test_dataloaders", None)
    count = getattr(data, "hparams", {}).get("batch_size") or getattr(loader, "batch_size", None)
    description = module.net.description
    channels, preprocessing = description.architecture["in_chans"], description.preprocessing
    size = "" if preprocessing is None else f" and {'x'.join(map(str, preprocessing.size))} pixels"
    return f"a batch of {count or 'so many'} pictures of {channels} channels{size}"
