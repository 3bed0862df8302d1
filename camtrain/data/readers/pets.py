"""Oxford-IIIT Pet: 37 breeds of cats and dogs (Parkhi et al., CVPR 2012)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camtrain.data.boxes import XmlBoxes
from camtrain.data.decoding import read_gray
from camtrain.data.lists import PathList, check_first_picture, find_one_of, lines_of
from camtrain.data.readers.download import downloading
from camtrain.data.source import Listing, Split, no_boxes, split_number
from camtrain.errors import CamtrainValueError

_LISTS: dict[Split, str] = {"train": "trainval.txt", "test": "test.txt"}
_FORM = "name class species breed"
_SPECIES = ("cat", "dog")  # as the files of heads call them
_ANIMAL, _BACKGROUND, _UNKNOWN = 1, 2, 255  # of a trimap; what is neither is the animal's edge


def pets_listing(root: Path, head_boxes: bool = False) -> Listing:
    """The pictures of ``oxford-iiit-pet``: the folder itself, or the one that holds it.

    If there is neither, torchvision downloads it. It reads ``annotations/trainval.txt`` and
    ``test.txt`` (name, class from 1, species, breed; pictures ``images/NAME.jpg``), which are train
    and test; val is split off train. A class is called like its pictures. Masks are
    ``annotations/trimaps/NAME.png``: the animal 1, its edge 255.

    Args:
        root: The data folder.
        head_boxes: Boxes are those of the heads, ``annotations/xmls/NAME.xml``, which pictures of
            test have none of; else they hold all that is not background in the trimaps, as in
            TensorFlow's ``create_pet_tf_record.py``.
    """
    folder = root if (root / "annotations").is_dir() else root / "oxford-iiit-pet"
    if not (folder / "annotations").is_dir():
        with downloading(
            root,
            "Oxford-IIIT Pet (0.8 GB)",
            "unpack images.tar.gz and annotations.tar.gz of "
            "https://www.robots.ox.ac.uk/~vgg/data/pets there",
        ):
            from torchvision.datasets import OxfordIIITPet  # takes a second to import

            OxfordIIITPet(root, download=True)
    names: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    breeds: dict[int, str] = {}
    species: dict[int, str] = {}
    for split, name in _LISTS.items():
        file = find_one_of(folder / "annotations", [name], f"the list {_FORM} of Oxford-IIIT Pet")
        for line in lines_of(file, _FORM):
            picture, label = line.fields[0], line.integer(1, start=1) - 1
            breed = picture.rpartition("_")[0].replace("_", " ").title()
            if breeds.setdefault(label, breed) != breed:
                raise CamtrainValueError(
                    f"{line.place}: class {label + 1} is {breeds[label]}, got a picture of {breed};"
                    " download the data set again."
                )
            species[label] = _SPECIES[line.integer(2, start=1, below=3) - 1]
            names.append(picture)
            labels.append(label)
            splits.append(split_number(split))
    check_first_picture(folder / f"images/{names[0]}.jpg", folder / "annotations/trainval.txt")
    missing = set(range(max(labels))) - set(labels)
    if missing:
        raise CamtrainValueError(
            f"The lists in {folder / 'annotations'} must have pictures of every class, got none of "
            f"class {min(missing) + 1}; download the data set again."
        )
    trimaps = folder / "annotations/trimaps"
    listing = Listing(
        root=folder,
        paths=PathList.of(f"images/{name}.jpg" for name in names),
        labels=np.array(labels, np.int64),
        splits=np.array(splits, np.int8),
        class_names=tuple(breeds[label] for label in sorted(breeds)),
        has_class_list=True,
        masks=partial(_mask, trimaps, names),
        boxes=partial(_box, trimaps, names),
    )
    if not head_boxes:
        return listing
    heads = [species[label] for label in sorted(species)]
    template = "annotations/xmls/{stem}.xml"
    return replace(listing, boxes=XmlBoxes(listing, heads, [template], first_pixel=1))


def _mask(folder: Path, names: list[str], row: int) -> Tensor | None:
    """The mask of the picture at ``row``, (H, W) uint8 of 0, 1 and 255; None without a trimap."""
    file = folder / f"{names[row]}.png"
    if not file.is_file():
        return None
    trimap = read_gray(file)
    mask = np.where(trimap == _ANIMAL, 1, _UNKNOWN).astype(np.uint8)
    mask[trimap == _BACKGROUND] = 0
    return torch.from_numpy(mask)


def _box(folder: Path, names: list[str], row: int) -> Tensor:
    """The box of all that is not background in the trimap of the picture at ``row``."""
    mask = _mask(folder, names, row)
    if mask is None or not mask.any():
        return no_boxes(row)
    rows, columns = (mask.any(dim).nonzero().flatten() for dim in (1, 0))
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])[None]
