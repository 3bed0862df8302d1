"""What a run file holds while W&B's service is still writing it."""

import struct

from tests.training.run.wandb_file import whole_records

FULL, FIRST, LAST = 1, 2, 4


def test_a_record_that_is_being_written_is_no_record_yet() -> None:
    """Before, its beginning was taken for a whole one: DecodeError, one time in thirty."""
    parts = [(FULL, b"run"), (FULL, b"history"), (FIRST, b"sum"), (LAST, b"mary"), (FULL, b"exit")]
    content = b":W&B..."
    ends = []  # of the file, when each part is whole
    for kind, data in parts:
        content += struct.pack("<IHB", 0, len(data), kind) + data
        ends.append(len(content))
    records = {ends[0]: b"run", ends[1]: b"history", ends[3]: b"summary", ends[4]: b"exit"}
    for size in range(len(content) + 1):
        expected = [record for end, record in records.items() if end <= size]
        assert list(whole_records(content[:size])) == expected
