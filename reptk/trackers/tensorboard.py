"""TensorBoard: event files in the run's folder, by torch's SummaryWriter. Nothing leaves the machine."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import count
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
        folder: None: `tensorboard` in the run's folder. Otherwise a folder for several runs, each of which gets one in it, by
            the name of its own (`supcon_digits/3`, with a number behind it if there is such a folder).
    """

    def __init__(self, folder: str | None = None) -> None:
        require_package("tensorboard", "tensorboard")
        self._folder = folder
        self._writer: Any = None
        self._path = Path()
        self._last_step = 0

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        shown = self._path = run.folder / "tensorboard"
        state = {}
        if self._folder is not None:
            shown = Path(self._folder)
            # A resumed run continues in the folder that it has.
            name = run.state.get("name", "")
            if not _is_below(name):
                name = _create_folder(shown, _run_folder_name(run.folder))
            state["name"] = name
            self._path = shown / state["name"]
        self._open()
        if not run.state:
            self._writer.add_text("recipe", f"```json\n{json_text(run.config, indent=2)}\n```")
        return {**state, "place": shlex.join(["tensorboard", "--logdir", str(shown)])}

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


def _run_folder_name(folder: Path) -> str:
    """Return what the folder of a run is called among others: its name, and that of the folder above it if it is a number."""
    folder = folder.absolute()
    if folder.name.isdecimal():
        return f"{folder.parent.name}/{folder.name}"
    return folder.name


def _is_below(name: str) -> bool:
    """Return whether a relative path leads down from a folder; the file that it is from is untrusted."""
    return name != "" and ".." not in Path(name).parts and not Path(name).is_absolute()


def _create_folder(parent: Path, name: str) -> str:
    """Create the first of `name`, `name-2`, `name-3` ... that does not exist, and return its name."""
    candidate = name
    for number in count(2):
        try:
            (parent / candidate).mkdir(parents=True)
        except FileExistsError:
            candidate = f"{name}-{number}"
        else:
            break
    return candidate
