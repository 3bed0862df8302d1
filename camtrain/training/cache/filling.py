"""Filling the feature cache: every picture goes through the frozen backbone once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from pytorch_lightning import Trainer
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from camtrain.arguments import announce, print_paragraph
from camtrain.data import (
    Batch,
    PreparedDataset,
    Split,
    collate,
    leave_signals_to_parent,
    usable_workers,
)
from camtrain.errors import one_line
from camtrain.maps import pool_maps
from camtrain.model.images import to_device
from camtrain.training.cache import store
from camtrain.training.cache.dataset import FeatureDataset
from camtrain.training.cache.plan import Plan, is_required

_Result = TypeVar("_Result")
_FLOAT16_MAX = torch.finfo(torch.float16).max
# Below it, values of a thousandth of the largest one lose digits in float16.
_FLOAT16_SMALL = 1000 * torch.finfo(torch.float16).tiny


def cached_split(
    trainer: Trainer,
    pictures: PreparedDataset,
    bare: PreparedDataset,
    split: Split,
    settings: Mapping[str, Any],
) -> FeatureDataset | None:
    """The cached features of a split; they are computed first if there are none.

    Every process computes its part of them: for train in the precision of the training, for val in
    float32, as the network does without a cache.

    Args:
        trainer: The trainer; its module is on its device and has the weights that it trains.
        pictures: The data set that the features replace.
        bare: The same pictures without augmentation.
        split: ``train`` or ``val``.
        settings: The settings of the data module.

    Returns:
        None if a cache that is not required cannot be written.

    Raises:
        CamtrainValueError: A cache that is required cannot be written.
    """
    plan, key = _make_plan(trainer, bare, split, settings)
    strategy, root = trainer.strategy, store.cache_folder(settings["cache_dir"])
    folder = root / strategy.broadcast(key)
    entry = _open(plan, folder)
    if strategy.reduce_boolean_decision(entry is not None, all=True):
        _print_once(trainer, f"Feature cache of {split}: {folder}, of an earlier run")
    else:
        refusal = plan.refusal(folder)
        if strategy.reduce_boolean_decision(refusal is None, all=True):
            refusal = _fill(plan, folder)
            entry = _open(plan, folder)
        if refusal or entry is None:
            _print_once(trainer, f"{refusal} The training goes on without the cache.")
            return None
    assert entry is not None
    arrays, about = entry
    return FeatureDataset(
        pictures,
        arrays,
        places_with_maps=plan.places_with_maps,
        annotations=plan.annotations,
        is_bfloat16=about["dtype"] == "bfloat16",
        for_training=plan.is_train,
    )


def check_disk(
    trainer: Trainer, bare: PreparedDataset, split: Split, settings: Mapping[str, Any]
) -> None:
    """Check that a cache that is required can be written; see ``cached_split``.

    Raises:
        CamtrainValueError: It cannot, or the disk is too small.
    """
    if is_required(trainer.lightning_module, settings):
        root = store.cache_folder(settings["cache_dir"])
        plan, key = _make_plan(trainer, bare, split, settings)
        if _open(plan, root / key) is None:
            plan.refusal(root / key)


def _open(plan: Plan, folder: Path) -> tuple[store.Arrays, dict[str, Any]] | None:
    """The arrays and the metadata of a cache; None where it is missing or damaged."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError):
        arrays, about = store.open_arrays(folder)
        specs = plan.specs(getattr(torch, about["dtype"]))
        if specs == {n: store.ArraySpec(a.shape, str(a.dtype)) for n, a in arrays.items()}:
            return arrays, about
    return None


def _make_plan(
    trainer: Trainer, bare: PreparedDataset, split: Split, settings: Mapping[str, Any]
) -> tuple[Plan, str]:
    """The plan of a cache and the cache's name; the pictures may have to be read for both."""
    work = announce(
        f"Feature cache of {split}: reading boxes, looking for an earlier run's features"
    )
    with work if trainer.is_global_zero else nullcontext():
        plan = Plan(trainer, bare, split, settings)
        return plan, _key(plan)


def _key(plan: Plan) -> str:
    """The name of the cache; it changes with everything that changes a feature."""
    trainer, refining = plan.trainer, plan.refining_net
    parts = {
        "backbone": store.backbone_parts(plan.net),
        "settings": store.settings_in_key(plan.settings),
        "preprocessing": plan.pictures.preprocessing.to_dict(),
        # Only the key of the first process is used.
        "pictures": store.hash_of_pictures(plan.pictures.source) if trainer.is_global_zero else "",
        "indices": plan.pictures.indices,
        "views": plan.views,
        "mapped": plan.places_with_maps,
        "refine": None if refining is None else refining.description.refinement,
        "pool": plan.net.pool if plan.has_vectors else None,
        "precision": str(trainer.precision) if plan.is_train else "32-true",
        "device": trainer.strategy.root_device.type,
        "versions": store.versions(),
    }
    return store.key_of(parts)


class _UnwritableError(Exception):
    """The cache cannot be written by one process at least; raised in all."""


def _fill(plan: Plan, folder: Path) -> str | None:
    """Compute a cache; in bfloat16 if the features exceed the range of float16.

    Returns:
        Why it could not be written; None if it was.

    Raises:
        CamtrainValueError: It is required and could not be written.
    """
    if store.is_complete(folder):
        _print_once(plan.trainer, f"The feature cache {folder} is damaged, and is filled anew.")
        plan.trainer.strategy.barrier()
        shutil.rmtree(folder, ignore_errors=True)
    _print_once(plan.trainer, plan.estimate(folder.parent))
    start = time.perf_counter()
    # Features computed in bfloat16 lose nothing in it.
    first = torch.bfloat16 if plan.dtype == torch.bfloat16 else torch.float16
    try:
        for dtype in dict.fromkeys((first, torch.bfloat16)):
            if _is_filled_as(dtype, plan, folder):
                break
            message = "The features leave the range of float16; once more, as bfloat16"
            _print_once(plan.trainer, message)
    except _UnwritableError as error:
        return plan.refuse(
            f"The feature cache of {plan.split} cannot be written in {folder.parent} ({error})"
        )
    seconds = time.perf_counter() - start
    _print_once(plan.trainer, f"Feature cache of {plan.split}: filled in {seconds:.1f} s")
    return None


def _is_filled_as(dtype: torch.dtype, plan: Plan, folder: Path) -> bool:
    """Compute a cache and store it; return False if its maps do not fit into ``dtype``."""
    trainer, strategy, specs = plan.trainer, plan.trainer.strategy, plan.specs(dtype)
    # Every node fills a cache of its own; the names differ, since nodes may share a disk.
    part = store.part_folder(folder, f"{strategy.broadcast(uuid4().hex)} {trainer.node_rank}")
    lock = _in_first_process(plan, partial(store.create_part, part, specs))
    arrays = store.open_part(part, specs)
    fits = all(_write(arrays, batch, dtype, plan) for batch in _batches(plan))
    for array in arrays.values():
        array.flush()
    fits = strategy.reduce_boolean_decision(fits, all=True)
    about = {"dtype": str(dtype).removeprefix("torch.")}
    try:
        _in_first_process(plan, partial(store.finish_part, part, folder if fits else None, about))
    finally:
        if lock is not None:
            os.close(lock)
    return fits


def _in_first_process(plan: Plan, work: Callable[[], _Result]) -> _Result | None:
    """What a step of the first process of a node returns; None in the others, which wait for it.

    Raises:
        _UnwritableError: The system refuses the step, on one node at least.
    """
    result, reason = None, ""
    if plan.trainer.local_rank == 0:
        try:
            result = work()
        except OSError as error:
            reason = one_line(error, with_type=False)
    if not plan.trainer.strategy.reduce_boolean_decision(not reason, all=True):
        raise _UnwritableError(reason or "another process could not write it")
    return result


def _write(arrays: store.WritableArrays, batch: Batch, dtype: torch.dtype, plan: Plan) -> bool:
    """Write the features of a batch; return False if they do not fit into ``dtype``."""
    if not len(batch.images):  # all of them are damaged
        return True
    indices = batch.indices.tolist()
    arrays["kept"][indices] = True
    with_maps = [place for place, index in enumerate(indices) if index in plan.row_of]
    rows = [plan.row_of[indices[place]] for place in with_maps]
    images = to_device(batch.images, plan.trainer.lightning_module.device)
    for view in range(plan.views):
        features = plan.features(images.flip(-1) if view else images)
        if plan.has_vectors:
            vectors = pool_maps(features.float(), plan.net.pool)
            arrays["vectors"][indices, view] = vectors.cpu().numpy()
        if with_maps:
            maps = features[with_maps]
            packed = 0 if plan.refining_net is None else plan.refining_net.vector_channels
            if dtype == torch.float16 and not fits_float16(maps[:, : maps.shape[1] - packed]):
                return False
            halves = maps.to("cpu", dtype).contiguous()
            numpy_type = torch.int16 if dtype == torch.bfloat16 else dtype
            arrays["maps"][rows, view] = halves.view(numpy_type).numpy()
    return True


def fits_float16(features: Tensor) -> bool:
    """Whether float16 can hold features: all are finite, none too large, the largest not tiny.

    Example:
        >>> [fits_float16(torch.tensor([x])) for x in (0.0, 1.0, 1e-6, 7e4, float("nan"))]
        [True, True, False, False, False]
    """
    peak = features.abs().max().item()
    return peak == 0 or _FLOAT16_SMALL <= peak <= _FLOAT16_MAX


def _batches(plan: Plan) -> Iterator[Batch]:
    """The pictures of this process in batches; torch's random state does not change."""
    trainer = plan.trainer
    loader: DataLoader[Batch] = DataLoader(
        plan.pictures,  # type: ignore[arg-type]  # typeshed knows no keys but int
        batch_size=plan.settings["batch_size"],
        sampler=range(trainer.local_rank, len(plan.pictures), trainer.num_devices),
        num_workers=usable_workers(plan.settings["workers"]),
        worker_init_fn=leave_signals_to_parent,
        collate_fn=collate,
    )
    is_shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    text = f"Caching features of {plan.split}"
    with torch.random.fork_rng(devices=[]):  # a loader draws a number
        batches = iter(loader)
    yield from track(batches, text, total=len(loader), disable=not is_shown, transient=True)


def _print_once(trainer: Trainer, text: str) -> None:
    """Print a line in the first process only."""
    if trainer.is_global_zero:
        print_paragraph(text)
