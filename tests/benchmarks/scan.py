"""How long a data folder of the size of ImageNet takes to list, and how much memory.

Run: python tests/benchmarks/scan.py [PICTURES]

Makes a tree of empty files, train/CLASS/* of 1,000 classes and val/CLASS/*, lists it in fresh
processes without and with the index of the first, and prints the arithmetic for 1,331,167 files
(1,281,167 for training and 50,000 for validation).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGENET = 1_281_167 + 50_000
CLASSES = 1000
FEW = 2000


def make_tree(root: Path, pictures: int) -> None:
    """Empty files, one of 26 for validation, with names as long as ImageNet's."""
    for number in range(CLASSES):
        name = f"n{1440000 + 7919 * number:08d}"
        for split, share in (("train", 25 / 26), ("val", 1 / 26)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for place in range(max(1, round(pictures * share / CLASSES))):
                (folder / f"{name}_{10000 + place}.JPEG").touch()
            os.utime(folder, (0, 0))  # long settled
        os.utime(root / "train", (0, 0))
        os.utime(root / "val", (0, 0))
    os.utime(root, (0, 0))


def measure(root: Path) -> tuple[int, float, float, float]:
    """Pictures, seconds, and MB of memory at the peak and of that before, in this process."""
    from camtrain.data import SourceOptions, make_sources

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    sources = make_sources("folder", SourceOptions(root=root))
    count = sum(len(source) for source in sources.values())
    seconds = time.perf_counter() - start
    return count, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before


def in_fresh_process(root: Path, cache: Path) -> tuple[int, float, float, float]:
    """``measure`` in a process that knows nothing yet."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(root)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, seconds, peak, before = done.stdout.split()
    return int(count), float(seconds), float(peak), float(before)


def report(pictures: int) -> None:
    """Print a line each for the first and the second time, and what they mean for ImageNet."""
    print("pictures   time        s   us each   peak MB   before MB   bytes each")
    with tempfile.TemporaryDirectory() as folder:
        trees = {FEW: Path(folder) / "few", pictures: Path(folder) / "many"}
        for count, root in trees.items():
            make_tree(root, count)
        found = {}
        for count, root in trees.items():
            for turn in ("first", "second"):
                number, seconds, peak, before = in_fresh_process(root, Path(folder) / "cache")
                found[count, turn] = number, seconds, peak
                each = (peak - before) * 2**20 / number
                print(
                    f"{number:8d}   {turn:6} {seconds:6.2f} {1e6 * seconds / number:9.2f} "
                    f"{peak:9.0f} {before:11.0f} {each:12.0f}"
                )
    for turn in ("first", "second"):
        (few, short, small), (many, long, large) = found[FEW, turn], found[pictures, turn]
        per_picture = (long - short) / (many - few)
        memory = (large - small) / (many - few)
        print(
            f"{turn} time, {IMAGENET:,} files: {short:.2f} s + {1e6 * per_picture:.2f} us each = "
            f"{short + IMAGENET * per_picture:.1f} s; {small:.0f} MB + {memory * 2**20:.0f} bytes "
            f"each = {small + IMAGENET * memory:.0f} MB"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(*measure(Path(sys.argv[2])))
    else:
        report(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
