"""Reads the run file of W&B, a log of protobuf records in LevelDB's framing."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32768, 7, struct.Struct("<IHB")
_FULL, _LAST = 1, 4
_LONGEST_WAIT = 120  # seconds; a busy machine takes many


def history(path: Path) -> list[dict[str, str]]:
    """The logged rows in order: name to value in JSON."""
    found = [record.history.item for record in records(path)]
    rows = [{item.key or "/".join(item.nested_key): item.value_json for item in r} for r in found]
    return [row for row in rows if row]


def config(path: Path) -> dict[str, str]:
    """The run's settings: name to value in JSON."""
    updates = [record.config.update for record in records(path)]
    return {item.key or "/".join(item.nested_key): item.value_json for u in updates for item in u}


def summary(path: Path) -> dict[str, str]:
    """The run's summary: name to value in JSON."""
    updates = [record.summary.update for record in records(path)]
    return {item.key or "/".join(item.nested_key): item.value_json for u in updates for item in u}


def records(path: Path) -> list[Any]:
    """All records of a run that has ended; waits for W&B's service, which writes them."""
    from wandb.proto import wandb_internal_pb2

    found: list[Any] = []
    end = time.monotonic() + _LONGEST_WAIT
    while not found or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end, f"W&B's service has not ended {path}"
        time.sleep(0.05 if found else 0)
        found = []
        for data in whole_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


def whole_records(content: bytes) -> Iterator[bytes]:
    """The records of a run file that are written to their end."""
    position, parts = _FILE_HEADER, b""
    while position + _RECORD_HEADER.size <= len(content):
        if _BLOCK - position % _BLOCK < _RECORD_HEADER.size:  # the rest of a block is padding
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = _RECORD_HEADER.unpack_from(content, position)
        position += _RECORD_HEADER.size
        if position + length > len(content):
            return
        parts += content[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
