"""What the tests of several rooms share."""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

    from camtrain.training.cli.main import CamtrainCLI

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: more threads would only wait
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

# Machines are busy at times: no test depends on how long an example takes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

SHARE = 10  # a sample holds one of so many nightly tests


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of how to choose and order tests."""
    parser.addoption(
        "--sample",
        metavar="SEED",
        help=f"one of {SHARE} nightly tests, another {SHARE}th for every SEED (a commit's hash)",
    )
    parser.addoption("--reverse", action="store_true", help="run the tests in reverse order")


def pytest_configure(config: pytest.Config) -> None:
    """A sample is one of nightly tests."""
    if config.getoption("sample"):
        config.option.markexpr = "nightly"


def pytest_report_header(config: pytest.Config) -> str | None:
    """How to run the same sample again."""
    seed = config.getoption("sample")
    return (
        f"one of {SHARE} nightly tests; again: python -m pytest --sample {seed}" if seed else None
    )


@pytest.hookimpl(trylast=True)  # after `-m` has deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the sample, in the order asked for."""
    if seed := config.getoption("sample"):
        groups = defaultdict(list)
        for item in items:
            groups[item.nodeid.partition("[")[0]].append(item)
        kept = {
            item
            for name, cases in groups.items()
            for item in sample(cases, f"{seed} {name}", share_of(cases[0]))
        }
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
    if config.getoption("reverse"):
        items.reverse()


def share_of(item: pytest.Item) -> int:
    """What ``nightly(share=...)`` says of a test of very many cases, else the usual one."""
    mark = item.get_closest_marker("nightly")
    return int(mark.kwargs.get("share", SHARE)) if mark else SHARE


def sample(cases: list[Any], seed: str, share: int = SHARE) -> list[Any]:
    """One of ``share`` cases of a test; each has the same chance, also where they are few."""
    rng = random.Random(seed)
    return rng.sample(cases, int(len(cases) / share + rng.random()))


def everyday(cases: Iterable[Any], *chosen: object) -> list[Any]:
    """Cases of a test for ``parametrize``, all but the chosen ones nightly."""
    cases = list(cases)
    assert all(case in cases for case in chosen)
    return at_night(cases, *(case for case in cases if case not in chosen))


def at_night(cases: Iterable[Any], *chosen: object) -> list[Any]:
    """Cases of a test for ``parametrize``, the chosen ones nightly."""
    nightly = pytest.mark.nightly
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=nightly)
        if case in chosen
        else case
        for case in cases
    ]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data, weights and oracles beside the repository."""
    path = Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"the shared oracles and data are not here: {path}")
    return path


@pytest.fixture(scope="session")
def photographs_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder, root/{train,val,test}/{red,blue}, of squares on noise, with their boxes."""
    return make_photographs(tmp_path_factory.mktemp("session") / "photographs")


@pytest.fixture
def photographs(photographs_once: Path, tmp_path: Path) -> Path:
    """The same, for a test that may change it."""
    return shutil.copytree(photographs_once, tmp_path / "photographs")


def make_photographs(root: Path) -> Path:
    """Fill a folder, see ``photographs``."""
    rng = np.random.default_rng(0)
    lines = ["path,xmin,ymin,xmax,ymax,class"]
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 80, (40, 56, 3), dtype=np.uint8)
                x, y = int(rng.integers(0, 32)), int(rng.integers(0, 20))
                pixels[y : y + 20, x : x + 24, channel] = 255
                path = f"{split}/{name}/{number}.png"
                Image.fromarray(pixels).save(root / path)
                lines.append(f"{path},{x},{y},{x + 24},{y + 20},{name}")
    (root / "boxes.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def fit_arguments(photographs: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a ``fit`` of seconds, to which a test adds its own."""

    def arguments(*more: str) -> list[str]:
        return fit_of(photographs, tmp_path / "runs", *more)

    return arguments


def fit_of(root: Path, runs_dir: Path, *more: str) -> list[str]:
    """Arguments of a ``fit`` of seconds on a folder of photographs."""
    return [
        "fit",
        *("--model.backbone", "camtrain/digits", "--model.backbone_args", '{"width": 4}'),
        *("--model.neck", "[]", "--data.root", str(root), "--data.size", "32"),
        *("--data.workers", "0", "--data.batch_size", "8", "--trainer.max_epochs", "2"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--runs_dir", str(runs_dir), "--name", "run", "--logger", "none"),
        *("--cams.num_images", "2", "--cams.num_mistakes", "2", "--cams.faithfulness", "2"),
        *more,
    ]


@pytest.fixture(scope="session")
def fitted_once(
    photographs_once: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a run with these arguments, trained once; only to be read."""
    folders: dict[tuple[str, ...], Path] = {}

    def fit(*more: str) -> Path:
        from camtrain.training.cli.main import main

        if more not in folders:
            folder = tmp_path_factory.mktemp("fitted")
            with pytest.MonkeyPatch.context() as patch:  # not the cache of whoever runs the tests
                patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
                main(fit_of(photographs_once, folder, *more))
            folders[more] = folder / "run"
        return folders[more]

    return fit


@pytest.fixture
def fitted(fitted_once: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """The same as ``runs/run`` of a test that goes on with it or changes it."""

    def copy(*more: str) -> Path:
        return shutil.copytree(fitted_once(*more), tmp_path / "runs" / "run")

    return copy


@pytest.fixture
def limit_files() -> Callable[[int], None]:
    """Sets how many bytes a file of this process may have, until the end of the test."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """End such a limit before the result of the test is written, perhaps to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def skip_but_in_ci(reason: str) -> NoReturn:
    """Skip a test of a page; where CI is true, it fails instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[WebDriver]:
    """A headless Chromium; where CI is true there must be one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if importlib.util.find_spec("selenium") is None or chromium is None or driver is None:
        skip_but_in_ci("needs selenium, and Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for name in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{name}")
    options.add_argument("--window-size=1300,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session", autouse=True)
def parsers_once() -> Iterator[None]:
    """The parser of a verb is built once: its hundred options take longer than a small training."""
    try:
        from camtrain.training.cli.main import CamtrainCLI
    except ImportError:  # a process without Lightning
        yield
        return
    setup = CamtrainCLI.setup_parser
    parsers: dict[str, dict[str, Any]] = {}

    def setup_once(
        cli: CamtrainCLI, subcommands: bool, main: dict[str, Any], own: dict[str, Any]
    ) -> None:
        if cli._verb not in parsers:
            setup(cli, subcommands, main, {})
            names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
            parsers[cli._verb] = {name: getattr(cli, name) for name in names}
        vars(cli).update(parsers[cli._verb])
        files = own.get(cli._verb, {}).get("default_config_files", [])
        cli._subcommand_parsers[cli._verb].default_config_files = files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CamtrainCLI, "setup_parser", setup_once)
        yield
