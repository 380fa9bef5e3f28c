"""The folder of a run: created for one run, locked while a process trains in it, and resumed by the same command.

It contains recipe.toml (complete, and itself a recipe), plugins/ (copies of the plugin files), data.json (the fingerprint of
the data), status.json, metrics.jsonl, checkpoints/, model/, results.json and report.html, and trackers.json if it is tracked.
"""

from collections.abc import Callable, Collection
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from reptk.config import Recipe, read, validate
from reptk.config.run_commands import recipe_command
from reptk.config.run_paths import describe_no_run
from reptk.core.counts import verb_form
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.files import sweep_leftovers, write_bytes, write_text
from reptk.core.foreign_files import require_regular_files
from reptk.data.fingerprint import FILES_FILE, SUMMARY_FILE, Fingerprint, write_fingerprint
from reptk.models.model_folder import has_model
from reptk.training import checkpoint, find_run
from reptk.training.checkpoint import Checkpoint
from reptk.training.rank_ends import FOLDER_NAME as RANKS_FOLDER
from reptk.training.run_lock import LOCK_FILE, WAIT_SECONDS, RunLock
from reptk.training.run_status import FINISHED, STOPPED_EARLY_KEY, read_status
from reptk.training.same_run import RECORDED_KEYS, check_same_data, check_same_recipe

Resume = bool | Literal["auto"] | None
"""Whether an earlier run is resumed: it has to (True), must not (False), does if there is one ("auto"), or does if its folder
is named (None)."""

NEW = "new"
RESUMED = "resumed"
COMPLETE = "complete"

TRAIN_ON = "train.early_stopping_epochs=0"
"""The override with which a run that has stopped early is trained to its last epoch."""

FILES_BEFORE_RECIPE = {LOCK_FILE, RANKS_FOLDER, SUMMARY_FILE, FILES_FILE, "plugins", "status.json"}
"""What a run's folder may hold before it holds a recipe, which is written last: then it is not a run yet."""


class OpenedRun(NamedTuple):
    """The folder of a run.

    state: `NEW`, `RESUMED`, or `COMPLETE`, in which case there is nothing left to train.
    recorded_epochs: of the recipe in the folder, before this process changed it.
    notes: lines to print.
    """

    folder: Path
    state: str
    recorded_epochs: int
    notes: list[str]


class RunClaim:
    """Context manager that opens the folder of a run, and holds its lock until the end of the block. For rank 0 alone."""

    def __init__(self) -> None:
        self._lock: RunLock | None = None

    def __enter__(self) -> "RunClaim":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let other processes open the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def open(
        self,
        recipe: Recipe,
        out: str | Path | None,
        *,
        resume: Resume,
        data: Fingerprint,
        steps_per_epoch: int,
        report: Callable[[str], None],
        allowed: Collection[str] = (),
    ) -> OpenedRun:
        """Create the folder of a run, or open that of an earlier run of the same recipe.

        Args:
            recipe: of the run.
            out: the folder; None for the next unused `runs/NAME/N`, or the one that is to be resumed.
            resume: see `Resume`.
            data: the fingerprint of the data set.
            steps_per_epoch: of the run.
            report: prints a line while another process has the folder.
            allowed: see `same_run.ALLOWABLE`.

        Raises:
            UsageError: the folder holds something else, or there is nothing to resume, or the recipe differs.
            DataError: the data set has changed.
            EnvironmentProblem: another process has the folder, or it cannot be written.
        """
        try:
            folder = _folder_to_open(recipe, out, resume)
            if folder is None:
                return self._create_next_numbered(recipe, data)
            if (folder / "recipe.toml").is_file():
                # Before the lock, since nothing is written if they differ.
                check_same_recipe(recipe, folder)
                if is_complete(recipe, folder):
                    remove_leftovers_of_run(folder)
                    return OpenedRun(folder, COMPLETE, recipe.train.epochs, [])
            folder.mkdir(parents=True, exist_ok=True)
            require_regular_files(folder)
            self._acquire(folder, report)
            _sweep(folder)
            if not (folder / "recipe.toml").is_file():
                return create(recipe, folder, data)
            # Another process may have written the recipe, or finished the run, meanwhile.
            return reopen(recipe, folder, data, steps_per_epoch, allowed)
        except OSError as cause:
            raise EnvironmentProblem(f"cannot write the run to {out or 'runs/'}: {cause}") from cause

    def _acquire(self, folder: Path, report: Callable[[str], None], wait_seconds: float = WAIT_SECONDS) -> None:
        lock = RunLock(folder)
        lock.acquire(report, wait_seconds)
        self._lock = lock

    def _create_next_numbered(self, recipe: Recipe, data: Fingerprint) -> OpenedRun:
        """Create the run in `runs/NAME/N`, where N follows the largest number of a run."""
        runs = Path("runs") / recipe.name
        runs.mkdir(parents=True, exist_ok=True)
        first = 1
        present = find_run.numbered_folders(runs)
        if present:
            first = int(present[-1].name)
        for number in count(first):
            folder = runs / str(number)
            # A folder that holds no run yet is that of a process that was killed, or is about to write one.
            if folder.exists() and not _is_unused(folder):
                continue
            folder.mkdir(exist_ok=True)
            lock = RunLock(folder)
            try:
                lock.acquire(lambda text: None, wait_seconds=0)
            except EnvironmentProblem:
                continue
            if (folder / "recipe.toml").is_file():
                lock.release()
                continue
            self._lock = lock
            return create(recipe, folder, data)
        raise AssertionError("unreachable: the numbers do not end")


def create(recipe: Recipe, folder: Path, data: Fingerprint) -> OpenedRun:
    """Write what a new run's folder begins with. A process that is killed meanwhile leaves a folder without a recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe_of_folder = _with_copied_plugins(recipe, folder)
    write_fingerprint(data, folder)
    write_text(folder / "recipe.toml", recipe_of_folder.dump())
    return OpenedRun(folder, NEW, recipe.train.epochs, [])


def reopen(
    recipe: Recipe, folder: Path, data: Fingerprint, steps_per_epoch: int, allowed: Collection[str] = ()
) -> OpenedRun:
    """Check that a run can be resumed, and record another number of epochs, another choice of weights or another data set.

    Raises:
        UsageError: `folder` is not that of a run, or its recipe differs (in the keys that the message lists).
        DataError: the data set has changed.
    """
    recorded = check_same_recipe(recipe, folder)
    if is_complete(recipe, folder):
        return OpenedRun(folder, COMPLETE, recipe.train.epochs, [])
    check_epochs(folder, epochs=recipe.train.epochs, steps_per_epoch=steps_per_epoch)
    notes = []
    data_note = check_same_data(data, folder, allowed)
    if data_note is not None:
        notes.append(data_note)
        write_fingerprint(data, folder)
    recorded_train, current_train = recorded.train.model_dump(), recipe.train.model_dump()
    changed = {key: current_train[key] for key in RECORDED_KEYS if current_train[key] != recorded_train[key]}
    if changed:
        # Everything else stays as recorded, such as the relative paths of plugins.
        train = recorded.train.model_copy(update=changed)
        changes = {"train": train, "overrides": recipe.overrides, "expect": None}
        write_text(folder / "recipe.toml", recorded.model_copy(update=changes).dump())
    missing = missing_outputs(folder)
    if missing and read_status(folder)["status"] == FINISHED and recipe.train.epochs == recorded.train.epochs:
        are = verb_form(len(missing), "is", "are")
        notes.append(
            f"the run has finished, and {' and '.join(missing)} {are} missing: written again from the last checkpoint"
        )
    if "final_weights" in changed:
        notes.append(
            f"train.final_weights={recipe.train.final_weights} instead of {recorded.train.final_weights}: model/ and "
            "results.json are written again at the end"
        )
    return OpenedRun(folder, RESUMED, recorded.train.epochs, notes)


def how_to_train_on(recipe: Recipe, folder: Path) -> str:
    """Return the override with which a finished run of a recipe is trained further."""
    if STOPPED_EARLY_KEY in read_status(folder):
        return TRAIN_ON
    return f"train.epochs={2 * recipe.train.epochs}"


def is_complete(recipe: Recipe, folder: Path) -> bool:
    """Return whether a run has finished all epochs of the recipe it is to be resumed with, and ended in the weights it names.

    A run without results.json or `model/` is not complete: it is resumed from its last checkpoint, and is evaluated once more.

    Raises:
        UsageError: it has finished, and the recipe has fewer epochs; or there is no checkpoint to resume from.
    """
    status = read_status(folder)
    if status["status"] != FINISHED:
        return False
    recorded = validate(read(folder / "recipe.toml")).train
    if STOPPED_EARLY_KEY in status and recipe.train.early_stopping_epochs != recorded.early_stopping_epochs:
        return False
    if STOPPED_EARLY_KEY in status and recipe.train.epochs > recorded.epochs:
        raise UsageError(
            f"{folder} has stopped early, and would do so again with more epochs; to train for longer, also set {TRAIN_ON}"
        )
    epochs_done = recorded.epochs
    if recipe.train.epochs < epochs_done:
        raise UsageError(_fewer_epochs(folder, epochs_done, recipe.train.epochs))
    if recipe.train.epochs > epochs_done and checkpoint.last_step(folder / "checkpoints") == 0:
        raise UsageError(
            f"{folder} has finished and holds no checkpoint to resume from; train again, without --resume: "
            f"{recipe_command(folder)} train.epochs={recipe.train.epochs}"
        )
    has_same_weights = recipe.train.final_weights == recorded.final_weights
    if not has_same_weights and checkpoint.last_step(folder / "checkpoints") == 0:
        raise UsageError(
            f"{folder} has finished and holds no checkpoint, so train.final_weights={recipe.train.final_weights} cannot choose "
            "other weights; train again, with another --out"
        )
    missing = missing_outputs(folder)
    if missing and checkpoint.last_step(folder / "checkpoints") == 0:
        raise UsageError(
            f"{folder} has finished, and {' and '.join(missing)} cannot be written again, since there is no checkpoint. "
            f"Restore that, or {folder / 'checkpoints'}; or train again, with another --out"
        )
    return recipe.train.epochs == epochs_done and has_same_weights and not missing


def missing_outputs(folder: Path) -> list[str]:
    """Return what a finished run has written and what is no longer in its folder, e.g. since it was damaged and removed."""
    missing = []
    if not (folder / "results.json").is_file():
        missing.append("results.json")
    if not has_model(folder):
        missing.append("model/")
    return missing


def remove_leftovers_of_run(folder: Path) -> None:
    """Remove what a process that was killed has left in the folder of a finished run, unless another one works on it."""
    lock = RunLock(folder)
    try:
        lock.acquire(lambda text: None, wait_seconds=0)
    except (EnvironmentProblem, OSError):
        return  # e.g. no right to write
    try:
        _sweep(folder)
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove hidden folders of dead writers in a run's folder, whose lock this process has."""
    for place in (folder, folder / "checkpoints", folder / "plugins"):
        sweep_leftovers(place)


def lacks_report(recipe: Recipe, folder: Path) -> bool:
    """Return whether a finished run has no report although its recipe wants one: it was killed while it was drawn."""
    return recipe.train.report and not (folder / "report.html").exists()


def check_epochs(folder: Path, *, epochs: int, steps_per_epoch: int) -> None:
    """Check that a run that is to be resumed has not been trained for more than `epochs` epochs already.

    Raises:
        UsageError: it has.
    """
    steps_done = checkpoint.last_step(folder / "checkpoints")
    if steps_done > epochs * steps_per_epoch:
        raise UsageError(_fewer_epochs(folder, steps_done / steps_per_epoch, epochs))


def lost_checkpoints(folder: Path, newest: Checkpoint | None) -> list[str]:
    """Return lines about checkpoints that are newer than the one to resume from, which are damaged or gone.

    Raises:
        DataError: there is no checkpoint, and status.json says that there was one: a run must not silently start again.
    """
    saved_step = read_status(folder).get("step", 0)
    if not isinstance(saved_step, int):
        saved_step = 0
    if newest is None:
        if saved_step > 0:
            raise DataError(
                f"{folder / 'status.json'} says that step {saved_step} was saved, but there is no checkpoint in "
                f"{folder / 'checkpoints'}. Restore that folder; or train again, with another --out"
            )
        return []
    if newest.damaged:
        return [f"{message}; resuming from {newest.path.name}" for message in newest.damaged]
    if saved_step > newest.manifest["step"]:
        return [f"status.json says that step {saved_step} was saved; it is gone, resuming from {newest.path.name}"]
    return []


def _folder_to_open(recipe: Recipe, out: str | Path | None, resume: Resume) -> Path | None:
    """Return the folder to create or to resume; None for a new numbered one.

    Raises:
        UsageError: the folder cannot be used, or there is nothing to resume.
    """
    if out is None:
        if resume is True:
            return find_run.newest(recipe.name)
        if resume == "auto":
            return find_run.newest_of_recipe(recipe)
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise EnvironmentProblem(f"cannot write the run to {folder}: it is no folder. Choose another --out")
    has_run = (folder / "recipe.toml").is_file()
    if resume is True and not has_run:
        no_run = describe_no_run(str(folder))
        raise UsageError(f"nothing to resume in {folder}: {no_run.what}{no_run.hint()}")
    if resume is False and has_run:
        name = read(folder / "recipe.toml").get("name", "?")
        raise UsageError(f"{folder} holds a run ({name}, {read_status(folder)['status']}). Choose another folder")
    if not has_run and folder.exists() and not _is_unused(folder):
        raise UsageError(f"{folder} is not empty and holds no run. Choose another --out")
    return folder


def _is_unused(folder: Path) -> bool:
    """Return whether a folder is empty, or holds only what a process that was killed wrote before the recipe."""
    if not folder.is_dir():
        return False
    for path in folder.iterdir():
        # While a file is written, its name begins with a dot.
        is_temporary = path.name.startswith((".recipe.toml", ".status.json", f".{SUMMARY_FILE}", f".{FILES_FILE}"))
        if path.name not in FILES_BEFORE_RECIPE and not is_temporary:
            return False
    return True


def _with_copied_plugins(recipe: Recipe, folder: Path) -> Recipe:
    """Copy the recipe's plugin files into the folder, and return the recipe with their new relative paths."""
    plugins = []
    for spec in recipe.plugins:
        if spec.endswith(".py"):
            (folder / "plugins").mkdir(exist_ok=True)
            write_bytes(folder / "plugins" / Path(spec).name, Path(spec).read_bytes())
            spec = f"plugins/{Path(spec).name}"
        plugins.append(spec)
    return recipe.model_copy(update={"plugins": tuple(plugins)})


def _fewer_epochs(folder: Path, epochs_done: float, epochs: int) -> str:
    return (
        f"{folder} has trained for {epochs_done:g} epochs, and train.epochs={epochs} is fewer: training cannot be undone. For "
        f"a shorter run, start another one: {recipe_command(folder)} train.epochs={epochs}"
    )
