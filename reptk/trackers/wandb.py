"""Weights & Biases: https://wandb.ai, or offline, in files that `wandb sync` uploads later."""

import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from reptk.config.registry import TRACKERS
from reptk.core.errors import EnvironmentProblem
from reptk.trackers.protocol import End, TrackedRun, require_package


@TRACKERS.register("wandb")
class WandB:
    """Rows are history rows, whose number is that of the row in metrics.jsonl; charts are over the metric "step".

    So a row that is sent once more has a number that the service has, which it ignores. report.html is an artifact.

    Args:
        project: of the run.
        entity: user or team; None: the default one.
        run_name: None: the recipe with its overrides.
        group: of runs that belong together.
        tags: of the run.
        mode: offline: write files into `wandb` in the run's folder; upload them by `wandb sync`.
    """

    def __init__(
        self,
        project: str = "reptk",
        entity: str | None = None,
        run_name: str | None = None,
        group: str | None = None,
        tags: tuple[str, ...] = (),
        mode: Literal["online", "offline"] = "online",
    ) -> None:
        require_package("wandb", "wandb")
        self._arguments = {"project": project, "entity": entity, "group": group, "tags": list(tags), "mode": mode}
        self._run_name = run_name
        self._is_online = mode == "online"
        self._run: Any = None
        self._id = ""

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        import wandb

        if self._is_online and not wandb.login(prompt=False):
            raise EnvironmentProblem(
                "not logged in. Run `wandb login`, set WANDB_API_KEY, or set trackers.wandb.mode=offline"
            )
        self._id = run.state.get("id") or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            **self._arguments,
            id=self._id,
            name=self._run_name or run.name,
            config=dict(run.config),
            dir=str(run.folder),
            resume="allow" if self._is_online else None,
            # Its lines would break those of the run, and its copy of the output would be one more file.
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        place = f"offline; to upload it: wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"
        if self._is_online:
            place = str(self._run.url)
        return {"id": self._id, "place": place}

    def log(self, number: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=number)

    def forget(self, step: int) -> bool:
        return False

    def finish(self, end: End, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        self._run.summary.update(dict(summary))
        for path in files:
            self._run.log_artifact(str(path), name=f"{path.stem}-{self._id}", type=path.stem)
        exit_code = 0
        if end == "failed":
            exit_code = 1
        if end == "stopped":
            self._run.mark_preempting()
            exit_code = 1
        self._run.finish(exit_code=exit_code)
