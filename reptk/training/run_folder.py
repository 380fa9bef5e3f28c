"""The folder of a run, which is created for one run and never overwritten.

It contains recipe.toml (complete, and itself a recipe), plugins/ (copies of the plugin files), status.json, metrics.jsonl,
checkpoints/, model/, results.json and report.html.
"""

import difflib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from reptk.config import Recipe, read, validate
from reptk.config.plugins import is_contributed
from reptk.core import distributed
from reptk.core.console import Logger
from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.files import json_text, write_text
from reptk.core.foreign_files import read_json
from reptk.training import checkpoint

MAY_CHANGE_ON_RESUME = (
    "data.cache",
    "train.workers",
    "train.device",
    "train.log_every_steps",
    "train.report",
    "train.checkpoint_every_epochs",
    "expect",
    "plugins",
    "overrides",
    "train.epochs",
)
"""Keys, or tables of keys, that a resumed run may change: they do not change its results, except for its length."""

MAX_DIFFERENCE_LINES = 30
"""Lines of the difference between a plugin and the run's copy that a message shows."""


def create(recipe: Recipe, out: str | Path | None) -> Path:
    """Create the folder of a new run: `out`, or the next unused `runs/NAME/N`.

    Raises:
        UsageError: the folder is not empty.
        EnvironmentProblem: it cannot be written.
    """
    try:
        if out is None:
            folder = _create_next_numbered(Path("runs") / recipe.name)
        else:
            folder = Path(out)
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(_not_empty(folder))
        folder.mkdir(parents=True, exist_ok=True)
        set_status(folder, "running")
        # Last, since a folder without a recipe cannot be resumed.
        write_text(folder / "recipe.toml", _with_copied_plugins(recipe, folder).dump())
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write the run to {out or 'runs/'}: {cause}") from cause
    return folder


def reopen(recipe: Recipe, folder: Path) -> Path:
    """Open the folder of a run that is to be resumed; if it is to train for another number of epochs, record that.

    Raises:
        UsageError: `folder` is not that of a run, or its recipe differs (in the keys that the message lists).
        EnvironmentProblem: it cannot be written.
    """
    recorded = check_same_recipe(recipe, folder)
    try:
        if recorded.train.epochs != recipe.train.epochs:
            # Everything else stays as recorded, such as the relative paths of plugins.
            train = recorded.train.model_copy(update={"epochs": recipe.train.epochs})
            changes = {"train": train, "overrides": recipe.overrides, "expect": None}
            write_text(folder / "recipe.toml", recorded.model_copy(update=changes).dump())
        set_status(folder, "running")
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write to {folder}: {cause}") from cause
    return folder


def check_same_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """Check that a run can go on with this recipe, and return the recipe in its folder.

    Raises:
        UsageError: `folder` is not that of a run, or its recipe differs (in the keys that the message lists), or a plugin.
    """
    if not (folder / "recipe.toml").is_file():
        raise UsageError(f"nothing to resume in {folder}: there is no recipe.toml")
    # Validated, so that defaults of a later version of reptk are compared, too.
    recorded_recipe = validate(read(folder / "recipe.toml"))
    recorded, current = _flatten(recorded_recipe), _flatten(recipe)
    differences = []
    for key in sorted({*recorded, *current}):
        if recorded.get(key) != current.get(key) and not _may_change(key):
            differences.append(f"  {key:<24} {recorded.get(key)!r} in the run, {current.get(key)!r} now")
    if differences:
        raise UsageError(
            "\n".join([f"{folder} was started with another recipe; resume it with its own:", *differences])
        )
    _check_same_plugins(recipe, folder)
    return recorded_recipe


def _check_same_plugins(recipe: Recipe, folder: Path) -> None:
    """Check that the recipe's plugin files hold what the run's copies hold."""
    for spec in recipe.plugins:
        copy = folder / "plugins" / Path(spec).name
        if not spec.endswith(".py") or not copy.is_file() or copy.read_bytes() == Path(spec).read_bytes():
            continue
        before, now = _lines(copy), _lines(Path(spec))
        difference = list(difflib.unified_diff(before, now, str(copy), spec, n=1, lineterm=""))
        if len(difference) > MAX_DIFFERENCE_LINES:
            difference = [*difference[:MAX_DIFFERENCE_LINES], "..."]
        raise UsageError(
            "\n  ".join(
                [
                    f"{spec} was changed since {folder} was started. To resume with the run's own copy, leave out --plugin; to "
                    "train with the changed file, start another run:",
                    *difference,
                ]
            )
        )


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="backslashreplace").splitlines()


def is_complete(recipe: Recipe, folder: Path) -> bool:
    """Return whether a run has finished all epochs of the recipe it is to be resumed with.

    Raises:
        UsageError: it has finished, and the recipe has fewer epochs; or it has more, and there is no checkpoint to go on from.
    """
    if read_status(folder)["status"] != "finished":
        return False
    epochs_done = validate(read(folder / "recipe.toml")).train.epochs
    if recipe.train.epochs < epochs_done:
        raise UsageError(_fewer_epochs(folder, epochs_done, recipe.train.epochs))
    if recipe.train.epochs > epochs_done and checkpoint.last_step(folder / "checkpoints") == 0:
        raise UsageError(
            f"{folder} has finished and holds no checkpoint to go on from; train anew, without --resume: "
            f"python -m reptk.recipe {folder} train.epochs={recipe.train.epochs}"
        )
    return recipe.train.epochs == epochs_done


def check_epochs(folder: Path, *, epochs: int, steps_per_epoch: int) -> None:
    """Check that a run that is to be resumed has not been trained for more than `epochs` epochs already.

    Raises:
        UsageError: it has.
    """
    steps_done = checkpoint.last_step(folder / "checkpoints")
    if steps_done > epochs * steps_per_epoch:
        raise UsageError(_fewer_epochs(folder, steps_done / steps_per_epoch, epochs))


def newest(name: str) -> Path:
    """Return the folder of the last run of a recipe under `runs/`.

    Raises:
        UsageError: there is none.
    """
    runs = _numbered_folders(Path("runs") / name)
    if not runs:
        raise UsageError(f"nothing to resume: there is no run of {name} in {Path('runs') / name}")
    return runs[-1]


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json: `status` (running, finished, interrupted, failed) and, if it failed, `reason`.

    The status is "unknown" if there is no such file, or if it is damaged.
    """
    try:
        content = read_json(folder / "status.json")
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or "status" not in content:
        return {"status": "unknown"}
    return content


def set_status(folder: Path, status: str, **details: Any) -> None:
    """Write status.json."""
    write_text(folder / "status.json", json_text({"status": status, **details}, indent=2) + "\n")


@contextmanager
def recorded_status(folder: Path, logger: Logger, resume_command: str) -> Iterator[None]:
    """Write how the block ended to status.json: finished, interrupted (and print how to resume), or failed and why."""
    try:
        yield
    except KeyboardInterrupt:  # not an Exception
        _set_final_status(folder, logger, "interrupted")
        logger.line(f"interrupted. To go on: {resume_command}")
        raise
    except Exception as error:
        _set_final_status(folder, logger, "failed", reason=f"{type(error).__name__}: {error}")
        raise
    _set_final_status(folder, logger, "finished")


def resume_command(folder: Path, plugins: Sequence[str]) -> str:
    """Return the command that resumes a run.

    It names plugin modules, of which a run folder has no copy, and trusts the copies of plugin files, which have been
    executed already.
    """
    command = f"python -m reptk.recipe {folder} --resume"
    if any(spec.endswith(".py") for spec in plugins):
        command += " --trust"
    for spec in plugins:
        if not spec.endswith(".py") and not is_contributed(spec):
            command += f" --plugin {spec}"
    return command


def _set_final_status(folder: Path, logger: Logger, status: str, **details: Any) -> None:
    # Rank 0 writes the status, except for failures, which may happen on a single other rank.
    if not distributed.is_main() and status != "failed":
        return
    try:
        set_status(folder, status, **details)
    except OSError as cause:
        logger.line(f"cannot write {folder / 'status.json'}: {cause}")


def _with_copied_plugins(recipe: Recipe, folder: Path) -> Recipe:
    """Copy the recipe's plugin files into the folder, and return the recipe with their new relative paths."""
    plugins = []
    for spec in recipe.plugins:
        if spec.endswith(".py"):
            (folder / "plugins").mkdir(exist_ok=True)
            shutil.copyfile(spec, folder / "plugins" / Path(spec).name)
            spec = f"plugins/{Path(spec).name}"
        plugins.append(spec)
    return recipe.model_copy(update={"plugins": tuple(plugins)})


def _create_next_numbered(runs: Path) -> Path:
    """Create and return `runs/N`, where N follows the largest present number."""
    runs.mkdir(parents=True, exist_ok=True)
    first = 1
    present = _numbered_folders(runs)
    if present:
        first = int(present[-1].name) + 1
    for number in count(first):
        folder = runs / str(number)
        try:
            folder.mkdir()
        except FileExistsError:  # another process was faster
            continue
        return folder
    raise AssertionError("unreachable: the numbers do not end")


def _numbered_folders(runs: Path) -> list[Path]:
    if not runs.is_dir():
        return []
    return sorted((path for path in runs.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def _fewer_epochs(folder: Path, epochs_done: float, epochs: int) -> str:
    return (
        f"{folder} has trained for {epochs_done:g} epochs, and train.epochs={epochs} is fewer: training cannot be undone. For "
        f"a shorter run, start another one: python -m reptk.recipe {folder} train.epochs={epochs}"
    )


def _not_empty(folder: Path) -> str:
    if not (folder / "recipe.toml").is_file():
        return f"{folder} is not empty and holds no run. Choose another --out"
    name = read(folder / "recipe.toml").get("name", "?")
    return (
        f"{folder} holds another run ({name}, {read_status(folder)['status']}). Choose another --out, or go on with it: "
        f"python -m reptk.recipe {folder} --resume"
    )


def _flatten(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe by dotted keys; keys without a value are left out."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        elif value is not None:
            flat[prefix] = value

    visit("", recipe.model_dump(mode="json"))
    return flat


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE_ON_RESUME)
