"""An MLflow run that hardly delays a training and never stops it."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.logger import _convert_params, _flatten_dict
from pytorch_lightning.loggers import MLFlowLogger

from camtrain.errors import first_line
from camtrain.files import write_text
from camtrain.training.run.folder import MLFLOW_RUN_ID
from camtrain.training.run.worker import NeverStopping, enqueue_call, errors_as_warnings, in_time

LONGEST_START = 20  # seconds for a server's answer
LONGEST_FINISH = 60  # seconds for logging what is left


class NeverStoppingMLFlowLogger(NeverStopping, MLFlowLogger):
    """Lightning's logger of an MLflow run; MLflow waits minutes for a server, a thread does not."""

    service, gives_up = "MLflow", True
    place = ""  # of the run: a command or an address

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log settings; those of a continued run that MLflow has already keep their first value."""
        enqueue_call(self, partial(self._log_new_settings, params))

    def _log_new_settings(self, params: dict[str, Any] | Namespace) -> None:
        client: Any = self.experiment
        known = client.get_run(self.run_id).data.params
        settings = _flatten_dict(_convert_params(params))
        new = {name: value for name, value in settings.items() if name not in known}
        MLFlowLogger.log_hyperparams(self, new)

    def finalize(self, status: str = "success") -> None:
        """Say how the training ended; see the base class."""
        enqueue_call(self, partial(super().finalize, status))

    def advice(self) -> str:
        """Where scores and heatmaps are."""
        return "MLflow gets no more; all is in metrics.csv, cams/ and report.html"


def start_mlflow(
    folder: Path, project: str, *, name: str | None = None, is_new: bool = True
) -> NeverStoppingMLFlowLogger | None:
    """Start a run on the server of MLflow's environment, else in ``mlflow.db`` beside the run.

    Where the server does not answer, the run is logged beside the run too; None if that fails. The
    run's id is stored in ``mlflow/run_id``, and a continued run goes on where its store knows it.

    Args:
        folder: Folder of the run.
        project: Name of MLflow's experiment.
        name: Name of the MLflow run; None: that of the folder.
        is_new: Whether the run does not continue an earlier one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.tracking  # noqa: F401
    for module in ("mlflow", "alembic"):
        logging.getLogger(module).setLevel(logging.WARNING)  # lines about making a data base
    runs = folder.absolute().parent
    local, server = f"sqlite:///{runs / 'mlflow.db'}", os.environ.get("MLFLOW_TRACKING_URI")
    path, run_id = folder / MLFLOW_RUN_ID, os.environ.get("MLFLOW_RUN_ID")
    if not is_new and path.is_file():
        run_id = path.read_text().strip()
    connect = partial(_connect, project, name or folder.name, run_id)
    for uri in dict.fromkeys((server or local, local)):
        try:
            if uri == local:  # making it takes as long as it takes
                logger = connect(uri, (runs / "mlruns").as_uri())
            else:
                logger = in_time(partial(connect, uri, None), LONGEST_START)
        except Exception as error:  # no network, no permission, a damaged store
            step = "nothing is logged to it" if uri == local else f"this run is logged in {local}"
            print(f"MLflow cannot be reached at {uri}, so {step} ({first_line(error)}).")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, str(logger.run_id))
        logger.start_worker()
        return logger
    return None


def _connect(
    project: str, name: str, run_id: str | None, uri: str, artifacts: str | None
) -> NeverStoppingMLFlowLogger:
    """A logger whose MLflow run has started; it goes on with the run of an id that is known."""
    logger = NeverStoppingMLFlowLogger(
        project, run_name=name, tracking_uri=uri, artifact_location=artifacts
    )
    client: Any = logger._mlflow_client
    if _has_run(client, run_id):
        logger._run_id = run_id
        client.update_run(run_id, status="RUNNING")
    else:
        given = os.environ.get("MLFLOW_EXPERIMENT_ID")
        logger._experiment_id = given or _experiment_of(client, project, artifacts)
    assert logger.run_id is not None  # starts it
    page = f"{uri}/#/experiments/{logger.experiment_id}/runs/{logger.run_id}"
    logger.place = f"see with: mlflow ui --backend-store-uri {uri}" if artifacts else page
    return logger


def _has_run(client: Any, run_id: str | None) -> bool:  # noqa: ANN401 - MLflow has no types
    """Whether a store has the run of an id."""
    from mlflow.exceptions import MlflowException

    try:
        return run_id is not None and client.get_run(run_id) is not None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _experiment_of(client: Any, project: str, artifacts: str | None) -> str:  # noqa: ANN401
    """The id of an experiment, which is made if there is none."""
    experiment = client.get_experiment_by_name(project)
    if experiment is None:
        return str(client.create_experiment(project, artifact_location=artifacts))
    return str(experiment.experiment_id)


def log_file(logger: MLFlowLogger, file: Path, folder: str | None = None) -> None:
    """Add a file, if it exists, to the artifacts of the run."""

    def log() -> None:
        client: Any = logger.experiment
        client.log_artifact(logger.run_id, str(file), folder)

    if file.is_file():
        enqueue_call(logger, log)


def log_summary(logger: MLFlowLogger, values: Mapping[str, float], step: int) -> None:
    """Log values of the run, such as its best scores."""
    enqueue_call(logger, partial(MLFlowLogger.log_metrics, logger, dict(values), step))


def finish(logger: MLFlowLogger) -> None:
    """Log what is left, for a minute at most, and then give up."""
    worker = getattr(logger, "worker", None)
    with errors_as_warnings(logger):
        if worker is not None and not worker.finish(LONGEST_FINISH):
            raise TimeoutError(f"not everything was logged within {LONGEST_FINISH} seconds")
