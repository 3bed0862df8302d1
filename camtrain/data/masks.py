"""Masks of objects that lie in files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camtrain.data.paths import PathList
from camtrain.errors import CamtrainFileNotFoundError, CamtrainValueError

UNKNOWN = 255


class FolderMasks:
    """``root/masks/PATH.png`` of the picture ``root/PATH.jpg``: what is not black is the object.

    Args:
        root: The data folder.
        paths: Of the N pictures, relative to it.
    """

    def __init__(self, root: Path, paths: PathList) -> None:
        self.root = root
        self._paths = paths

    def __call__(self, row: int) -> Tensor | None:
        """The mask of the picture at ``row``, (H, W) uint8 of 0 and 1, if there is one."""
        file = (self.root / "masks" / self._paths[row]).with_suffix(".png")
        return torch.from_numpy(is_object(file).astype(np.uint8)) if file.is_file() else None


class InstanceMasks:
    """Masks of the WSOL benchmark: several per picture, and a region where objects are unknown.

    What is an object in one of the masks is an object; of the rest, what the ignore mask covers is
    unknown (the benchmark's evaluation.py, ``get_mask``).

    Args:
        root: What the files are relative to.
        files: By row: the masks, and the ignore mask or an empty name.
    """

    def __init__(self, root: Path, files: Mapping[int, tuple[Sequence[str], str]]) -> None:
        self.root = root
        self._files = files

    def __call__(self, row: int) -> Tensor | None:
        """The mask of the picture at ``row``, (H, W) uint8 of 0, 1 and 255, if there is one."""
        if row not in self._files:
            return None
        names, ignore = self._files[row]
        instances = _of_one_size(self.root, names)
        mask: NDArray[np.uint8] = np.logical_or.reduce(instances).astype(np.uint8)
        if ignore:
            *_, unknown = _of_one_size(self.root, [names[0], ignore])
            mask[unknown & (mask == 0)] = UNKNOWN
        return torch.from_numpy(mask)


def _of_one_size(root: Path, names: Sequence[str]) -> list[NDArray[np.bool_]]:
    masks = [is_object(root / name) for name in names]
    if len({mask.shape for mask in masks}) > 1:
        sizes = ", ".join(
            f"{name}: {mask.shape[1]} x {mask.shape[0]}"
            for name, mask in zip(names, masks, strict=True)
        )
        raise CamtrainValueError(
            f"The masks of one picture must have one size, but those in {root} have {sizes}; "
            "replace the wrong one."
        )
    return masks


def is_object(file: Path) -> NDArray[np.bool_]:
    """Where a mask file is not black, (H, W)."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L")) > 0
    except FileNotFoundError:
        raise CamtrainFileNotFoundError(
            f"The mask {file} does not exist; check the data folder."
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise CamtrainValueError(
            f"The mask {file} cannot be read ({error}); replace the file."
        ) from error
