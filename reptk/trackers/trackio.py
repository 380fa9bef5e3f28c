"""trackio: a local database with a dashboard (`trackio show`), or a Space on the Hugging Face Hub."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reptk.config.registry import TRACKERS
from reptk.trackers.protocol import End, TrackedRun, require_package


@TRACKERS.register("trackio")
class Trackio:
    """Rows by their step; final numbers are a last row, below `results/`. report.html is an artifact.

    Args:
        project: of the run.
        run_name: None: the recipe with its overrides. A few letters that tell runs apart follow it.
        group: of runs that belong together.
        space_id: Space on the Hugging Face Hub that shows the runs; None: on this machine.
    """

    def __init__(
        self,
        project: str = "reptk",
        run_name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
    ) -> None:
        require_package("trackio", "trackio")
        self._project = project
        self._run_name = run_name
        self._group = group
        self._space_id = space_id
        self._run: Any = None
        self._last_step = 0

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        import trackio

        name = run.state.get("name")
        if name is None:
            # A run is resumed by its name, so no two may have the same.
            name = f"{self._run_name or run.name} {uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            project=self._project,
            name=name,
            group=self._group,
            space_id=self._space_id,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        place = f"trackio show --project {self._project}"
        if self._space_id is not None:
            place = f"https://huggingface.co/spaces/{self._space_id}"
        return {"name": name, "place": place}

    def log(self, number: int, row: Mapping[str, float]) -> None:
        self._last_step = int(row.get("step", 0))
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=self._last_step)

    def forget(self, step: int) -> bool:
        return False

    def finish(self, end: End, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        if summary:
            self._run.log({f"results/{name}": value for name, value in summary.items()}, step=self._last_step)
        for path in files:
            self._run.log_artifact(str(path), name=path.stem, type=path.stem)
        self._run.finish()
