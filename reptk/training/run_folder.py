"""A run's folder: claimed once, described completely, and never written over.

recipe.toml (complete, itself a recipe), plugins/ (copies of the plugin files), status.json, metrics.jsonl,
checkpoints/, model/, results.json
"""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from reptk.config import Recipe, read, validate
from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.files import write_text

# What may differ when a run is resumed: it changes how, not what, is computed.
FREE_ON_RESUME = (
    "data.cache",
    "train.workers",
    "train.device",
    "train.log_every_steps",
    "train.report",
    "train.checkpoint_every_epochs",
    "expect",
    "plugins",
)


def claim(recipe: Recipe, out: str | Path | None) -> Path:
    """Make the folder of a new run: `out`, or the next free `runs/NAME/N`.

    Raises:
        UsageError: the folder holds something already.
        EnvironmentProblem: it cannot be written.
    """
    try:
        folder = Path(out) if out is not None else _next(Path("runs") / recipe.name)
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(_occupied(folder))
        folder.mkdir(parents=True, exist_ok=True)
        set_status(folder, "running")
        write_text(folder / "recipe.toml", _portable(recipe, folder).dump())
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write the run to {out or 'runs/'}: {cause}") from cause
    return folder


def reopen(recipe: Recipe, folder: Path) -> Path:
    """Take up a run again.

    Raises:
        UsageError: `folder` is no run, or one of another recipe (the keys that differ are listed).
        EnvironmentProblem: it cannot be written.
    """
    if not (folder / "recipe.toml").is_file():
        raise UsageError(f"nothing to resume in {folder}: there is no recipe.toml")
    before, now = _flat(validate(read(folder / "recipe.toml"))), _flat(recipe)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key) and not _free(key)]
    if changed:
        lines = [f"  {key:<24} {before.get(key)!r} in the run, {now.get(key)!r} now" for key in changed]
        raise UsageError("\n".join([f"{folder} was started with another recipe; resume it with its own:", *lines]))
    try:
        set_status(folder, "running")
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write to {folder}: {cause}") from cause
    return folder


def newest(name: str) -> Path:
    """The last run of a recipe under `runs/`.

    Raises:
        UsageError: there is none.
    """
    runs = _numbered(Path("runs") / name)
    if not runs:
        raise UsageError(f"nothing to resume: there is no run of {name} in {Path('runs') / name}")
    return runs[-1]


def status(folder: Path) -> dict[str, Any]:
    """What status.json says: `status` (running, finished, interrupted, failed) and, if it failed, `reason`."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {"status": "unknown"}


def set_status(folder: Path, status: str, **more: Any) -> None:
    """Write status.json."""
    write_text(folder / "status.json", json.dumps({"status": status, **more}, indent=2) + "\n")


def _portable(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its plugin files copied into the folder and named relative to it."""
    kept = []
    for spec in recipe.plugins:
        if spec.endswith(".py"):
            (folder / "plugins").mkdir(exist_ok=True)
            shutil.copyfile(spec, folder / "plugins" / Path(spec).name)
            spec = f"plugins/{Path(spec).name}"
        kept.append(spec)
    return recipe.model_copy(update={"plugins": tuple(kept)})


def _next(runs: Path) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    taken = _numbered(runs)
    for number in count(int(taken[-1].name) + 1 if taken else 1):
        folder = runs / str(number)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def _numbered(runs: Path) -> list[Path]:
    if not runs.is_dir():
        return []
    return sorted((place for place in runs.iterdir() if place.name.isdigit()), key=lambda place: int(place.name))


def _occupied(folder: Path) -> str:
    if not (folder / "recipe.toml").is_file():
        return f"{folder} is not empty and holds no run. Choose another --out"
    name = read(folder / "recipe.toml").get("name", "?")
    return (
        f"{folder} holds another run ({name}, {status(folder)['status']}). Choose another --out, or go on with it: "
        f"python -m reptk.recipe {folder} --resume"
    )


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        elif value is not None:
            flat[prefix] = value

    visit("", recipe.model_dump(mode="json"))
    return flat


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
