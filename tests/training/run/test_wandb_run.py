"""W&B with a bad network, an old key or a broken service: told once, and the training goes on."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from camtrain.training.cli.main import main as run
from camtrain.training.run import loggers, wandb_run
from camtrain.training.run.loggers import (
    finish_loggers,
    make_loggers,
    place_of,
    project_or_default,
    upload_bundle,
)
from camtrain.training.run.wandb_options import WandbOptions
from camtrain.training.run.wandb_run import NeverStoppingWandbLogger, start_wandb
from camtrain.training.run.worker import Worker, enqueue_call
from tests.training.run.wandb_file import history
from tests.training.run.wandb_server import WandbServer

Arguments = Callable[..., list[str]]
LOOK = "look with: wandb leet"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A key that nobody knows, and a service that begins and ends with the test."""
    wandb.teardown()  # W&B reads the environment once
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    yield
    with contextlib.suppress(TimeoutError):
        wandb.finish()
    wandb.teardown()


class Server(http.server.ThreadingHTTPServer):
    """Answers every request alike, until it is told to hang."""

    daemon_threads = True
    is_hanging = False

    def __init__(self, status: int, body: bytes) -> None:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if outer.is_hanging:
                    time.sleep(60)
                # W&B's service crashes where it is not told where to upload files.
                self.send_response(500 if b"CreateRunFiles" in asked else status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def address(kind: str) -> str:
    """Of a server that cannot help."""
    if kind == "refuses":
        return "http://127.0.0.1:9"
    if kind == "hangs":
        server = Server(200, b"")
        server.is_hanging = True
        return f"http://127.0.0.1:{server.server_port}"
    answers = {
        "does not know the key": (401, b'{"errors":[{"message":"invalid API key"}]}'),
        "is a portal": (200, b"<html>Please log in</html>"),
        "is broken": (500, b"{}"),
    }
    return f"http://127.0.0.1:{Server(*answers[kind]).server_port}"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "kind", ["refuses", "hangs", "does not know the key", "is a portal", "is broken"]
)
def test_a_run_begins_within_20_seconds_offline(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", address(kind))
    if kind != "hangs":  # the whole of the 20 seconds is waited for once
        monkeypatch.setattr(wandb_run, "LONGEST_START", 2)
    began = time.monotonic()
    logger = start_wandb(tmp_path / "run", "project")
    assert time.monotonic() - began < wandb_run.LONGEST_START + 10
    assert logger is not None
    assert logger.experiment.offline
    said = capsys.readouterr().out
    assert said.startswith("W&B cannot be reached, so this run is logged offline (")
    assert said.count("\n") == 1
    [part] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert place_of([logger]) == f"offline; {LOOK} {part}; upload with: wandb sync {part}"
    logger.log_metrics({"val/acc1": 0.5}, 7)
    finish_loggers([logger])
    [row] = history(next(part.glob("*.wandb")))
    assert row["trainer/global_step"] == "7"


@pytest.mark.nightly
def test_a_network_that_dies_delays_no_row_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, rows waited for the server in our thread, and reached no file."""
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setattr(wandb_run, "LONGEST_FINISH", 2)
    logger = start_wandb(tmp_path / "run", "project")
    assert logger is not None
    assert not logger.experiment.offline
    server.disturb = lambda path: time.sleep(60)
    began = time.monotonic()
    for step in range(5):
        table = wandb.Table(columns=["a"], data=[[step]])  # which W&B asks its server about
        enqueue_call(
            logger, lambda table=table: logger.experiment.log({"table": table}, commit=False)
        )
        logger.log_metrics({"val/acc1": 0.5}, step)
    assert time.monotonic() - began < 10
    with pytest.warns(UserWarning, match=r"W&B failed \(TimeoutError: no answer within"):
        finish_loggers([logger])
    [part] = (tmp_path / "run" / "wandb").glob("run-*-*")
    server.disturb = lambda path: None  # else its service would not end
    assert place_of([logger]).endswith(f"upload with: wandb sync --include-online {part}")
    rows = history(next(part.glob("*.wandb")))
    assert [row["trainer/global_step"] for row in rows] == list("01234")
    assert all("table/_type" in row for row in rows)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NeverStoppingWandbLogger:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = start_wandb(tmp_path / "run", "project")
    assert logger is not None
    return logger


def test_a_failure_is_told_once_and_raises_nothing(
    offline: NeverStoppingWandbLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ConnectionResetError("Connection lost\nand more")

    monkeypatch.setattr(offline, "worker", None)
    monkeypatch.setattr(offline.experiment, "log", broken)
    told = r"W&B failed \(ConnectionResetError: Connection lost\); the training goes on"
    with pytest.warns(UserWarning, match=told) as caught:
        offline.log_metrics({"a": 1.0}, 0)
    assert str(offline.save_dir) in str(caught[0].message)
    offline.log_metrics({"a": 1.0}, 1)  # a second warning would be an error here


def test_a_thread_keeps_the_order(offline: NeverStoppingWandbLogger) -> None:
    done: list[int] = []
    for number in range(50):
        enqueue_call(offline, lambda number=number: (time.sleep(0.001), done.append(number)))
    finish_loggers([offline])
    assert done == list(range(50))


@pytest.mark.nightly
def test_a_training_goes_on_without_wandb(
    fit_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service dies in the middle of it."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    calls = iter(range(100))
    original = wandb.sdk.wandb_run.Run.log

    def log(*args: object, **kwargs: object) -> None:
        if next(calls) > 1:
            raise BrokenPipeError
        original(*args, **kwargs)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", log)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(fit_arguments("--logger", "wandb"))
    assert sum("W&B failed (BrokenPipeError" in str(one.message) for one in caught) == 1
    assert (tmp_path / "runs" / "run" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "run" / "cams" / "epoch_002.jpg").is_file()


def test_what_is_to_be_uploaded_stays_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    bundle = tmp_path / "model.safetensors"
    bundle.write_bytes(b"weights" * 100)
    for name in ("one", "two"):
        logger = start_wandb(tmp_path / name, "project")
        assert logger is not None
        upload_bundle([logger], bundle, {"val/acc1": 0.5})
        finish_loggers([logger])
        kept = [path for path in (tmp_path / name / "wandb/data").rglob("*") if path.is_file()]
        assert any(path.read_bytes() == bundle.read_bytes() for path in kept)


def test_a_folder_of_the_user_s_choice_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "own"))
    logger = start_wandb(tmp_path / "run", "project")
    assert logger is not None
    upload_bundle([logger], Path(__file__), {})
    finish_loggers([logger])
    assert any((tmp_path / "own").rglob("*"))
    assert not (tmp_path / "run" / "wandb" / "data").exists()


@pytest.mark.parametrize("variable", ["WANDB_MODE=disabled", "WANDB_DISABLED=true"])
def test_disabled_is_no_logger(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("="))
    assert make_loggers("wandb", tmp_path / "run", "project") == []
    assert not (tmp_path / "run").exists()


def test_the_command_wandb_disabled_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes such a file."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text("[default]\nmode = disabled\n")
    assert make_loggers("wandb", tmp_path / "run", "project") == []


def test_where_wandb_is_not_installed_there_is_no_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert make_loggers("wandb", tmp_path, "project") == []
    said = capsys.readouterr().out
    assert said.startswith("W&B cannot be imported, so nothing is logged to it (")
    assert "run `pip install wandb`, or choose another logger.\n" in said
    assert not any(tmp_path.iterdir())


def test_a_service_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run, "LONGEST_ANSWER", 0.1)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as service:
        connection = SimpleNamespace(_proc=SimpleNamespace(_process=service))
        singleton = SimpleNamespace(_connection=connection)
        monkeypatch.setattr(wandb, "teardown", service.wait)
        monkeypatch.setattr(wandb.sdk.wandb_setup, "singleton", lambda: singleton)
        worker = Worker()
        worker.start()
        wandb_run._end_service(worker)
        assert service.wait(5) == -signal.SIGKILL


SCRIPT = """
import os, signal, subprocess, sys
from pathlib import Path
from camtrain.training.run import loggers, wandb_run
wandb_run.LONGEST_FINISH = wandb_run.LONGEST_ANSWER = 1
run = loggers.start_wandb(Path(sys.argv[1]), "project")
run.log_metrics({"val/acc1": 0.5}, 1)
import wandb
service = wandb.sdk.wandb_setup.singleton()._connection._proc._process
"""


@pytest.mark.nightly
@pytest.mark.parametrize("last_call", ["", "loggers.finish_loggers([run])"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_a_process_ends_whatever_the_service_does(
    number: str, last_call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    script = SCRIPT + f"os.kill(service.pid, signal.{number})\n{last_call}\n"
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("W&B failed (") == 1 or not last_call


def test_parts_that_were_uploaded_are_not_named(offline: NeverStoppingWandbLogger) -> None:
    [part] = (Path(str(offline.save_dir)) / "wandb").glob("offline-run-*")
    assert place_of([offline]) == f"offline; {LOOK} {part}; upload with: wandb sync {part}"
    (part / f"run-{offline.version}.wandb.synced").touch()
    assert place_of([offline]) == f"offline; {LOOK} {part}"
    (part.with_name(f"offline-run-2-{offline.version}")).mkdir()  # of a continued run
    assert place_of([offline]).startswith(f"offline; {LOOK} {part.parent}; upload with: wandb sync")


# Of each variable: its value, the setting of the run, and the value before, where it was another.
ENVIRONMENT = {
    "WANDB_PROJECT": ("theirs", "project", "camtrain"),
    "WANDB_NAME": ("their run", "run_name", "run"),
    "WANDB_ENTITY": ("team", "entity", "team"),
    "WANDB_RUN_GROUP": ("group", "run_group", "group"),
    "WANDB_TAGS": ("a,b", "run_tags", ("a", "b")),
    "WANDB_NOTES": ("notes", "run_notes", "notes"),
    "WANDB_JOB_TYPE": ("train", "run_job_type", "train"),
    "WANDB_RUN_ID": ("id1", "run_id", "id1"),
}


def test_the_environment_of_wandb_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable, (value, _, _) in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    [logger] = make_loggers("wandb", tmp_path / "run", project_or_default(None, "wandb"))
    settings = logger.experiment.settings
    expected = {name: value for value, name, _ in ENVIRONMENT.values()}
    expected["run_tags"] = ("a", "b")
    assert {name: getattr(settings, name) for name in expected} == expected


def test_options_come_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable, (value, _, _) in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    options = WandbOptions(entity="us", tags=" x,, y", register="birds")
    [logger] = make_loggers("wandb", tmp_path / "run", "project", wandb=options)
    settings = logger.experiment.settings
    assert (settings.entity, settings.run_tags) == ("us", ("x", "y"))
    assert (settings.run_group, settings.run_notes) == ("group", "notes")  # as the environment says


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("theirs", "their run")),
        (("--project", "mine"), ("mine", "their run")),
        (("--name", "other"), ("theirs", "other")),
    ],
)
def test_what_is_given_comes_before_the_environment(
    options: tuple[str, ...],
    expected: tuple[str, str],
    fit_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StartedError(Exception):
        pass

    def start(folder: Path, project: str, *, name: str | None, **state: object) -> None:
        raise StartedError(project, name or os.environ["WANDB_NAME"])

    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "their run")
    monkeypatch.setattr(loggers, "start_wandb", start)
    args = fit_arguments("--logger", "wandb")
    place = args.index("--name")
    with pytest.raises(StartedError) as caught:
        run([*args[:place], *args[place + 2 :], *options])
    assert caught.value.args == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"level":"INFO","msg":"filestream: request sent"}', None),
        ('{"level":"ERROR","msg":"monitor: no GPU is watched"}', None),
        (
            '{"level":"ERROR","msg":"runfiles: error 401: {\\"data\\":null}"}',
            "runfiles: error 401: {",
        ),
        (
            '{"level":"ERROR+4","msg":"filestream: fatal error: cut"}',
            "filestream: fatal error: cut",
        ),
        ('{"level":"ERROR","msg":"file transfer: upload: 500', "file transfer: upload: 500"),
    ],
)
def test_what_the_service_has_given_up_is_told(
    line: str, reason: str | None, tmp_path: Path
) -> None:
    wandb_run._check_upload(tmp_path)  # an older one writes no such file
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "debug-internal.log").write_text(f"{line}\n")
    with pytest.raises(ConnectionError) if reason else contextlib.nullcontext() as told:
        wandb_run._check_upload(tmp_path)
    assert reason is None or str(told.value).endswith(f", {reason}")
