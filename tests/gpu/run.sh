#!/usr/bin/env bash
# The tests of tests/gpu, then tests/benchmarks/gpu.py, within ten minutes, without a network.
#
#     bash tests/gpu/run.sh [FOLDER]      results go into $OUT, else FOLDER, else gpu_results
#
# CAMTRAIN_GPU_DEVICE=cpu tries both on the CPU, the benchmark at its tiny size. PYTHON names another
# interpreter. Wheels of packages that are missing (such as jsonargparse) may lie in ./.whl.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${OUT:-${1:-gpu_results}}
mkdir -p "$results"
results=$(cd "$results" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 WANDB_MODE=disabled
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # of deterministic matrix products; read once per process

if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl \
        >"$results/wheels.txt" 2>&1 || echo "wheels were not installed, see wheels.txt"
    export PYTHONPATH="$PYTHONPATH:$site"
fi
"$python" - >"$results/machine.txt" 2>&1 <<'END_OF_PYTHON'
import importlib.metadata as metadata
import os
import sys

names = (
    "torch torchvision timm pytorch-lightning torchmetrics scikit-learn opencv-python-headless onnx"
    " onnxscript onnxruntime safetensors jsonargparse wandb pytest hypothesis"
)
print(sys.version.split()[0], os.cpu_count(), "cores")
for name in names.split():
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is missing")
import torch

print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU of CUDA")
END_OF_PYTHON
tail -n 1 "$results/machine.txt"

device=${CAMTRAIN_GPU_DEVICE:-cuda}
tests=${CAMTRAIN_GPU_TESTS_SECONDS:-210}
benchmark=(--device "$device")
[ "$device" = cuda ] || benchmark+=(--tiny)
status=0 several=()

# `timeout` sends SIGINT first, so that pytest still lists what has failed. The filters of
# pyproject.toml name a package that may be missing, and a warning is no error here.
if [ "$(nproc)" -ge 8 ] && "$python" -c "import xdist" 2>/dev/null; then several=(-n 4); fi
timeout -s INT -k 10 "$tests" "$python" -m pytest -m gpu tests/gpu -q -p no:cacheprovider "${several[@]}" \
    -o filterwarnings=default --disable-warnings --durations=10 --tb=short >"$results/tests.txt" 2>&1 || status=1
grep -E "^(FAILED|ERROR)" "$results/tests.txt" | cut -c1-150
tail -n 1 "$results/tests.txt"

timeout -k 10 340 "$python" tests/benchmarks/gpu.py "${benchmark[@]}" \
    >"$results/benchmark.txt" 2>"$results/benchmark_errors.txt" || status=1
cat "$results/benchmark.txt"
echo "results: $results (status $status)"
exit $status
