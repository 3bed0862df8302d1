"""Exceptions within messages."""

from camtrain.errors import CamtrainValueError, one_line


def test_a_long_text_keeps_its_begin_and_its_end() -> None:
    text = one_line(CamtrainValueError(f"The file {'x' * 1000} is damaged; export it again."))
    assert len(text) == 300
    assert text.startswith("The file xxx")
    assert text.endswith("xxx is damaged; export it again.")
