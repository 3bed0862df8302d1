"""Data sets in their real layouts, made for tests: the lists as published, tiny pictures."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (50, 30)  # width and height


def picture(file: Path, size: tuple[int, int] = SIZE) -> Path:
    """A small picture in a folder that is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(file, format="PNG")
    return file


def text(file: Path, *lines: str, encoding: str = "utf-8") -> Path:
    """A file of lines in a folder that is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return file


def xml(file: Path, *objects: tuple[str, int, int, int, int]) -> Path:
    """An annotation as Pascal VOC and ILSVRC have it, of objects (name, xmin, ymin, xmax, ymax)."""
    width, height = SIZE
    lines = ["<annotation>", f"<size><width>{width}</width><height>{height}</height></size>"]
    for name, *corners in objects:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{tag}>{corner}</{tag}>" for tag, corner in tags)
        lines.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
    return text(file, *lines, "</annotation>")


def idx(file: Path, values: np.ndarray) -> Path:
    """An idx file of bytes, packed where its name ends in .gz."""
    content = bytes([0, 0, 8, values.ndim])
    content += np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file
