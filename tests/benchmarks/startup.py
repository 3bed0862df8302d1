"""Seconds until the front door answers, and until a trained network has made its first prediction.

The first prediction is compared with importing torch and torchvision and building the same network
by hand: fresh processes in turn, the least and the median of several runs, in wall time and in
processor time, which a busy machine changes less.

Run: python tests/benchmarks/startup.py [--runs N]
"""

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PREDICTION = """
import camtrain, torch
[prediction] = camtrain.load({path!r})(torch.zeros(3, 224, 224, dtype=torch.uint8))
"""
BY_HAND = """
import torch, torchvision
network = torchvision.models.resnet18(num_classes=10).eval()
"""


def seconds(*args: str) -> dict[str, float]:
    """Wall and processor time of ``python ARGS``, with compiled modules, as installed ones are."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *args], cwd=ROOT, check=True, capture_output=True, env=environment
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "processor": processor}


def median(*args: str) -> float:
    """Median wall time of three runs."""
    return statistics.median(seconds(*args)["wall"] for _ in range(3))


def write_bundle(path: Path) -> None:
    """A bundle of a ResNet-18 with random weights."""
    import camtrain

    net = camtrain.create_model("torchvision/resnet18", 10, weights=None, neck=())
    camtrain.Predictor(net, preprocessing=camtrain.Preprocessing((224, 224))).save(path)


def compare_first_prediction(runs: int) -> None:
    """Print the time of the first prediction against that of building the network by hand."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_bundle(path)
        scripts = {"by hand": BY_HAND, "camtrain": PREDICTION.format(path=str(path))}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in scripts}
        for name, script in [*scripts.items()] * (runs + 1):  # the first round fills the caches
            times[name].append(seconds("-c", script))
    for clock, summary in itertools.product(("wall", "processor"), (min, statistics.median)):
        by_hand, ours = (
            summary([run[clock] for run in times[name][1:]]) for name in ("by hand", "camtrain")
        )
        print(
            f"first prediction     {ours:6.3f} s, by hand {by_hand:.3f} s: ratio "
            f"{ours / by_hand:.3f} ({clock} time, {summary.__name__} of {runs})"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    interpreter = median("-c", "pass")
    imported = median("-c", "import camtrain")
    print(
        f"import camtrain      {imported - interpreter:6.3f} s beyond the interpreter's own start"
    )
    print(f"camtrain             {median('train.py'):6.3f} s")
    print(f"camtrain --help      {median('train.py', '--help'):6.3f} s")
    print(f"camtrain fit --help  {median('train.py', 'fit', '--help'):6.3f} s")
    compare_first_prediction(parser.parse_args().runs)
