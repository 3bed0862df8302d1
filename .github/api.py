"""Write the reference of the public names, from their docstrings.

Run: pip install -e ".[docs]" && python -W error .github/api.py FOLDER
"""

import importlib
import sys
from pathlib import Path
from typing import get_type_hints

import pdoc

PACKAGES = ["", ".data", ".localization", ".training", ".visualize"]


def write(folder: Path) -> None:
    """Write a page for each public package."""
    packages = [f"camtrain{suffix}" for suffix in PACKAGES]
    for package in packages:
        module = importlib.import_module(package)
        for name in module.__all__:  # pdoc does not see names that load on first use
            value = getattr(module, name)
            setattr(module, name, value)
            if hasattr(value, "_fields"):  # nor the types of named tuples
                value.__new__.__annotations__ = get_type_hints(value)
    inner = r"!camtrain\.(?!(data|localization|training|visualize)$).*"
    pdoc.render.configure(docformat="google", search=True)
    pdoc.pdoc(*packages, inner, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
