"""Using a trained network on pictures: classes, scores, heatmaps and boxes over the original."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Barrier
from typing import TypeVar, get_args

import torch
from torch import Tensor

from camtrain.errors import CamtrainError, CamtrainValueError, check_choice, check_positive
from camtrain.header import Description, model_file
from camtrain.inference.bundle import read_network, write_bundle
from camtrain.inference.hub import local_file
from camtrain.inference.network import Network, Precision, TorchNetwork
from camtrain.inference.pictures import Input, copy_input, expand_inputs
from camtrain.inference.prediction import (
    LoadedPicture,
    PictureOutput,
    Prediction,
    PredictionSettings,
    class_numbers,
)
from camtrain.inference.tta import TTA, ten_crop_preprocessing, tta_maps
from camtrain.labels import class_scores
from camtrain.maps import HeatmapMethod
from camtrain.model.camnet import CAMNet
from camtrain.model.refine import Refine
from camtrain.preprocessing import Preprocessing
from camtrain.thresholds import DEFAULT_THRESHOLD, Threshold, check_any_threshold

OnError = Callable[[Input, CamtrainError], object]
T = TypeVar("T")
R = TypeVar("R")

_TOP = 5
_MOST_HELPERS = 8  # each holds a picture with its heatmaps


class Predictor:
    """A network ready to use: pictures in, predictions out, lazily and in order.

    Example:
        >>> import camtrain
        >>> net = camtrain.create_model("camtrain/digits", 10, in_chans=1)
        >>> predictor = camtrain.Predictor(net, threshold=0.3)
        >>> [prediction] = predictor(torch.rand(1, 3, 48, 80), top=2)
        >>> prediction.heatmaps.shape
        torch.Size([2, 48, 80])
    """

    def __init__(
        self,
        net: CAMNet | Network,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        threshold: Threshold = DEFAULT_THRESHOLD,
        scores: Mapping[str, float] | None = None,
        refine: Refine | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        description: Description | None = None,
    ) -> None:
        """Take a network as it is, moved to ``device`` and to evaluation mode.

        Args:
            net: The network; names and preprocessing given here become its own. It may also be a
                ``Network`` that is ready on its device: then only ``threshold`` and ``scores`` of
                the other arguments are used.
            class_names: K names; by default the network's.
            preprocessing: By default the network's.
            threshold: Part of a heatmap's maximum that the pixels of a box exceed, in [0, 1), on
                maps as ``refine`` says; ``auto`` means each heatmap's own, see ``auto_threshold``.
            scores: Scores of these weights, by logged name; ``save`` writes them into the bundle.
            refine: ``none`` or ``affinity``: heatmaps of class maps or of refined maps, which have
                another best threshold. By default the network's, see ``CAMNet.set_refine``.
            description: Holds thresholds and scores, instead of these two arguments.
            device: Where to compute, see ``TorchNetwork``.
            precision: Of backbone and neck, ``fp32`` or ``bf16``, see ``TorchNetwork``.

        Raises:
            CamtrainValueError: Neither the network nor the caller knows the preprocessing, the
                threshold is not in [0, 1) nor ``auto``, or there is no such device or precision.
        """
        if isinstance(net, CAMNet):
            if class_names is not None:
                net.name_classes(class_names)
            if preprocessing is not None:
                net.preprocessing = preprocessing
            if refine not in (None, net.refine):
                net.set_refine(refine)
            net = TorchNetwork(net, device=device, precision=precision)
        elif refine not in (None, getattr(net, "refine", "none")):
            raise CamtrainValueError(
                f"An exported network computes what it was exported with, got refine={refine!r}; "
                "use the bundle, or export it again."
            )
        self.network: Network = net
        self.net = net.net if isinstance(net, TorchNetwork) else None
        self.preprocessing = net.preprocessing
        self._description = description or Description(
            architecture=self.net.description.architecture if self.net else None,
            class_names=None,
            preprocessing=None,
            refine=getattr(net, "refine", "none"),
            refine_layers=self.net.description.refine_layers if self.net else (),
            threshold=threshold,
            is_calibrated=False,
            scores=scores or {},
        )
        self.threshold = self._description.threshold
        self.scores = dict(self._description.scores)

    @property
    def description(self) -> Description:
        """The thresholds and scores; a threshold that was set here was not calibrated."""
        is_calibrated = self._description.is_calibrated
        if self.threshold != self._description.threshold:
            is_calibrated = False
        return replace(
            self._description,
            threshold=self.threshold,
            is_calibrated=is_calibrated,
            scores=self.scores,
        )

    def save(self, path: str | Path) -> None:
        """Write the network as a bundle, see ``camtrain.inference.bundle.write_bundle``."""
        if self.net is None:
            raise CamtrainValueError(
                "An exported network cannot become a bundle; copy its file, or save the checkpoint "
                "that it was exported from."
            )
        write_bundle(path, self.net, description=self.description)

    def __call__(
        self,
        inputs: Input | Iterable[Input],
        *,
        top: int | None = None,
        classes: Sequence[int | str] | Tensor | None = None,
        threshold: Threshold | None = None,
        split_peaks: bool = False,
        method: HeatmapMethod = "minmax",
        tta: TTA = "none",
        batch_size: int = 8,
        largest_side: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]:
        """The predictions, one per picture, in order; each is computed when it is asked for.

        Threads read the pictures of the next batch meanwhile. Memory does not grow with the number
        of pictures.

        Args:
            inputs: One or many: paths of pictures, of folders (which stand for the pictures in them
                and below, sorted, without the hidden ones), patterns such as ``photos/*.jpg``, PIL
                images, arrays (H, W, 3) or (H, W), tensors (3, H, W) or (B, 3, H, W). Arrays and
                tensors hold raw pixels, uint8 0..255 or float 0..1. Any sizes.
            top: Classes per picture, best first; min(top, K), by default 5 (or fewer, if an
                exported file gives fewer).
            classes: The classes to predict instead of the best ones, as numbers or names; they
                come best first too.
            threshold: A threshold in [0, 1), or ``auto``, to use instead of the predictor's own.
            split_peaks: See ``split`` of ``boxes_from_heatmap``; for pictures with several things.
            method: Normalization of the heatmaps, see ``camtrain.heatmaps``.
            tta: ``flip`` adds the mirrored picture, ``tencrop`` takes ten crops; for two and ten
                times the time, see ``tta_maps``.
            batch_size: Pictures per forward pass.
            largest_side: Pictures with a longer side, in pixels, have smaller heatmaps, of this
                side, and as small an ``image``; boxes stay in pixels of the original. Saves memory.
            on_error: A function that is called with each input that cannot be read, in its turn,
                and with the error. The picture is left out. By default the error is raised.

        Raises:
            CamtrainTypeError: An input has another type.
            CamtrainValueError: A picture cannot be read, or an option cannot work.
            CamtrainFileNotFoundError: A path does not exist.
        """
        if top is not None and classes is not None:
            raise CamtrainValueError("top and classes exclude each other; give one of them.")
        if top is None:
            top = min(_TOP, self.network.top or _TOP)
        top, batch_size = check_positive("top", top), check_positive("batch_size", batch_size)
        if largest_side is not None:
            largest_side = check_positive("largest_side", largest_side)
        check_choice("method", method, get_args(HeatmapMethod))
        check_choice("tta", tta, get_args(TTA))
        names, preprocessing = self.network.class_names, self.preprocessing
        if tta == "tencrop":
            preprocessing = ten_crop_preprocessing(preprocessing)
        is_calibrated = threshold is None and self.description.calibrated_threshold is not None
        threshold = self.threshold if threshold is None else check_any_threshold(threshold)
        settings = PredictionSettings(
            names, preprocessing, threshold, method, is_calibrated, largest_side, split_peaks
        )
        numbers = None if classes is None else class_numbers(classes, names)
        run = partial(self._run, tta=tta, top=top, numbers=numbers)
        # A call checks its options at once; the pictures are read one batch ahead.
        return _predictions(expand_inputs(inputs), run, settings, batch_size, on_error)

    def _run(
        self, images: Tensor, *, tta: TTA, top: int, numbers: Tensor | None
    ) -> list[PictureOutput]:
        """Maps, scores and classes of each picture of a batch, best class first."""
        classes = None if numbers is None else numbers.expand(len(images), -1)
        best = top if classes is None else None
        output = tta_maps(self.network, images, tta=tta, top=best, classes=classes)
        scores = class_scores(output.logits, self.network.task)
        logits = output.logits.gather(1, output.classes)
        ranked = logits.sort(dim=1, descending=True, stable=True)
        classes = output.classes.gather(1, ranked.indices)
        rows = torch.arange(len(images), device=classes.device)[:, None]
        maps = output.maps[rows, ranked.indices]
        return list(map(PictureOutput, maps, scores.gather(1, classes), classes))


def load(
    path: str | Path,
    *,
    backbone: object = None,
    refine: Refine | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
) -> Predictor:
    """The predictor of a bundle, of a ``.ckpt`` of this project, or of an ``.onnx`` or ``.pt2``.

    Args:
        path: The file; its suffix says which kind it is. A run's folder stands for its bundle, and
            ``hf://ORG/NAME[@REVISION]`` for that of a repository of the Hugging Face Hub.
        backbone: For a network of your own its class, ``MyNet``, or a function or module: a file
            names it, but reading a file runs no code and imports nothing.
        refine: See ``Predictor``; by default as the file says. Maps of another kind have their own
            threshold, or the default.
        device: Where to compute, see ``TorchNetwork``.
        precision: Of backbone and neck, see ``TorchNetwork``.

    Raises:
        CamtrainFileNotFoundError: There is no such file, or it cannot be downloaded.
        CamtrainValueError: The file is of another kind or of a newer format version, or there is no
            such device or precision.
    """
    path = model_file(local_file(path))
    if path.suffix.lower() in (".onnx", ".pt2"):
        from camtrain.inference.exported import read_exported

        exported = read_exported(path, device=device, precision=precision)
        net: CAMNet | Network = exported
        description = exported.description
    else:
        bundle = read_network(path, backbone=backbone).with_maps(refine)
        net, description = bundle.net, bundle.description
    return Predictor(
        net,
        description=description,
        refine=refine,
        device=device,
        precision=precision,
    )


def _predictions(
    inputs: Iterator[Input],
    run: Callable[[Tensor], list[PictureOutput]],
    settings: PredictionSettings,
    batch_size: int,
    on_error: OnError | None,
) -> Iterator[Prediction]:
    """The predictions in order; threads read pictures one batch ahead and make heatmaps."""

    def start(pool: Executor) -> list[tuple[Input, Future[LoadedPicture]]]:
        # A caller who gives pictures one by one may fill the same image or array again.
        return [
            (item, pool.submit(settings.load, copy_input(item)))
            for item in islice(inputs, batch_size)
        ]

    count = min(_MOST_HELPERS, torch.get_num_threads())
    with helper_threads(count) as pool:
        batch = start(pool)
        while batch:
            errors = [future.exception() for _, future in batch]  # waits for them all
            pictures = [future.result() for _, future in batch if future.exception() is None]
            prepared = [picture.prepared for picture in pictures]
            outputs = run(torch.stack(prepared)) if prepared else []
            # On a GPU the network's work is only queued by now, and reading goes on beside it; on a
            # CPU it is done: a network that has all cores to itself is faster than one that shares.
            next_batch = start(pool)
            pairs = zip(pictures, outputs, strict=True)
            predictions = map_in_order(pool, settings.prediction, pairs, ahead=count)
            for (item, _), error in zip(batch, errors, strict=True):
                outcome = next(predictions) if error is None else error
                if isinstance(outcome, Prediction):
                    yield outcome
                elif on_error is None or not isinstance(outcome, CamtrainError):
                    raise outcome
                else:
                    on_error(item, outcome)
            batch = next_batch


@contextmanager
def helper_threads(count: int) -> Iterator[Executor]:
    """A pool of threads that compute on one core each; the caller keeps its number of cores.

    By default torch would use all cores in each thread, and the threads would mostly wait for each
    other. When the context ends, calls that have not begun are dropped.
    """
    cores = torch.get_num_threads()
    started = Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # whose first call in a thread sets the number
        torch.set_num_threads(1)  # of this thread, and of those that start later
        started.wait()

    pool = ThreadPoolExecutor(count, "camtrain", initializer=start)
    try:
        for _ in range(count):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(cores)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def map_in_order(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Iterator[R]:
    """``map(function, items)`` in a pool; at most ``ahead`` results are computed in advance.

    The items are taken in the caller's thread.
    """
    futures: deque[Future[R]] = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) == ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()
