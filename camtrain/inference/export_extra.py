"""What is said where a package of the extra ``export`` is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from camtrain.errors import CamtrainValueError


@contextmanager
def needs_extra(purpose: str) -> Iterator[None]:
    """Turn a missing package into one sentence that names the pip command.

    Raises:
        CamtrainValueError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise CamtrainValueError(
            f"{purpose} needs the package {error.name}, which is not installed; run "
            "`pip install 'camtrain[export]'`."
        ) from error
