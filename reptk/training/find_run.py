"""Earlier runs of a recipe in the numbered folders `runs/NAME/N`: the last one, and whether it is unfinished."""

from pathlib import Path

from reptk.config import Recipe
from reptk.core.errors import UsageError
from reptk.training.run_status import FINISHED, read_status
from reptk.training.same_run import recipe_differences


def newest(name: str) -> Path:
    """Return the folder of the last run of a recipe under `runs/`.

    Raises:
        UsageError: there is none.
    """
    runs = _runs_of(name)
    if not runs:
        raise UsageError(f"nothing to resume: there is no run of {name} in {Path('runs') / name}")
    return runs[-1]


def newest_of_recipe(recipe: Recipe) -> Path | None:
    """Return the folder of the last run under `runs/` that was started with the same recipe; None if there is none."""
    for folder in reversed(_runs_of(recipe.name)):
        try:
            if not recipe_differences(recipe, folder):
                return folder
        except UsageError:
            continue  # a recipe of another version, which does not validate any more
    return None


def unfinished_run_note(recipe: Recipe) -> list[str]:
    """Say that the last run of the same recipe is unfinished, and how it is resumed, as a list of at most one line."""
    folder = newest_of_recipe(recipe)
    if folder is None:
        return []
    status = read_status(folder)
    if status["status"] == FINISHED:
        return []
    return [
        f"{folder} is an unfinished run of this recipe ({status['status']}, step {status.get('step', 0)}); to resume it: "
        "--resume auto"
    ]


def numbered_folders(runs: Path) -> list[Path]:
    """Return the folders below `runs` whose names are numbers, by number."""
    if not runs.is_dir():
        return []
    return sorted((path for path in runs.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _runs_of(name: str) -> list[Path]:
    """Return the folders of a recipe's runs by number; without those that were never started."""
    folders = numbered_folders(Path("runs") / name)
    return [folder for folder in folders if (folder / "recipe.toml").is_file()]
