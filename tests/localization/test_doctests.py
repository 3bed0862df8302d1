"""The examples in the docstrings print what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    ["accuracy", "boxes", "contours", "max_box_acc", "mosaics", "pointing", "pxap"],
)
def test_examples_print_what_they_say(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"camtrain.localization.{module}"))
    assert attempted > 0
    assert failed == 0
