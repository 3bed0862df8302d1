"""Pictures per second of ``camtrain check-data`` on 500-pixel JPEGs, as a whole program.

The pictures are crops of the photographs in ../shared/data where they are present, of smooth noise
elsewhere; making them is not counted.

Run: python tests/benchmarks/check_data.py [--count 10000] [--workers 2]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
CALL = "import sys; from camtrain.cli import main; sys.exit(main())"


@cache
def photographs() -> list[Path]:
    """What the pictures are cut from."""
    return sorted(SHARED.glob("animals3/*/*/*.jpg"))


def write(path: Path, number: int) -> None:
    """A picture of 500 x 375 or 375 x 500 pixels, different for every number."""
    rng = np.random.default_rng(number)
    size = (500, 375) if number % 4 else (375, 500)
    if photographs():
        photograph = Image.open(photographs()[number % len(photographs())])
        left, top = rng.random(2) * photograph.size * 0.2
        right, bottom = photograph.size - rng.random(2) * photograph.size * 0.2
        picture = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))
    else:
        pixels = rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        noise = rng.normal(0, 8, (size[1], size[0], 3))
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    picture.save(path, quality=88)


def main() -> None:
    """Make the pictures, read them, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(settings.count):
            split = "val" if number % 10 == 0 else "train"
            paths.append(Path(folder) / "data" / split / "ab"[number % 3 == 0] / f"{number}.jpg")
        for parent in {path.parent for path in paths}:
            parent.mkdir(parents=True)
        with ProcessPoolExecutor(os.cpu_count()) as processes:
            list(processes.map(write, paths, range(settings.count), chunksize=50))
        mean = sum(path.stat().st_size for path in paths) / len(paths)
        args = ["check-data", f"{folder}/data", "--exclude", f"{folder}/exclude.txt"]
        args += ["--workers", str(settings.workers), "--json", f"{folder}/report.json"]
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-c", CALL, *args], cwd=ROOT, check=True)
        seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user
    cpu -= before.children_system
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"{settings.count} JPEGs of 500 px, {mean / 1000:.0f} kB each, {settings.workers} workers: "
        f"{seconds:.1f} s, {settings.count / seconds:.0f} pictures per second, "
        f"10,000 in {10_000 / settings.count * seconds:.1f} s; "
        f"{cpu:.1f} s of the processors; largest process {largest:.0f} MB"
    )


if __name__ == "__main__":
    main()
