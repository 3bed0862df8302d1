"""Writes the networks that `camtrain models` knows without looking, for the installed torchvision.

Run: python tests/model/ship_catalogue.py
"""

import json
from dataclasses import asdict
from importlib.metadata import version

from camtrain.model.backbones import every_name
from camtrain.model.catalogue import SHIPPED
from camtrain.model.describe import describe

if __name__ == "__main__":
    entries = [describe(name) for name in every_name() if not name.startswith("timm/")]
    lines = ",\n".join(json.dumps(list(asdict(entry).values())) for entry in entries)
    head = f'"torchvision": "{version("torchvision")}"'
    SHIPPED.write_text(f'{{{head}, "entries": [\n{lines}\n]}}\n')
