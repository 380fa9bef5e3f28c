"""Whether a run that is resumed is the run that was started: recipe, plugins, data, number of ranks."""

import difflib
from collections.abc import Collection
from pathlib import Path

from torch import nn

from reptk.config import Recipe, read, validate
from reptk.config.dotted_keys import flatten, is_among
from reptk.config.run_paths import describe_no_run
from reptk.config.schema import SAME_RESULT_KEYS
from reptk.core.counts import format_count
from reptk.core.errors import DataError, UsageError
from reptk.core.files import sha256_of
from reptk.data.fingerprint import Fingerprint, differences, read_fingerprint
from reptk.models.encoder import unfrozen_batch_norms

ALLOWABLE = ("data", "ranks")
"""Differences that a resumed run may have if it says so (`--allow`)."""

RECORDED_KEYS = ("epochs", "early_stopping_epochs", "final_weights")
"""Keys of `[train]` that a resumed run may change and that change its results: its length, and which weights it ends in."""

MAY_CHANGE_ON_RESUME = (*SAME_RESULT_KEYS, *(f"train.{key}" for key in RECORDED_KEYS))
"""Keys, or tables of keys, that a resumed run may change: they do not change what its steps compute, and `RECORDED_KEYS` are
written into its recipe."""

MAX_DIFFERENCE_LINES = 30
"""Lines of the difference between a plugin and the run's copy that a message shows."""


def recipe_differences(recipe: Recipe, folder: Path, may_differ: Collection[str] = MAY_CHANGE_ON_RESUME) -> list[str]:
    """Return in which keys a recipe differs from that of a run, a line each; without those that may differ."""
    # Validated, so that defaults of a later version of reptk are compared, too.
    recorded = flatten(validate(read(folder / "recipe.toml")).model_dump(mode="json"))
    current = flatten(recipe.model_dump(mode="json"))
    lines = []
    for key in sorted({*recorded, *current}):
        if recorded.get(key) != current.get(key) and not is_among(key, may_differ):
            lines.append(f"  {key:<24} {recorded.get(key)!r} in the run, {current.get(key)!r} now")
    return lines


def check_same_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """Check that a run can be resumed with this recipe, and return the recipe in its folder.

    Raises:
        UsageError: `folder` is not that of a run, or its recipe differs (in the keys that the message lists), or a plugin.
    """
    if not (folder / "recipe.toml").is_file():
        no_run = describe_no_run(str(folder))
        raise UsageError(f"nothing to resume in {folder}: {no_run.what}{no_run.hint()}")
    lines = recipe_differences(recipe, folder)
    if lines:
        raise UsageError(
            "\n".join(
                [f"{folder} was started with another recipe. Choose another --out, or resume it with its own:", *lines]
            )
        )
    _check_same_plugins(recipe, folder)
    return validate(read(folder / "recipe.toml"))


def check_same_data(now: Fingerprint, folder: Path, allowed: Collection[str]) -> str | None:
    """Check that the data set is the one that a run was started with.

    Args:
        now: the fingerprint of the data set.
        folder: the run's.
        allowed: with "data" in it, another data set is permitted.

    Returns:
        A line about what is permitted; None if nothing has changed.

    Raises:
        DataError: the data set has changed.
    """
    before = read_fingerprint(folder)
    if before is None:
        return f"{folder} does not say which data it was started with, so it is not known whether the data has changed"
    lines = differences(before, now)
    if not lines and before.check != now.check:
        return f"the files are not compared, since train.check_files was {before.check} until now; from here they are"
    if not lines:
        return None
    listed = "\n  ".join(lines)
    if "data" in allowed:
        return f"the data has changed since {folder} was started; --allow data permits it:\n  {listed}"
    raise DataError(
        f"the data has changed since {folder} was started, so the run would not end as it would have:\n  {listed}\n"
        "Restore the data, or resume with the data as it is: --allow data"
    )


def check_same_ranks(
    before: int, now: int, method: nn.Module, allowed: Collection[str], drop_path: float
) -> str | None:
    """Check that a number of ranks leads to the weights of another, up to rounding.

    Args:
        before, now: numbers of ranks.
        method: that is trained.
        allowed: with "ranks" in it, another number is permitted.
        drop_path: rate of stochastic depth.

    Returns:
        A line about another number that is permitted; None if it is the same.

    Raises:
        UsageError: the number matters.
    """
    if before == now:
        return None
    change = f"{format_count(before, 'rank')} until now, {now} from here"
    reasons = []
    # SyncBatchNorm, which normalizes over all ranks, is none of these.
    num_norms = sum(not isinstance(layer, nn.SyncBatchNorm) for layer in unfrozen_batch_norms(method))
    if num_norms:
        norms = format_count(num_norms, "BatchNorm layer normalizes", "BatchNorm layers normalize")
        reasons.append(f"{norms} the images of each rank by themselves (train.sync_batchnorm=true, over all)")
    has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in method.modules())
    if drop_path or has_dropout:
        reasons.append("dropout or stochastic depth is drawn for each rank")
    if not reasons:
        return f"{change}: the global batches stay the same, and the weights equal those of {before} up to rounding"
    if "ranks" in allowed:
        return f"{change}; --allow ranks permits it: the weights will differ from those of {before}"
    raise UsageError(
        f"{change}: the run would end in different weights, since {' and '.join(reasons)}. Start it with "
        f"{format_count(before, 'rank')}, or permit it: --allow ranks"
    )


def _check_same_plugins(recipe: Recipe, folder: Path) -> None:
    """Check that the recipe's plugin files hold what the run's copies hold."""
    for spec in recipe.plugins:
        copy = folder / "plugins" / Path(spec).name
        if not spec.endswith(".py") or not copy.is_file() or sha256_of(copy) == sha256_of(Path(spec)):
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
