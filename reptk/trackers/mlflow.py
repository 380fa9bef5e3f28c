"""MLflow: a tracking server, or a database on this machine."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reptk.config.dotted_keys import flatten
from reptk.config.registry import TRACKERS
from reptk.trackers.protocol import End, TrackedRun, require_package

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

MAX_BATCH = 100
"""Parameters in a request."""

MAX_PARAM_LENGTH = 6000
"""Characters of a parameter's value."""


@TRACKERS.register("mlflow")
class MLflow:
    """Metrics by their step, the recipe as parameters, report.html as an artifact.

    MLflow forbids some characters in names: knn@20 is called knn_at_20. It removes no row; of a run that has gone back to an
    earlier step, the curves have the old values and the new ones.

    Args:
        experiment: name, created if there is none.
        run_name: None: the recipe with its overrides.
        tracking_uri: of the server or database; None: MLFLOW_TRACKING_URI, else MLflow's default.
    """

    accepts_rows_again = True

    def __init__(self, experiment: str = "reptk", run_name: str | None = None, tracking_uri: str | None = None) -> None:
        require_package("mlflow", "mlflow")
        self._experiment = experiment
        self._run_name = run_name
        self._tracking_uri = tracking_uri
        self._client: Any = None
        self._run_id = ""
        self._last_step = 0

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        import mlflow

        # A client, since the functions of the module keep the active run in a variable that is global.
        self._client = mlflow.MlflowClient(tracking_uri=self._tracking_uri)
        run_id = run.state.get("run_id")
        if run_id is None:
            run_id = self._create(run)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id
        return {"run_id": run_id, "place": f"run {run_id} of experiment {self._experiment}"}

    def log(self, number: int, row: Mapping[str, float]) -> None:
        self._last_step = int(row.get("step", 0))
        self._log_metrics({name: value for name, value in row.items() if name != "step"})

    def forget(self, step: int) -> bool:
        return False

    def finish(self, end: End, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        if summary:
            self._log_metrics({f"results/{name}": value for name, value in summary.items()})
        for path in files:
            self._client.log_artifact(self._run_id, str(path))
        self._client.set_terminated(self._run_id, status=STATUS[end])

    def _create(self, run: TrackedRun) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            experiment_id = self._client.create_experiment(self._experiment)
        else:
            experiment_id = experiment.experiment_id
        run_id = self._client.create_run(experiment_id, run_name=self._run_name or run.name).info.run_id
        parameters = []
        for key, value in flatten(run.config, with_unset=True).items():
            parameters.append(Param(allowed_name(key), str(value)[:MAX_PARAM_LENGTH]))
        for first in range(0, len(parameters), MAX_BATCH):
            self._client.log_batch(run_id, params=parameters[first : first + MAX_BATCH])
        return run_id

    def _log_metrics(self, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        milliseconds = int(time.time() * 1000)
        metrics = []
        for name, value in values.items():
            metrics.append(Metric(allowed_name(name), float(value), milliseconds, self._last_step))
        self._client.log_batch(self._run_id, metrics=metrics)


def allowed_name(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))
