"""Whether refined maps show better what a network uses: deletion, insertion, gain (SRG).

On the first pictures, classes taking turns, of imagenet_val300 with the converted classifiers of
``shared/weights``; the explained class is the predicted one. Prints the scores in %, and the paired
difference of the shown map's gain to that of the others with 1.96 standard errors.

Run: python tests/benchmarks/faithfulness.py ../shared [mobilenetv2|squeezenet] [PICTURES]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from imagenet_val300 import class_names
from mosaics import mobilenetv2, squeezenet

from camtrain.data import ImageFolder, PreparedDataset
from camtrain.localization import Faithfulness
from camtrain.localization.faithfulness import STEPS
from camtrain.training.watch.faithfulness import curves_of, kinds_of
from camtrain.training.watch.pictures import Candidates


def main(shared: Path, name: str, count: int) -> None:
    """Print the scores of a network."""
    build = {"mobilenetv2": mobilenetv2, "squeezenet": squeezenet}[name]
    net = build(shared / "weights").set_refine("affinity").eval()
    root = shared / "data" / "imagenet_val300"
    assert net.preprocessing is not None
    pictures = PreparedDataset(
        ImageFolder(root, "test", class_names=class_names(root)), net.preprocessing
    )
    metric = Faithfulness(kinds_of(net))
    for done, index in enumerate(Candidates.of(pictures).stratified(count, seed=0), start=1):
        metric.update(curves_of(net, pictures[index].image, seed=index))
        if done % 8 == 0 or done == count:
            print(f"{name}, {done} of {count} pictures")
            show(metric.report())


def show(report: dict[str, Any]) -> None:
    """Print what was measured so far."""
    for kind, curves in report["curves"].items():
        cells = [f"{kind:8} SRG {100 * report['srg'][kind]:5.1f}"]
        for baseline, pair in curves.items():
            areas = [
                100 * torch.trapezoid(torch.tensor(curve), dx=1 / STEPS).item()
                for curve in pair.values()
            ]
            cells.append(f"{baseline}: deletion {areas[0]:5.1f}, insertion {areas[1]:5.1f}")
        print("; ".join(cells))
    for kind, values in report["against"].items():
        reach = values["high"] - values["difference"]
        print(
            f"affinity - {kind}: {100 * values['difference']:+.1f} +- {100 * reach:.1f}", flush=True
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:3] or ["mobilenetv2"]), int((sys.argv[3:4] or [64])[0]))
