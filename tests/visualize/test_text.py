"""Text on pictures fits where it is written."""

import pytest

from camtrain.visualize.overlay import shorten, text_width
from tests.conftest import everyday

LONG = "Staffordshire bullterrier, Staffordshire bull terrier"


@pytest.mark.parametrize("size", everyday([14, 16, 32], 16))
def test_shortened_text_fits_and_keeps_both_ends(size: int) -> None:
    for text in (LONG, "W" * 200, "i" * 200, LONG * 4):
        for width in (100, 300, 700):
            shown = shorten(text, width, size)
            assert text_width(shown, size) <= width
            if shown != text:
                head, tail = shown.split("…")
                assert text.startswith(head)
                assert text.endswith(tail)
                assert 0 <= len(head) - len(tail) <= 2  # a space beside the ellipsis is dropped
                assert text_width(shown, size) > width - 3 * size
    assert shorten(LONG, 2000, size) == LONG
    assert shorten("two\nlines", 500, size) == "two lines"
    assert shorten("Bär · zażółć …", 500, size) == "Bar · zazołc …"
