"""Which plugins `reptk evaluate` and `reptk embed` import: those of the command line, and those of the run if they may."""

import warnings
from collections.abc import Sequence

from reptk.config.plugins import load_contributed_plugins, load_plugin, load_recipe_plugins
from reptk.config.registry import DATASETS


def load_plugins(source: str, requested: Sequence[str], *, trust: bool) -> None:
    """Import the plugins of a command that reads a run.

    A run's plugin files are executed only if they are trusted. Without them a command works as long as it needs no part of
    theirs.

    Args:
        source: a run's folder, its model folder, or anything else, which has no plugins.
        requested: the plugins of `--plugin`.
        trust: whether plugin files in the run's folder may be executed.

    Raises:
        UsageError: a plugin cannot be imported, or the trusted run names code outside of its folder.
    """
    for plugin in requested:
        load_plugin(plugin)

    from reptk.embeddings.encoding.embedder import recipe_file, recipe_of  # imports torch

    file = recipe_file(source)
    if file is None:
        return
    recipe = recipe_of(source)
    recorded = recipe.get("plugins", [])
    if trust:
        load_recipe_plugins(file, recorded, requested, trust=True)
        return
    skipped = load_contributed_plugins(recorded)
    if skipped and recipe.get("data", {}).get("name") not in DATASETS.names():
        warnings.warn(
            f"the data set of {source} is of a plugin, which is not executed: {', '.join(skipped)}. If you trust it: --trust",
            stacklevel=2,
        )
