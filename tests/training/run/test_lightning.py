"""Lightning's own options and callbacks: each works, or is refused in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning import callbacks

from camtrain.cli import main
from camtrain.errors import CamtrainValueError
from camtrain.training.run.trainer import build_trainer

Arguments = Callable[..., list[str]]


def option(name: str, value: str) -> tuple[str, ...]:
    return (f"--trainer.{name}", value)


def callback(name: str, **arguments: object) -> tuple[str, ...]:
    content = [{"class_path": f"pytorch_lightning.callbacks.{name}", "init_args": arguments}]
    return ("--trainer.callbacks", json.dumps(content))


CSV = ("--logger", "csv")
# Options, and part of the sentence.
REFUSED = {
    "barebones": (option("barebones", "true"), "barebones must be False, got True"),
    "float64": (option("precision", "64-true"), "maps and logits in 64 bits"),
    "float16": (option("precision", "16-true"), "maps and logits in 16 bits"),
    "too few to train": (
        option("limit_train_batches", "0.1"),
        "--trainer.limit_train_batches must leave a batch of the 2 for train, got 0.1; give at "
        "least 0.5",
    ),
    "nothing to train": (option("limit_train_batches", "0"), "must leave a batch of the 2"),
    "too few to validate": (option("limit_val_batches", "0.1"), "must leave a batch of the 1 for"),
    "too few to fit": (option("overfit_batches", "0.1"), "trainer.overfit_batches must leave"),
    "validation of no epoch": (
        option("check_val_every_n_epoch", "0"),
        "--trainer.check_val_every_n_epoch must be at least 1, got 0",
    ),
    "no batch per step": (
        option("accumulate_grad_batches", "0"),
        "--trainer.accumulate_grad_batches must be at least 1, got 0",
    ),
    "a part above all": (
        option("val_check_interval", "2.5"),
        "refuses --trainer.val_check_interval 2.5 (You have passed invalid value 2.5",
    ),
    "no checkpoints": (
        option("enable_checkpointing", "false"),
        "refuses trainer.enable_checkpointing=False (Trainer was configured with",
    ),
    "no such clipping": (
        option("gradient_clip_algorithm", "x"),
        "refuses trainer.gradient_clip_algorithm=x",
    ),
    "no such profiler": (option("profiler", "x"), "refuses trainer.profiler=x"),
    "no such time": (option("max_time", "soon"), "refuses --trainer.max_time soon"),
    "no package": (option("precision", "transformer-engine"), "transformer_engine"),
    "no device": (option("devices", "[]"), "trainer.devices=[]"),
    "no tpu": (option("accelerator", "tpu"), "torch_xla"),
    "a rate without logger": (
        callback("LearningRateMonitor"),
        "refuses the settings of this training (Cannot use `LearningRateMonitor` callback",
    ),
    "statistics without logger": (
        callback("DeviceStatsMonitor"),
        "Cannot use `DeviceStatsMonitor`",
    ),
    "a backbone": (callback("BackboneFinetuning"), "give model.freeze_until and model.unfreeze"),
    "an abstract one": (callback("BaseFinetuning"), "must be without BaseFinetuning"),
    "a batch size": (callback("BatchSizeFinder"), "give data.batch_size"),
    "spikes": (callback("SpikeDetection"), "cannot be stored in a checkpoint"),
    "pruning": (callback("ModelPruning", pruning_fn="l1_unstructured"), "without ModelPruning"),
    "a score of stopping": (
        callback("EarlyStopping", monitor="x"),
        "conditioned on metric `x` which is not available",
    ),
    "a score of checkpoints": (
        callback("ModelCheckpoint", monitor="x"),
        "could not find the monitored key",
    ),
    "two bars": (callback("TQDMProgressBar"), "refuses"),
    "another writer": (
        option("plugins", "pytorch_lightning.plugins.io.AsyncCheckpointIO"),
        "Received multiple values for CheckpointIO",
    ),
    "no count of a batch": (callback("ThroughputMonitor"), "arguments are required: batch_size_fn"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_lightning_or_a_run_cannot_do_is_refused(
    case: str, fit_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, message = REFUSED[case]
    try:
        status = main(fit_arguments(*more))
    except SystemExit as error:  # the parser
        status = error.code
    assert status == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    folder = tmp_path / "runs" / "run"
    assert not folder.exists() or not any(folder.iterdir()) or (folder / "checkpoints").exists()


TRAINED = {
    "half of the batches": (
        *option("overfit_batches", "0.5"),
        *("--data.workers", "2", "--data.batch_size", "4"),
    ),
    "validation by time": option("val_check_interval", "00:00:00:01"),
    "no step scores": option("log_every_n_steps", "0"),
    **{
        name: option(*name.split("=", 1))
        for name in (
            *("min_epochs=3", "min_steps=6", "max_time=00:00:10:00", "max_epochs=0", "max_steps=0"),
            *("limit_train_batches=1", "limit_val_batches=1", "limit_predict_batches=1"),
            *("overfit_batches=1", "val_check_interval=0.01", "check_val_every_n_epoch=5"),
            *("num_sanity_val_steps=-1", "log_every_n_steps=1", "enable_checkpointing=true"),
            *("enable_model_summary=true", "accumulate_grad_batches=3", "gradient_clip_val=0.5"),
            *("deterministic=true", "benchmark=true", "inference_mode=false", "logger=true"),
            *("use_distributed_sampler=false", "profiler=simple", "profiler=advanced"),
            *("detect_anomaly=true", "sync_batchnorm=true", "default_root_dir=x"),
            *("reload_dataloaders_every_n_epochs=1", "enable_autolog_hparams=false"),
            *("precision=bf16-mixed", "precision=16-mixed", "fast_dev_run=2"),
        )
    },
    **{
        name: callback(name)
        for name in (
            *("BasePredictionWriter", "Callback", "Checkpoint", "EMAWeightAveraging"),
            *("LambdaCallback", "LearningRateFinder", "ModelCheckpoint", "ModelSummary"),
            *("RichModelSummary", "Timer", "WeightAveraging"),
        )
    },
    "LearningRateMonitor": (*callback("LearningRateMonitor"), *CSV),
    "DeviceStatsMonitor": (*callback("DeviceStatsMonitor"), *CSV),
    "ThroughputMonitor": (
        *callback("ThroughputMonitor", batch_size_fn="tests.training.run.test_lightning.count"),
        *CSV,
    ),
    "EarlyStopping": callback("EarlyStopping", monitor="val/loss"),
    "GradientAccumulationScheduler": callback("GradientAccumulationScheduler", scheduling={0: 2}),
    "OnExceptionCheckpoint": callback("OnExceptionCheckpoint", dirpath="x"),
    "StochasticWeightAveraging": callback("StochasticWeightAveraging", swa_lrs=0.01),
    **{
        name: (*callback(name), *option("enable_progress_bar", "true"))
        for name in ("RichProgressBar", "TQDMProgressBar", "ProgressBar")
    },
}


def count(batch: tuple[list[object], ...]) -> int:
    """The pictures of a batch, for ``ThroughputMonitor``."""
    return len(batch[0])


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TRAINED)
def test_every_other_option_and_callback_trains_and_is_written_so_that_it_is_read_again(
    case: str, fit_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(fit_arguments(*TRAINED[case])) == 0
    config = tmp_path / "runs" / "run" / "config.yaml"
    if case != "fast_dev_run=2":
        again = ("--config", str(config), "--name", "again", "--trainer.max_epochs", "0")
        assert main(["fit", *again]) == 0


def test_every_callback_of_lightning_is_in_a_table() -> None:
    told = {*TRAINED, *("".join(more) for more, _ in REFUSED.values())}
    assert all(any(name in text for text in told) for name in callbacks.__all__)


DDP = {"accelerator": "cpu", "strategy": "ddp", "devices": 1}
# Variables of a job of four tasks, of which one process was started; and part of the sentence.
BATCH_SYSTEMS = {
    "slurm": ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, "Use `--ntasks-per-node=4` instead"),
    "slurm per node": (
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0"}
        | {"SLURM_NODEID": "0", "SLURM_LOCALID": "0"},
        "number of tasks per node configured in SLURM `--ntasks-per-node=4` does not match",
    ),
    "slurm in part": ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, "KeyError: 'SLURM_"),
    "torchrun": (
        {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"},
        "the product (1 * 1) does not match the world size (4)",
    ),
    "lsf": (
        {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/none", "JSM_NAMESPACE_LOCAL_RANK": "0"}
        | {"JSM_NAMESPACE_SIZE": "4"},
        "No such file or directory: '/none'",
    ),
}


@pytest.mark.parametrize("system", BATCH_SYSTEMS)
def test_a_batch_system_that_has_started_too_few_is_refused(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, message = BATCH_SYSTEMS[system]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CamtrainValueError, match=re.escape(message)):
        build_trainer(DDP)
