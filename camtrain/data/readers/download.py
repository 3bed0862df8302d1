"""Data sets that torchvision downloads where they are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from camtrain.errors import CamtrainFileNotFoundError, one_line


@contextmanager
def downloading(folder: Path, what: str, advice: str) -> Iterator[None]:
    """Say what is downloaded into a folder, and what to do where it fails.

    Raises:
        CamtrainFileNotFoundError: It failed; folders that hold nothing are removed.
    """
    print(f"Downloading {what} to {folder} ...", file=sys.stderr, flush=True)
    try:
        yield
    except (OSError, RuntimeError) as error:
        for empty in (*folder.glob("*"), folder):
            with suppress(OSError):
                empty.rmdir()
        reason = one_line(error, with_type=False)
        raise CamtrainFileNotFoundError(
            f"{folder} lacks {what}, which cannot be downloaded ({reason}); {advice}."
        ) from error
