"""Filling the feature cache: every picture goes through the frozen backbone once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from pytorch_lightning import Trainer
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from camtrain.data import Batch, PreparedDataset, Split, collate
from camtrain.errors import CamtrainValueError
from camtrain.maps import pool_maps
from camtrain.training.cache import store
from camtrain.training.cache.choice import is_required
from camtrain.training.cache.dataset import FeatureDataset
from camtrain.training.cache.key import (
    backbone_parts,
    hash_of_pictures,
    key_of,
    other_settings,
    versions,
)
from camtrain.training.cache.plan import (
    Plan,
    estimate_of,
    net_of,
    plan_of,
    refining_net,
    refusal_of,
    trunk_features,
)

_FLOAT16_MAX = torch.finfo(torch.float16).max
# Below it, what is a thousandth of the largest value loses digits in float16.
_FLOAT16_SMALL = 1000 * torch.finfo(torch.float16).tiny


def cached_split(
    trainer: Trainer,
    pictures: PreparedDataset,
    bare: PreparedDataset,
    split: Split,
    settings: Mapping[str, Any],
) -> FeatureDataset | None:
    """The kept features of a split; made first where they are not there.

    Every process makes its part of them, in the precision of the training for train and in float32
    for val, as the network computes without a cache.

    Args:
        trainer: Of a training, its module on its device with the weights it trains.
        pictures: The data set whose place it takes.
        bare: The same without augmentation.
        split: ``train`` or ``val``.
        settings: Those of the data module.

    Returns:
        None where the disk would not hold them and nobody has asked for them.

    Raises:
        CamtrainValueError: The disk would not hold them.
    """
    plan, strategy = plan_of(trainer, bare, split, settings), trainer.strategy
    root = store.cache_folder(settings["cache_dir"])
    folder = root / strategy.broadcast(_key(trainer, plan, settings))
    if not strategy.reduce_boolean_decision(store.is_complete(folder), all=True):
        refusal = _refusal(trainer, plan, root, settings)
        if not strategy.reduce_boolean_decision(refusal is None, all=True):
            _say(trainer, f"{refusal} The training goes on without the cache.")
            return None
        _say(trainer, estimate_of(plan, root))
        start = time.perf_counter()
        _fill(trainer, plan, folder, settings)
        _say(trainer, f"Feature cache of {split}: filled in {time.perf_counter() - start:.1f} s")
    else:
        _say(trainer, f"Feature cache of {split}: {folder}, of an earlier run")
    arrays, about = store.open_arrays(folder)
    return FeatureDataset(
        pictures,
        arrays,
        mapped=plan.mapped,
        known=plan.known,
        is_bfloat16=about["dtype"] == "bfloat16",
        for_training=split == "train",
    )


def check_disk(
    trainer: Trainer, bare: PreparedDataset, split: Split, settings: Mapping[str, Any]
) -> None:
    """Refuse a cache that was asked for and that the disk would not hold, before anything is done.

    Raises:
        CamtrainValueError: See ``cached_split``.
    """
    if not is_required(trainer.lightning_module, settings):
        return
    plan, root = plan_of(trainer, bare, split, settings), store.cache_folder(settings["cache_dir"])
    if not store.is_complete(root / _key(trainer, plan, settings)):
        _refusal(trainer, plan, root, settings)


def _refusal(trainer: Trainer, plan: Plan, root: Path, settings: Mapping[str, Any]) -> str | None:
    if trainer.local_rank == 0:
        store.remove_unused(root)
    required = is_required(trainer.lightning_module, settings)
    refusal = refusal_of(plan, root, is_required=required)
    if refusal and required:
        raise CamtrainValueError(refusal)
    return refusal


def _key(trainer: Trainer, plan: Plan, settings: Mapping[str, Any]) -> str:
    net, refining = net_of(trainer), refining_net(trainer, plan.split)
    parts = {
        "backbone": backbone_parts(net),
        "settings": other_settings(settings),
        "preprocessing": plan.pictures.preprocessing.to_dict(),
        # Only the first process' key counts.
        "pictures": hash_of_pictures(plan.pictures.source) if trainer.is_global_zero else "",
        "indices": plan.pictures.indices,
        "views": plan.views,
        "mapped": plan.mapped,
        "refine": None if refining is None else refining.description.refinement,
        "pool": net.pool if plan.has_vectors else None,
        "precision": str(trainer.precision) if plan.split == "train" else "32-true",
        "device": trainer.strategy.root_device.type,
        "versions": versions(),
    }
    return key_of(parts)


def _fill(trainer: Trainer, plan: Plan, folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a cache; with bfloat16 where the features leave the range of float16."""
    if trainer.local_rank == 0:
        folder.parent.mkdir(parents=True, exist_ok=True)
    # What was computed in bfloat16 loses nothing in it.
    first = torch.bfloat16 if plan.dtype == torch.bfloat16 else torch.float16
    for dtype in dict.fromkeys((first, torch.bfloat16)):
        if _is_filled_as(dtype, trainer, plan, folder, settings):
            return
        _say(trainer, "The features leave the range of float16; once more, as bfloat16")


def _is_filled_as(
    dtype: torch.dtype, trainer: Trainer, plan: Plan, folder: Path, settings: Mapping[str, Any]
) -> bool:
    """Make a cache and give it its name; not where its maps do not fit into ``dtype``."""
    strategy, specs = trainer.strategy, plan.specs(dtype)
    # Every node fills a cache of its own, and needs a name of its own where they share a disk.
    part = store.part_of(folder, f"{strategy.broadcast(store.unique())} {trainer.node_rank}")
    lock = store.begin(part, specs) if trainer.local_rank == 0 else None
    strategy.barrier()
    arrays, fits = store.open_part(part, specs), True
    for batch in _batches(trainer, plan, settings):
        fits = _write(arrays, batch, dtype, trainer, plan)
        if not fits:
            break
    store.flush(arrays)
    fits = strategy.reduce_boolean_decision(fits, all=True)
    if lock is not None:
        store.finish(part, folder if fits else None, {"dtype": str(dtype).removeprefix("torch.")})
        os.close(lock)
    strategy.barrier()
    return fits


def _write(
    arrays: store.Arrays, batch: Batch, dtype: torch.dtype, trainer: Trainer, plan: Plan
) -> bool:
    """Put the features of a batch in their places; False where they do not fit into ``dtype``."""
    if not len(batch.images):  # all of them damaged
        return True
    arrays["kept"][batch.indices.numpy()] = True
    row_of = {index: row for row, index in enumerate(plan.mapped)}
    chosen = [at for at, index in enumerate(batch.indices.tolist()) if index in row_of]
    rows = [row_of[index] for index in batch.indices[chosen].tolist()]
    images = batch.images.to(trainer.lightning_module.device)
    refining = refining_net(trainer, plan.split)
    for view in range(plan.views):
        seen = images.flip(-1) if view else images
        features = trunk_features(trainer, seen, is_train=plan.split == "train")
        if plan.has_vectors:
            vectors = pool_maps(features.float(), net_of(trainer).pool)
            arrays["vectors"][batch.indices.numpy(), view] = vectors.cpu().numpy()
        if chosen:
            maps = features[chosen]
            behind = 0 if refining is None else refining.vector_channels
            if dtype == torch.float16 and not fits_float16(maps[:, : maps.shape[1] - behind]):
                return False
            arrays["maps"][rows, view] = _as_numpy(maps.to("cpu", dtype))
    return True


def fits_float16(features: Tensor) -> bool:
    """Whether float16 holds features: all are finite, none too large, not even the largest tiny.

    Example:
        >>> [fits_float16(torch.tensor([x])) for x in (0.0, 1.0, 1e-6, 7e4, float("nan"))]
        [True, True, False, False, False]
    """
    peak = features.abs().max().item()
    return peak == 0 or _FLOAT16_SMALL <= peak <= _FLOAT16_MAX


def _as_numpy(halves: Tensor) -> npt.NDArray[Any]:
    halves = halves.contiguous()
    plain = halves.view(torch.int16) if halves.dtype == torch.bfloat16 else halves
    found: npt.NDArray[Any] = plain.numpy()
    return found


def _batches(trainer: Trainer, plan: Plan, settings: Mapping[str, Any]) -> Iterator[Batch]:
    """The pictures of this process, in batches; torch's random state stays as it was."""
    own = range(trainer.local_rank, len(plan.pictures), trainer.num_devices)
    loader: DataLoader[Batch] = DataLoader(
        plan.pictures,  # type: ignore[arg-type]  # typeshed knows no keys but int
        batch_size=settings["batch_size"],
        sampler=own,
        num_workers=settings["workers"],
        collate_fn=collate,
    )
    is_shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    text = f"Feature cache of {plan.split}"
    with torch.random.fork_rng(devices=[]):  # a loader draws a number
        batches = iter(loader)
    yield from track(batches, text, total=len(loader), disable=not is_shown, transient=True)


def _say(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, flush=True)
