"""The commands that repeat or resume a run, as a shell takes them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from reptk.config.plugins import is_contributed
from reptk.config.run_paths import RECIPE_FILE
from reptk.config.toml import read
from reptk.core.errors import UsageError
from reptk.core.printable_names import in_one_line


def recipe_command(folder: str | Path) -> str:
    """Return the command that trains the recipe in a run's folder."""
    return shlex.join(["python", "-m", "reptk.recipe", str(folder)])


def resume_command(folder: str | Path, plugins: Sequence[str] | None = None) -> str:
    """Return the command that resumes a run.

    It names plugin modules, of which a run's folder has no copy, and trusts the copies of plugin files, without which the run
    is refused.

    Args:
        folder: of the run.
        plugins: of its recipe; None for those that the recipe in the folder names.
    """
    if plugins is None:
        plugins = _recorded_plugins(Path(folder))
    command = f"{recipe_command(folder)} --resume"
    if any(spec.endswith(".py") for spec in plugins):
        command += " --trust"
    for spec in plugins:
        if not spec.endswith(".py") and not is_contributed(spec):
            command += f" --plugin {shlex.quote(spec)}"
    return command


def _recorded_plugins(folder: Path) -> list[str]:
    try:
        plugins = read(folder / RECIPE_FILE).get("plugins", [])
    except UsageError:  # damaged, which the command reports
        return []
    if not isinstance(plugins, list):
        return []
    # Whoever wrote the recipe must not write to the terminal.
    return [in_one_line(str(spec)) for spec in plugins]
