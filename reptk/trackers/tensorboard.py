"""TensorBoard: event files in the run's folder, by torch's SummaryWriter. Nothing leaves the machine."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reptk.config.registry import TRACKERS
from reptk.core.files import json_text
from reptk.trackers.protocol import End, TrackedRun, require_package


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Scalars by the name of the metric; final numbers are below `results/`, the recipe is a text.

    A resumed run writes a further file that purges the steps that it logs again (`purge_step`).

    Args:
        folder: of the event files; None: `tensorboard` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        require_package("tensorboard", "tensorboard")
        self._folder = folder
        self._writer: Any = None
        self._path = Path()
        self._last_step = 0

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        self._path = run.folder / "tensorboard"
        if self._folder is not None:
            self._path = Path(self._folder)
        self._open()
        if not run.state:
            self._writer.add_text("recipe", f"```json\n{json_text(run.config, indent=2)}\n```")
        return {"place": shlex.join(["tensorboard", "--logdir", str(self._path)])}

    def log(self, number: int, row: Mapping[str, float]) -> None:
        self._last_step = int(row.get("step", 0))
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, self._last_step)
        # A process that is killed loses nothing that was counted.
        self._writer.flush()

    def forget(self, step: int) -> bool:
        self._writer.close()
        self._open(purge_step=step)
        return True

    def finish(self, end: End, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        for name, value in summary.items():
            self._writer.add_scalar(f"results/{name}", value, self._last_step)
        self._writer.close()

    def _open(self, purge_step: int | None = None) -> None:
        # Here: the import takes a second, and only a run that is tracked needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._path), purge_step=purge_step)
