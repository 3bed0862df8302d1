"""Shards of the photographs, on disk and behind a URL."""

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from camtrain.data import SourceOptions, make_sources
from camtrain.data.shards.write import write_shards


def write(root: Path, folder: Path, **settings: float) -> Path:
    sources = make_sources("folder", SourceOptions(root=root))
    for _ in write_shards(sources, folder, root=str(root), **settings):
        pass
    return folder


@pytest.fixture
def shards(photographs: Path, tmp_path: Path) -> Path:
    """The photographs in shards of at most a few pictures each."""
    return write(photographs, tmp_path / "shards", shard_mb=0.015)


class Server(NamedTuple):
    """A folder behind a URL, and how often each of its files was asked for."""

    url: str
    asked: Counter[str]


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    """The shards behind a URL of this machine."""
    asked: Counter[str] = Counter()

    class Counting(_Handler):
        def do_GET(self) -> None:
            asked[self.path.strip("/")] += 1
            super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(shards))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_address[1]}", asked)
        http.shutdown()
        thread.join()
