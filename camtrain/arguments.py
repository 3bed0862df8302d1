"""What the verbs share: a parser, words for the values of options, a notice of slow work."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from threading import Timer
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

_PATIENCE = 0.5  # seconds


@contextmanager
def announce(work: str) -> Iterator[None]:
    """Print the name of the work to stderr if it takes longer than half a second."""
    timer = Timer(_PATIENCE, print, [f"{work} ..."], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def print_paragraph(text: str) -> None:
    """Print a paragraph: a line of its own, on a terminal lines that end between words."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = fill(text, width, break_long_words=False, break_on_hyphens=False)
    print(text, flush=True)


class _LastingFile(io.FileIO):
    """A standard stream that nobody can close: what cannot be written is lost.

    Attributes:
        error: Why something was lost, other than a reader who has read enough.
    """

    error: OSError | None = None
    is_lost = False

    def write(self, content: Any, /) -> Any:  # noqa: ANN401
        """Write, or lose this and all that follows."""
        try:
            return super().write(content)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.error = error
            self.is_lost = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(content).nbytes


def make_streams_last() -> list[_LastingFile]:
    """Let neither the end of a reader, nor a full disk, nor a letter end a program that prints.

    Returns:
        The files of standard output and standard error.
    """
    files = []
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed from the start
            setattr(sys, name, open(os.devnull, "w", errors="replace"))  # noqa: SIM115
        buffer = getattr(stream, "buffer", None)  # the file itself, where Python is unbuffered
        if not isinstance(getattr(buffer, "raw", buffer), io.FileIO):
            continue  # of a notebook or a test
        file = _LastingFile(stream.fileno(), "w", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(file) if hasattr(buffer, "raw") else file,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, text)
        files.append(file)
    return files


def has_reader() -> bool:
    """Whether standard output is not known to be lost."""
    buffer = getattr(sys.stdout, "buffer", None)
    return not getattr(getattr(buffer, "raw", buffer), "is_lost", False)


class VerbParser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments, and exit."""
        exit_with_error(f"{message}; {self.prog} --help lists the options.")


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Add the option that names what builds a network of the user."""
    text = "for a network of your own: its import path, such as mypackage.nets.MyNet"
    parser.add_argument("--backbone", metavar="PATH", help=text)


def exit_with_error(message: str) -> NoReturn:
    """Print an error of the command line and exit with status 2."""
    print(f"camtrain: error: {message}", file=sys.stderr)
    sys.exit(2)


class _Kind(NamedTuple):
    """Words for one kind of value."""

    metavar: str  # in help
    singular: str  # in a message about one value
    plural: str = ""  # in a message about a list
    example: str = ""  # an item of such a list


_KINDS: dict[Any, _Kind] = {
    bool: _Kind("{true,false}", "true or false"),
    int: _Kind("N", "an integer", "integers", "64"),
    float: _Kind("X", "a number", "numbers", "0.5"),
    Path: _Kind("PATH", "a path", "paths", "photos"),
    str: _Kind("NAME", "a name", "names", "cat"),
}


def metavar_of(annotation: object) -> str:
    """What stands for a value of an annotated option in its help, such as ``N`` or ``PATH``.

    Example:
        >>> metavar_of(int | None), metavar_of(Literal["avg", "max"]), metavar_of(list[float])
        ('N', '{avg,max}', '[X, ...]')
    """
    return "|".join(kind.metavar for kind in _kinds(annotation) if kind.metavar) or "VALUE"


def expected_value(annotation: object) -> str:
    """What a value of an annotated option must be, as the end of a sentence.

    Example:
        >>> expected_value(Sequence[float] | None)
        'a list of numbers such as [0.5, 0.5], or null'
    """
    choices = [kind.singular for kind in _kinds(annotation)]
    if type(None) in _union_members(annotation):
        choices.append("null")
    return ", or ".join(dict.fromkeys(choices))


def _union_members(annotation: object) -> list[Any]:
    """The types of a union; for another annotation, a list of it alone."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return list(get_args(annotation)) if is_union else [annotation]


def _kinds(annotation: object) -> Iterator[_Kind]:
    """The kinds of values that an annotation allows, without ``null``."""
    members = _union_members(annotation)
    words = [word for m in members if get_origin(m) is Literal for word in get_args(m)]
    if words:
        names = list(dict.fromkeys(map(str, words)))
        yield _Kind(f"{{{','.join(names)}}}", f"one of {', '.join(names)}")
    for member in members:
        origin, parts = get_origin(member), get_args(member)
        if member is str and Path in members:
            continue  # the text of a path
        if member in _KINDS:
            yield _KINDS[member]
        elif origin is tuple:
            item = _KINDS[parts[0]]
            count = len(parts)
            metavar = ", ".join([item.metavar] * count)
            yield _Kind(f"[{metavar}]", f"a list of {count} {item.plural}")
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            yield _Kind("{...}", 'a mapping such as {"name": 1}')
        elif isinstance(origin, type) and issubclass(origin, Sequence) and parts[0] in _KINDS:
            item = _KINDS[parts[0]]
            example = f"[{item.example}, {item.example}]"
            yield _Kind(f"[{item.metavar}, ...]", f"a list of {item.plural} such as {example}")
