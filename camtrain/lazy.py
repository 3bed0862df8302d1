"""Names of a package that load on first use, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """The ``__getattr__`` and ``__dir__`` of a package (PEP 562), and its ``__all__``.

    Args:
        package: Full name of the package.
        homes: By full name of a module, the names that it defines, with spaces between them.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}

    def get_attribute(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name]), name)

    return get_attribute, lambda: sorted(home_of), sorted(home_of)
