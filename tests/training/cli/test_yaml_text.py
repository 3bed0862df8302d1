"""Options in YAML: every name of a file or a class is read back as it was written."""

import json
import os

import jsonargparse
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from camtrain.errors import CamtrainValueError
from camtrain.training.cli.yaml_text import read_yaml, write_yaml

NAMES = st.text() | st.binary().map(os.fsdecode)  # characters, and bytes that are no UTF-8


@pytest.mark.parametrize("ascii_only", [False, True])
@settings(max_examples=60)
@example(["\U0001f600", "caf\udce9", "\\ud83d\\ude00", "a\x85b\u2028c", "no", "1e3", "0E0", "#"])
@given(names=st.lists(NAMES))
def test_names_are_read_back(ascii_only: bool, names: list[str]) -> None:
    text = write_yaml({"class_names": names}, ascii_only=ascii_only)
    assert read_yaml(text) == {"class_names": names}


# Text: before, by jsonargparse; after.
BEFORE = {
    json.dumps(["\U0001f600"]): (yaml.YAMLError, ["\U0001f600"]),
    yaml.safe_dump(["caf\udce9"]): (yaml.YAMLError, ["caf\udce9"]),
    "[1e3, no]": ([1000.0, False], [1000.0, False]),
}


@pytest.mark.parametrize("text", BEFORE)
def test_what_jsonargparse_could_not_read(text: str) -> None:
    before, after = BEFORE[text]
    read_before = jsonargparse._loaders_dumpers.yaml_load
    if isinstance(before, type):
        with pytest.raises(before, match="invalid Unicode character escape code"):
            read_before(text)
    else:
        assert read_before(text) == before
    assert read_yaml(text) == after


def test_a_text_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml("[1, ")


def test_aliases_that_stand_for_more_than_anybody_could_print_are_refused() -> None:
    """Before: reading never ended."""
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    for text in ("\n".join(lines), f"{'[' * 900}{']' * 900}"):
        with pytest.raises(CamtrainValueError, match="cannot be used"):
            read_yaml(text)
