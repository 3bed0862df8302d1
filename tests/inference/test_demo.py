"""The page shows what the predictor says, on this machine only."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

import camtrain
from camtrain import Predictor, cli
from camtrain.errors import CamtrainValueError
from camtrain.inference import demo
from tests.conftest import skip_but_in_ci

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

ROOT = Path(__file__).parents[2]


@pytest.fixture
def predictor() -> Predictor:
    return small_predictor()


def small_predictor() -> Predictor:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 7, neck=(), backbone_args={"width": 2})
    return Predictor(net, threshold=0.3)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_card_is_the_overlay_with_the_boxes_of_the_threshold(
    predictor: Predictor, picture: Path
) -> None:
    seen = demo.predict_file(predictor, str(picture))
    assert seen is not None
    cards = demo.cards_of(seen, 0.3)
    assert len(cards) == 5
    for rank, (drawn, text) in enumerate(cards):
        assert drawn.size == (60, 40)
        count = len(seen.boxes[rank])
        assert text.startswith(f"{seen.names[rank]}: {100 * seen.scores[rank]:.1f}%, {count} box")
        assert np.asarray(drawn).tobytes() != np.asarray(seen.overlay(rank)).tobytes()
    higher = demo.cards_of(seen, 0.9)
    assert higher[0][0].tobytes() != cards[0][0].tobytes()
    assert demo.predict_file(predictor, None) is None
    assert demo.cards_of(None, 0.3) == []


def test_without_gradio_it_says_what_to_install(
    predictor: Predictor,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(CamtrainValueError, match=r"pip install gradio"):
        demo.page(predictor, "title")
    assert cli.main(["demo", str(picture)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_address_in_use_is_refused_in_one_sentence(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((demo.LOCAL, 0)) as server:
        port = server.getsockname()[1]
        assert cli.main(["demo", str(picture), "--port", str(port)]) == 2
    assert f"got {demo.LOCAL} and {port} (Address already in use)" in capsys.readouterr().err


HOSTS = {
    "localhost": True,
    "127.0.0.1:7860": True,
    "[::1]:7860": True,
    "Here:80": True,
    "evil.example:7860": False,
    "127.0.0.1.evil.example": False,
    "": False,
}


@pytest.mark.parametrize(("host", "is_known"), HOSTS.items())
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_foreign_name_of_this_machine_is_refused(kind: str, host: str, is_known: bool) -> None:
    pytest.importorskip("starlette")
    answers: list[object] = []

    async def app(scope: object, receive: object, send: object) -> None:
        answers.append("the page")

    async def send(message: dict[str, object]) -> None:
        answers.append(message.get("status"))

    scope = {"type": kind, "headers": [(b"host", host.encode())], "extensions": {}}
    asyncio.run(demo.KnownHosts(app, ["localhost", "here"])(scope, None, send))
    assert (answers == ["the page"]) is is_known
    assert is_known or answers[0] in (403, None)


@pytest.mark.parametrize(("host", "server_name"), [("::1", "[::1]"), ("[::1]", "[::1]")])
def test_addresses_of_the_longer_kind_are_given_in_brackets(
    host: str, server_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_check_address", lambda host, port: None)
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())
    monkeypatch.setattr(demo, "signal", lambda number, handler: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    launched: dict[str, object] = {}
    monkeypatch.setattr(demo, "page", lambda *args: SimpleNamespace(launch=launched.update))
    small_predictor().save(tmp_path / "model.safetensors")
    assert cli.main(["demo", str(tmp_path / "model.safetensors"), "--host", host]) == 0
    assert launched["server_name"] == server_name
    assert not Path(os.environ["GRADIO_TEMP_DIR"]).exists()


def test_what_is_no_address_is_refused_in_one_sentence(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for host in ("nowhere.invalid", "\N{BULLET}" * 80, "192.0.2.1"):
        assert cli.main(["demo", str(picture), "--host", host]) == 2
        assert "must be an address of this machine" in capsys.readouterr().err


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a page in a process of its own, since its server leaves threads and warnings behind."""
    if importlib.util.find_spec("gradio") is None:  # its import takes seconds
        skip_but_in_ci("the extra `demo` is not installed")
    folder = tmp_path_factory.mktemp("demo")
    small_predictor().save(folder / "model.safetensors")
    with socket.socket() as free:
        free.bind((demo.LOCAL, 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "train.py"), "demo", str(folder / "model.safetensors")]
    (folder / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    command += ["--port", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment) as server:
        try:
            wait_for(f"http://{demo.LOCAL}:{port}/config")
            yield f"http://{demo.LOCAL}:{port}"
        finally:
            server.terminate()
            assert server.wait(60) == 128 + signal.SIGTERM
    assert not [path for path in (folder / "temporary").rglob("*") if path.is_file()]


@pytest.mark.nightly
def test_the_page_answers_on_this_machine_and_refuses_large_files(url: str, picture: Path) -> None:
    said = see(url, picture.read_bytes())
    assert "event: complete" in said
    assert said.count('"caption"') == 5
    for damaged in (picture.read_bytes()[:500], b"hello", b""):
        assert '"error": "The image you dropped cannot be read (' in see(url, damaged)
    with pytest.raises(urllib.error.HTTPError) as refused:
        upload(url, bytes((demo.MOST_MEGABYTES + 1) * 2**20))
    assert refused.value.code == 413
    refused.value.close()


@pytest.mark.nightly
def test_a_picture_is_dropped_and_its_classes_are_seen(
    url: str, tmp_path: Path, browser: WebDriver
) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    y, x = np.mgrid[:240, :320]
    picture = tmp_path / "a.png"
    Image.fromarray(np.stack((y, x * 0.8, 255 - y), axis=2).astype(np.uint8)).save(picture)
    [prediction] = small_predictor()(picture, top=5)
    expected = demo.cards_of(prediction, 0.3)
    browser.get(url)
    in_time = WebDriverWait(browser, 30)
    in_time.until(lambda page: page.find_elements("css selector", "input[type=file]"))
    browser.find_element("css selector", "input[type=file]").send_keys(str(picture))
    in_time.until(lambda page: len(cards_on(page)) == len(expected))
    assert [text for text, _ in cards_on(browser)] == [text for _, text in expected]
    for (_, shown), (drawn, _) in zip(cards_on(browser), expected, strict=True):
        assert shown.size == drawn.size
        difference = np.asarray(shown).astype(int) - np.asarray(drawn)
        assert np.abs(difference).mean() < 3  # the page sends them as WebP


def cards_on(page: WebDriver) -> list[tuple[str, Image.Image]]:
    """Text and picture of each card."""
    cards = []
    for card in page.find_elements("css selector", ".grid-container button"):
        source = card.find_element("css selector", "img").get_attribute("src")
        with urllib.request.urlopen(str(source)) as answer:
            cards.append((card.text, Image.open(io.BytesIO(answer.read())).convert("RGB")))
    return cards


def wait_for(url: str) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.URLError:
            time.sleep(0.5)
    pytest.fail(f"nothing answers at {url}")


def see(url: str, content: bytes) -> str:
    """What the page answers to a picture."""
    [uploaded] = json.loads(upload(url, content))
    file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file, 0.3]}).encode()
    event = json.loads(posted(f"{url}/gradio_api/call/see", body, "application/json"))
    with urllib.request.urlopen(f"{url}/gradio_api/call/see/{event['event_id']}") as answer:
        text: str = answer.read().decode()
    return text


def upload(url: str, content: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    kind = "multipart/form-data; boundary=x"
    return posted(f"{url}/gradio_api/upload", head + content + b"\r\n--x--\r\n", kind)


def posted(url: str, body: bytes, kind: str) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request) as answer:
        content: bytes = answer.read()
    return content
