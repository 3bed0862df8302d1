"""The run folder: never lose an earlier run, never write half a file."""

from pathlib import Path

import pytest
from jsonargparse import Namespace

from camtrain.errors import CamtrainError
from camtrain.files import write_text
from camtrain.training.cli.main import run_name
from camtrain.training.run.folder import RunFolder, as_csv
from camtrain.training.run.resume import check_start


def earlier_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    (folder.checkpoints / "last.ckpt").touch()
    folder.config.touch()
    return folder


def test_an_empty_or_missing_folder_is_free(tmp_path: Path) -> None:
    check_start(RunFolder(tmp_path), None, overwrite=False)
    check_start(RunFolder(tmp_path / "new"), None, overwrite=False)
    assert not (tmp_path / "new").exists()


def test_an_earlier_run_is_kept(tmp_path: Path) -> None:
    folder = earlier_run(tmp_path / "run")
    with pytest.raises(CamtrainError, match=r'not empty; continue it with ckpt_path="last", repl'):
        check_start(folder, None, overwrite=False)
    check_start(folder, "last", overwrite=False)
    assert folder.config.is_file()


def test_overwrite_replaces_runs_and_nothing_else(tmp_path: Path) -> None:
    folder = earlier_run(tmp_path / "run")
    check_start(folder, None, overwrite=True)
    assert folder.config.is_file()
    (tmp_path / "precious.txt").touch()
    with pytest.raises(CamtrainError, match="replaces only an earlier run"):
        check_start(RunFolder(tmp_path), None, overwrite=True)
    assert (tmp_path / "precious.txt").is_file()


UNBORN = [
    (".config-0a1b.part.yaml",),
    ("wandb/run_id",),
    ("wandb/run_id", "wandb/offline-run-1/run-1.wandb", "config.yaml"),
]


@pytest.mark.parametrize("names", UNBORN)
def test_the_remains_of_a_run_that_was_killed_unborn_are_free(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    check_start(RunFolder(tmp_path), None, overwrite=False)
    check_start(RunFolder(tmp_path), None, overwrite=True)
    check_start(RunFolder(tmp_path), "last", overwrite=False)
    RunFolder(tmp_path).clear()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb/offline-run-1/run-1.wandb", "config.yaml", ".x.part"])
def test_what_a_user_has_written_is_not_free(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(CamtrainError, match="is not empty"):
        check_start(RunFolder(tmp_path), None, overwrite=False)


def test_a_run_that_is_trained_is_locked(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path).locked(),
        pytest.raises(CamtrainError, match="is still trained by another process"),
        RunFolder(tmp_path).locked(),
    ):
        pass
    with RunFolder(tmp_path).locked():
        pass


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(CamtrainError, match="is a file, not a run's"):
        check_start(RunFolder(tmp_path / "run"), None, overwrite=False)


def test_without_a_checkpoint_nothing_can_be_continued(tmp_path: Path) -> None:
    with pytest.raises(CamtrainError, match=r"holds none \(no checkpoints/last\.ckpt"):
        check_start(RunFolder(tmp_path), "last", overwrite=False)


def test_a_table_has_the_columns_of_all_its_rows() -> None:
    assert as_csv([{"a": 1, "b": 2.5}, {"a": 3, "c": 4}]) == "a,b,c\n1,2.5,\n3,,4\n"


def test_a_text_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_text(path, "old and long")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_trial_of_a_sweep_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Namespace(name=None, config=["configs/a.yaml"])
    assert run_name(settings) == "a"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    assert run_name(settings) == "a-r1"
    settings = Namespace(name=None, config=None, model=Namespace(backbone="timm/resnet18"))
    assert run_name(settings) == "resnet18-r1"
