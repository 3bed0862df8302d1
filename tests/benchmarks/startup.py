"""Seconds until the front door answers: the median of three fresh processes each.

Run: python tests/benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def seconds(*args: str) -> float:
    """Median wall time of ``python ARGS``."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *args], cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    interpreter = seconds("-c", "pass")
    imported = seconds("-c", "import camtrain")
    print(
        f"import camtrain      {imported - interpreter:6.3f} s beyond the interpreter's own start"
    )
    print(f"camtrain             {seconds('train.py'):6.3f} s")
    print(f"camtrain --help      {seconds('train.py', '--help'):6.3f} s")
    print(f"camtrain fit --help  {seconds('train.py', 'fit', '--help'):6.3f} s")
