"""The report in a real browser: its sliders move, its pictures are right, its console is silent."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from camtrain.maps import picture_heatmaps
from camtrain.preprocessing import Preprocessing
from camtrain.training.cli.main import main as run
from camtrain.visualize import overlay
from camtrain.visualize.report.page import unpacked_map
from tests.conftest import make_photographs
from tests.training.watch.test_report import content_of, written

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver
    from selenium.webdriver.remote.webelement import WebElement

Arguments = Callable[..., list[str]]


class Page:
    """A report that is open, as it is at first sight."""

    def __init__(self, driver: WebDriver, path: Path) -> None:
        self.driver = driver
        driver.get(path.as_uri())
        driver.execute_script("sessionStorage.clear()")
        self.reload()
        driver.get_log("browser")

    def reload(self) -> None:
        """Load it again, and wait until its pictures are drawn."""
        self.driver.refresh()
        drawn = "return document.documentElement.dataset.isDrawn === 'true'"
        for _ in range(2000):
            if self.driver.execute_script(drawn):
                return
            time.sleep(0.05)
        pytest.fail(f"the pictures are not drawn: {self.complaints()}")

    def one(self, selector: str) -> WebElement:
        """The first element."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[WebElement]:
        """Every element."""
        return list(self.driver.find_elements("css selector", selector))

    def press(self, selector: str, key: str, times: int = 1) -> None:
        """Press a key in an element."""
        from selenium.webdriver import Keys

        for _ in range(times):
            self.one(selector).send_keys(getattr(Keys, key))

    def pixels(self, number: int = 0, where: str = "pictures") -> np.ndarray:
        """What a card's canvas shows, (H, W, 3)."""
        script = "return document.querySelectorAll(arguments[0])[arguments[1]].toDataURL()"
        data = self.driver.execute_script(script, f"#{where} canvas", number)
        with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as picture:
            return np.asarray(picture.convert("RGB"))

    def words(self, number: int = 0) -> str:
        """What stands below a watched picture."""
        return self.all("#pictures .words")[number].text

    def complaints(self) -> list[str]:
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


NIGHTLY = [pytest.param(mode, marks=pytest.mark.nightly) for mode in ("squash", "pad")]


@pytest.fixture(scope="module", params=["crop", *NIGHTLY])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs."""
    folder = tmp_path_factory.mktemp(request.param)
    root = make_photographs(folder / "photographs")
    run(
        [
            *("fit", "--model.backbone", "camtrain/digits", "--model.neck", "[]"),
            *("--model.backbone_args", '{"width": 4}', "--data.root", str(root)),
            *("--data.size", "32", "--data.resize_mode", request.param, "--data.workers", "0"),
            *("--data.batch_size", "8", "--trainer.max_epochs", "3", "--model.lr", "0.01"),
            *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
            *("--runs_dir", str(folder), "--name", "run", "--logger", "none"),
        ]
    )
    return folder / "run"


def expected(run_folder: Path, number: int, epoch: int, side: str, opacity: float) -> np.ndarray:
    """The overlay as Python draws it, at the size of the canvas."""
    content = content_of(run_folder / "report.html")
    picture, look = content["pictures"][number], content["epochs"][epoch]["looks"][number][side]
    class_map = unpacked_map(look["map"])[None]
    settings = content["settings"]["Pictures (--data)"]
    preprocessing = Preprocessing((32, 32), resize_mode=settings["resize_mode"])
    path = run_folder.parent / "photographs" / picture["path"]
    with Image.open(path) as original:
        size = (original.width * 4, original.height * 4)
        shown = original.convert("RGB").resize(size, Image.Resampling.NEAREST)
    heat = picture_heatmaps(class_map, preprocessing, (size[1], size[0]))[0]
    return np.asarray(overlay(shown, heat, opacity=opacity))


def test_the_longest_verdict_fits_into_the_narrowest_card(
    browser: WebDriver, trained: Path
) -> None:
    """Before, it was broken into wron and g."""
    page = Page(browser, trained / "report.html")
    browser.execute_script("document.querySelector('#pictures .card').style.width = '230px'")
    true, _, verdict = page.all("#pictures .row")[:3]
    for place, text in ((1, "wrong"), (2, "box wrong")):
        script = "arguments[0].children[arguments[1]].textContent = arguments[2]"
        browser.execute_script(script, verdict, place, text)
    assert verdict.size["height"] == true.size["height"]


def test_the_canvas_shows_what_python_draws(browser: WebDriver, trained: Path) -> None:
    page = Page(browser, trained / "report.html")
    page.one("#boxes").click()  # off
    for side in ("true", "predicted"):
        page.one(f"input[name=side][value={side}]").click()
        for number in (0, 5):
            difference = page.pixels(number).astype(int) - expected(trained, number, 3, side, 0.5)
            assert np.abs(difference).mean() < 1.5
            assert np.quantile(np.abs(difference), 0.99) < 12
    page.press("#epoch", "ARROW_LEFT", 3)
    assert page.one("#epoch-shown").text == "0"
    difference = page.pixels().astype(int) - expected(trained, 0, 0, "predicted", 0.5)
    assert np.abs(difference).mean() < 1.5
    assert page.complaints() == []


def test_sliders_and_switches(browser: WebDriver, trained: Path) -> None:
    page = Page(browser, trained / "report.html")
    page.one("input[name=side][value=true]").click()
    newest, words = page.pixels(), page.words()
    page.press("#epoch", "ARROW_LEFT")
    assert page.one("#epoch-shown").text == "2"
    assert (page.pixels() != newest).any()
    assert page.words() != words
    page.press("#epoch", "ARROW_RIGHT")
    assert (page.pixels() == newest).all()

    before = page.pixels()
    page.one("#boxes").click()
    assert (page.pixels() != before).any()
    page.press("#opacity", "HOME")
    alone = page.pixels()
    assert page.one("#opacity-shown").text == "0 %"
    page.press("#epoch", "HOME")
    assert (page.pixels() == alone).all()  # the picture itself is the same in every epoch
    page.press("#opacity", "END")
    assert (page.pixels() != alone).any()

    bars = []
    page.one("input[name=scale][value=shared]").click()
    for _ in range(4):
        bars.append(page.words().splitlines()[-4:-2])
        page.press("#epoch", "ARROW_RIGHT")
    assert len({tuple(bar) for bar in bars}) == 1
    assert re.search(r"raw -?[\d.]+ to -?[\d.]+, mean -?[\d.]+", page.words())
    assert page.complaints() == []


@pytest.mark.nightly
def test_what_was_chosen_outlives_a_reload(browser: WebDriver, trained: Path) -> None:
    page = Page(browser, trained / "report.html")
    page.press("#epoch", "HOME")
    page.one("input[name=side][value=predicted]").click()
    page.one("#follow").click()
    page.reload()
    assert page.one("#epoch-shown").text == "0"
    assert page.one("input[name=side][value=predicted]").is_selected()
    assert page.one("#follow").is_selected()
    page.one("#follow").click()
    page.one("#play").click()
    for _ in range(2000):
        if page.one("#epoch-shown").text != "0":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the epochs do not play")
    page.one("#play").click()
    shown = page.one("#epoch-shown").text
    time.sleep(1)
    assert page.one("#epoch-shown").text == shown
    assert page.complaints() == []


def test_a_training_is_followed(browser: WebDriver, tmp_path: Path) -> None:
    """The page loads itself again, and shows the newest epoch."""
    written(tmp_path, range(2))
    page = Page(browser, tmp_path / "run" / "report.html")
    browser.execute_script(
        "window.setTimeout = (call) => queueMicrotask(call)"
    )  # 10 seconds are long
    assert page.one("#epoch-shown").text == "1"
    written(tmp_path, range(3))
    page.one("#follow").click()
    for _ in range(2000):
        if page.one("#epoch-shown").text == "2":
            break
        time.sleep(0.05)
    assert page.one("#epoch-shown").text == "2"
    assert page.one("#follow").is_selected()
    page.one("#follow").click()


def test_tables_are_sorted_by_their_headings(browser: WebDriver, trained: Path) -> None:
    page = Page(browser, trained / "report.html")
    heads = page.all("#classes > div:first-child th")
    assert [head.text.split(" ")[0] for head in heads[:3]] == ["class", "pictures", "accuracy"]
    assert heads[2].get_attribute("aria-sort") == "ascending"
    heads[0].find_element("css selector", "button").click()
    names = [cell.text for cell in page.all("#classes > div:first-child td:first-child")]
    assert names == ["blue", "red"]
    heads[0].find_element("css selector", "button").click()
    names = [cell.text for cell in page.all("#classes > div:first-child td:first-child")]
    assert names == ["red", "blue"]
    cells = [int(cell.text or 0) for cell in page.all("#confusion td")]
    assert sum(cells) == 8
    assert page.complaints() == []


@pytest.mark.nightly
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_thousand_classes_and_pictures_of_any_size(
    browser: WebDriver, tmp_path: Path, is_dark: bool
) -> None:
    names = tuple(f"a class with a long name, number {number}" for number in range(1000))
    written(tmp_path, range(3), names=names, pictures=2, side=600)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    page = Page(browser, tmp_path / "run" / "report.html")
    assert page.pixels().shape == (341, 512, 3)
    assert page.pixels(1, "mistakes").shape == (341, 512, 3)
    assert len(page.all("#classes > div:first-child tbody tr")) == 1000
    assert page.all("#confusion td") == []
    paper = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 24, 29)" if is_dark else "rgb(255, 255, 255)")
    width = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= 1300
    assert page.complaints() == []
