"""How jsonargparse reads and writes options, so that YAML holds every name of a file or class."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import jsonargparse
import torch
import yaml
from jsonargparse.typing import register_type

from camtrain.errors import CamtrainValueError, one_line
from camtrain.files import check_nested

_read = jsonargparse.get_loader("yaml")
# A character beyond U+FFFF as JSON writes it, and half of one, as Python keeps bytes of file names.
_PAIR = re.compile(r"(?<!\\)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
# To be quoted: breaks of Unicode, which PyYAML would read as blanks, what looks like halves, and
# numbers, which for jsonargparse are more than for PyYAML: 1e5.
_QUOTED = re.compile(r"[\x85\u2028\u2029]|\\u|^[-+]?[.\d]")


_Dumper: Any = type("_Dumper", (yaml.SafeDumper,), {})  # writes what `read_yaml` reads


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _QUOTED.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)
_Dumper.add_multi_representer(Enum, lambda dumper, value: _text_node(dumper, str(value.value)))


def read_yaml(text: str) -> Any:  # noqa: ANN401
    """The value of a YAML text, which unlike that of libyaml may have halves of characters."""
    try:
        value = _read(text)
        check_nested(value)  # aliases may stand for more than anybody could print
        return value
    except (RecursionError, CamtrainValueError) as error:
        raise CamtrainValueError(
            f"The YAML text {text!r:.50} ... cannot be used ({one_line(error)}); write plain "
            "values."
        ) from None
    except yaml.YAMLError:
        if not _HALF.search(text):
            raise
    joined = _PAIR.sub(lambda pair: bytes.fromhex(pair[1] + pair[2]).decode("utf-16-be"), text)
    return yaml.safe_load(joined)


def write_yaml(value: object, *, ascii_only: bool = False) -> str:
    """A plain value as YAML, in the order of its keys."""
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=not ascii_only, sort_keys=False))


def use_in_parsers() -> None:
    """Let jsonargparse read and write this way."""
    jsonargparse.set_loader("yaml", read_yaml)
    jsonargparse.set_dumper("yaml", write_yaml)
    register_type(torch.device, str, torch.device, fail_already_registered=False)
