"""What is said where a package of an extra is missing, and what need not be said."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from camtrain.errors import CamtrainValueError


@contextmanager
def needs_extra(purpose: str, *, extra: str = "export") -> Iterator[None]:
    """Turn a missing package into one sentence that names the pip command.

    Raises:
        CamtrainValueError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise CamtrainValueError(
            f"{purpose} needs the package {error.name}, which is not installed; run "
            f"`pip install 'camtrain[{extra}]'`."
        ) from error


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep what torch's exporters think of their own and the libraries' code off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
