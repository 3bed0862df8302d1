"""How long exports take, their parity check included; the aim is 30 s.

Run: python tests/benchmarks/export.py [NAME ...], by default a few of every kind
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import camtrain
from camtrain.inference.export.write import export_network

USUAL = [
    *("torchvision/vgg16", "torchvision/resnet50", "torchvision/googlenet"),
    *("torchvision/squeezenet1_1", "torchvision/densenet121", "torchvision/convnext_tiny"),
    *("timm/tf_efficientnet_b0", "timm/tf_mobilenetv3_large_100", "timm/vit_tiny_patch16_224"),
]

if __name__ == "__main__":
    for name in sys.argv[1:] or USUAL:
        net = camtrain.create_model(name, 1000, weights=None, neck=()).eval()
        times = []
        for suffix in (".onnx", ".pt2"):
            with TemporaryDirectory() as folder:
                wall, cpu = time.perf_counter(), time.process_time()
                export_network(net, Path(folder) / f"a{suffix}")
                seconds = (time.perf_counter() - wall, time.process_time() - cpu)
            times.append(f"{suffix} {seconds[0]:.1f} s ({seconds[1]:.1f} s of processor time)")
        print(f"{name}: {', '.join(times)}", flush=True)
