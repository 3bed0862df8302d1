"""The argument parser: what it cannot understand becomes one line with the nearest option."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from camtrain.training.cli.help import verb_help


class OneLineParser(LightningArgumentParser):
    """LightningArgumentParser without the page of usage before an error, and with our help.

    Attributes:
        verb: Whose options it parses; None for the parser of all verbs.
    """

    verb: str | None = None

    def format_help(self, *args: Any) -> str:
        """The help of the verb."""
        return super().format_help(*args) if self.verb is None else verb_help(self.verb, self)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        told = " ".join(message.split())
        options = list(dict.fromkeys(_options(self)))
        print(f"camtrain: error: {told}{_hint(told, options)}", file=sys.stderr)
        sys.exit(2)


def _hint(message: str, options: list[str]) -> str:
    """The options nearest to the one that a message is about."""
    about = re.search(r"(?:option '|arguments: -*|[Kk]ey '?\"?)([\w.]+)", message)
    if about is None or about[1] in options:
        return "; camtrain VERB --help lists the options"
    near = difflib.get_close_matches(about[1], options, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else "; camtrain VERB --help lists them"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The names of the options of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)
        else:
            yield action.dest
