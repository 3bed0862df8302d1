"""Damages files of every kind at random and reads them.

``python -m tests.fuzzing COUNT [SEED] [KIND...]``. Each file is read or refused in one sentence,
within 2 GB and 20 seconds, and starts nothing. Children that are forked from a process that has
imported everything read one file after another; a child that dies or does not answer is a failure
of its file, and the next one goes on behind it.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features

import camtrain
from camtrain.data import ImageFolder, SourceOptions, make_sources, read_image
from camtrain.errors import CamtrainError
from camtrain.inference.export.write import export_network
from camtrain.training.cli.measuring import MeasuredNetwork
from camtrain.training.cli.yaml_text import read_yaml

SECONDS, MEMORY = 20, 2 * 2**30
LONGEST_MESSAGE = 900
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
STARTS += ("socket.connect", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
DEEP: list[Any] = functools.reduce(lambda inside, _: [inside], range(200), [])
HOSTILE = [
    *(None, True, -1, 0, 2**31, 10**10, 10**30, 1e308, float("inf"), float("nan"), "", "x", DEEP),
    *("a" * 200_000, [], {}, [1, 2], {"a": 1}, "../../../dev/zero", "9**9**9", "\0", "\x1b[31m"),
    "__import__('os').mkdir('ran')",
]
Case = tuple[Path, Callable[[], object]]


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """The content of a file after one to four damages."""
    for _ in range(rng.choice((1, 1, 1, 4))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 4, 30, 400)))
        extreme = rng.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(
            4, rng.choice(("big", "little"))
        )
        new = rng.choice((b"", extreme, rng.randbytes(end - start), data[start:end] * 2))
        data = data[:start] if rng.random() < 0.1 else data[:start] + new + data[end:]
    return data


def damaged_value(rng: random.Random, value: Any) -> Any:  # noqa: ANN401
    """Plain values of which one, at some depth, is another, or missing, or there twice."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = damaged_value(rng, copy[key])
        return copy
    return rng.choice(HOSTILE)


def predict(path: Path) -> None:
    """Load a network and look at a picture with it."""
    predictor = camtrain.load(path)
    channels, (height, width) = len(predictor.preprocessing.mean), predictor.preprocessing.size
    pixels = torch.zeros(3 if channels == 3 else 1, min(height, 64), min(width, 64))
    list(predictor(pixels, largest_side=64))


def small_network() -> camtrain.CAMNet:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 3, neck=(), backbone_args={"width": 1})
    net.preprocessing = camtrain.Preprocessing((16, 16))
    net.name_classes(["ant", "bee", "cat"])
    return net


def pictures(rng: random.Random, folder: Path) -> Iterator[Case]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    seeds = {}
    formats = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "TGA", "ICO"]
    for name in formats + ["AVIF"] * features.check("avif"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, name)
        seeds[name] = file.getvalue()
    seeds["EPS"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n" * 3
    while True:
        path = folder / "a.jpg"
        path.write_bytes(damaged_bytes(rng, seeds[rng.choice(list(seeds))]))
        yield path, lambda path=path: read_image(path)


def bundles(rng: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / "a.safetensors"
    camtrain.Predictor(small_network()).save(path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = json.loads(header["__metadata__"]["camtrain"])
    while True:
        choice = rng.random()
        new = {**header, "__metadata__": {"camtrain": json.dumps(damaged_value(rng, metadata))}}
        text = json.dumps(damaged_value(rng, header) if choice < 0.2 else new).encode()
        whole = len(text).to_bytes(8, "little") + text + data[8 + size :]
        path.write_bytes(damaged_bytes(rng, data) if choice > 0.8 else whole)
        yield path, lambda: predict(path)


def checkpoints(rng: random.Random, folder: Path) -> Iterator[Case]:
    net, path = small_network(), folder / "a.ckpt"
    content = {
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
        "camtrain": {"seed": 0, **net.description.to_dict()},
        "hyper_parameters": {"backbone": "camtrain/digits", "lr": 0.1, "neck": []},
        "datamodule_hyper_parameters": {"root": "photos", "size": 16, "split_file": None},
        "callbacks": {"CAMLogger": {"indices": [1], "faithfulness": 3}, "RunWriter": {"rows": []}},
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}},
        "epoch": 1,
        "global_step": 2,
    }

    def read() -> None:
        predict(path)
        MeasuredNetwork(path)

    while True:
        file = io.BytesIO()
        torch.save(damaged_value(rng, content), file)
        data = file.getvalue()
        if rng.random() < 0.1:  # members deflated
            packed = io.BytesIO()
            with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", 8) as new:
                for name in old.namelist():
                    new.writestr(name, old.read(name))
            data = packed.getvalue()
        path.write_bytes(damaged_bytes(rng, data) if rng.random() < 0.3 else data)
        yield path, read


def exports(rng: random.Random, folder: Path, suffix: str) -> Iterator[Case]:
    path = folder / f"a{suffix}"
    export_network(small_network(), path)
    data = path.read_bytes()
    while True:
        new = damaged_bytes(rng, data)
        if suffix == ".pt2" and rng.random() < 0.8:
            file = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as archive:
                texts = [n for n in old.namelist() if n.endswith((".json", "camtrain"))]
                chosen = rng.choice(texts)
                for name in old.namelist():
                    content = old.read(name)
                    if name == chosen:
                        content = json.dumps(damaged_value(rng, json.loads(content))).encode()
                    archive.writestr(name, content)
            new = file.getvalue()
        path.write_bytes(new)
        yield path, lambda: predict(path)


def boxes(rng: random.Random, folder: Path) -> Iterator[Case]:
    (folder / "test/ant").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (9, 7)).save(folder / f"test/ant/{name}.png")
    (folder / "test/bee").mkdir()
    Image.new("RGB", (9, 7)).save(folder / "test/bee/c.png")
    table = (
        "path,xmin,ymin,xmax,ymax,class\ntest/ant/a.png,1,2,3,4,ant\ntest/ant/b.png,0,0,9,7,ant\n"
    )
    sides = "".join(f"<{side}>2</{side}>" for side in ("xmin", "ymin", "xmax", "ymax"))
    xml = f"<a><object><name>ant</name><bndbox>{sides}</bndbox></object></a>"
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "test/ant/b.png"}],
        "categories": [{"id": 1, "name": "ant"}],
        "annotations": [{"image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4.5]} for n in (1, 2)],
    }
    seeds = {"boxes.csv": table, "test/ant/a.xml": xml, "boxes.json": json.dumps(coco)}

    def read() -> None:
        source = ImageFolder(folder, "test")
        for index in range(len(source)):
            source.boxes(index)

    while True:
        name = rng.choice(list(seeds))
        for other in seeds:
            (folder / other).unlink(missing_ok=True)
        new = damaged_bytes(rng, seeds[name].encode())
        if name == "boxes.json" and rng.random() < 0.7:
            new = json.dumps(damaged_value(rng, coco)).encode()
        elif rng.random() < 0.6:
            numbers = (
                "1e308",
                "inf",
                "nan",
                "-1",
                "9" * 30,
                "3000000000",
                "a" * 140_000,
                '"',
                "\0",
            )
            text, old = seeds[name], rng.choice("1234579")
            new = text.replace(old, rng.choice(numbers), rng.randint(1, 3)).encode()
        (folder / name).write_bytes(new)
        yield folder / name, read


def lists(rng: random.Random, folder: Path) -> Iterator[Case]:
    Image.new("RGB", (9, 7)).save(folder / "a.png")
    text, path = "path,label,split\na.png,ant,test\nb.png,bee;cat,val\n", folder / "labels.csv"
    options = SourceOptions(root=folder)
    while True:
        path.write_bytes(damaged_bytes(rng, text.encode()))
        yield path, lambda: make_sources("csv", options)


def shards(rng: random.Random, folder: Path) -> Iterator[Case]:
    from camtrain import cli

    root, whole = folder / "photos", folder / "shards"
    for place in ("train/ant", "train/bee", "val/ant"):
        (root / place).mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(root / place / "a.png")
    assert cli.main(["shards", str(root), "--to", str(whole)]) == 0
    index, arrays = whole / "index.json", next(whole.glob("*.npz"))
    seeds = {file: file.read_bytes() for file in (index, arrays)}
    content = json.loads(seeds[index])

    def read() -> None:
        for source in make_sources("shards", SourceOptions(root=whole)).values():
            source.read(0)

    while True:
        for file, data in seeds.items():
            file.write_bytes(data)
        file = rng.choice((index, index, arrays))
        new = json.dumps(damaged_value(rng, content)).encode()
        file.write_bytes(new if file == index else damaged_bytes(rng, seeds[file]))
        yield file, read


def configs(rng: random.Random, folder: Path) -> Iterator[Case]:
    lines = ["a: &a [1, x]", "b: &b [*a, *a, *a]", "c: {d: *b, e: 1e5, f: 'g'}", "h: !!set {i, j}"]
    bomb = [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = folder / "a.yaml"
    while True:
        seed = "\n".join(
            [*lines, "k0: &k0 x", *bomb[: rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 3, 11))]]
        )
        path.write_bytes(damaged_bytes(rng, seed.encode()))
        yield path, lambda: read_yaml(path.read_text(errors="replace"))


KINDS: dict[str, Callable[[random.Random, Path], Iterator[Case]]] = {
    **{"pictures": pictures, "bundles": bundles, "checkpoints": checkpoints, "boxes": boxes},
    **{"lists": lists, "shards": shards, "configs": configs},
    "onnx": functools.partial(exports, suffix=".onnx"),
    "pt2": functools.partial(exports, suffix=".pt2"),
}


def outcome(read: Callable[[], object], started: list[str]) -> str:
    """``read`` or ``refused``, or what else became of a file."""
    started.clear()
    try:
        read()
        result = "read"
    except CamtrainError as error:
        result = "refused" if len(str(error)) <= LONGEST_MESSAGE else f"long: {str(error)[:200]}"
    except Exception as error:
        if type(error).__module__.startswith("yaml"):  # the parser of options says it
            return "refused"
        result = "".join(traceback.format_exception(error)[-3:])
    return f"started {started[:3]}" if started else result


def child(cases: Iterator[Case], first: int, count: int, output: int) -> None:
    """Read the files from ``first`` on, and write a line for each."""
    lines = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + MEMORY,) * 2)
    started: list[str] = []
    is_reading = False

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if is_reading and event in STARTS:
            started.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(audit)
    for number, (_, read) in zip(range(count), cases, strict=False):
        if number >= first:
            is_reading = True
            line = outcome(read, started)
            is_reading = False
            os.write(output, json.dumps(line).encode() + b"\n")


def fuzz(kind: str, count: int, seed: str) -> tuple[int, list[str]]:
    """How many files of a kind were read, and what became of those that failed."""
    done, read, failures = 0, 0, []
    while done < count:
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(f"{seed} {kind}")
            source, sink = os.pipe()
            if (pid := os.fork()) == 0:
                status = 1
                try:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                    os.dup2(2, 1)
                    warnings.simplefilter("ignore")
                    os.chdir(folder)
                    child(KINDS[kind](rng, Path(folder)), done, count, sink)
                    status = 0
                finally:
                    os._exit(status)
            os.close(sink)
            begun = done
            with open(source, "rb", buffering=0) as answers:
                text = b""
                patience = 60 + SECONDS  # for the intact files
                while select.select([answers], [], [], patience)[0] and (
                    new := answers.read(65536)
                ):
                    text, patience = text + new, SECONDS
            for line in map(json.loads, text.splitlines()):
                done, read = done + 1, read + (line == "read")
                if line not in ("read", "refused"):
                    failures.append(f"{kind} {done - 1}: {line}")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if done < count:
                failures.append(f"{kind} {done}: ended or did not answer within {SECONDS} s")
                done += 1
                if done == begun + 1 and begun == 0:
                    return read, failures  # the intact files could not be made
    return read, failures


def main(args: list[str]) -> int:
    """Print a line per kind, and every failure; 1 if there are any."""
    torch.set_num_threads(1)
    count, seed, *kinds = [*args, "0"] if len(args) < 2 else args
    status = 0
    for kind in kinds or KINDS:
        read, failures = fuzz(kind, int(count), seed)
        print(f"{kind}: {count} files, {read} read, {len(failures)} failures", flush=True)
        for failure in failures[:20]:
            print(failure, flush=True)
        status = status or bool(failures)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
