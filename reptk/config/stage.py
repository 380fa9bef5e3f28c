"""Stages: recipes with a `[start]` table, which are completed by a finished run whose encoder they start from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reptk.config.override_pairs import value_as_text
from reptk.config.registry import VIEWS
from reptk.config.run_commands import resume_command
from reptk.config.run_paths import RECIPE_FILE, describe_no_run, has_model_weights
from reptk.config.toml import read
from reptk.core.errors import DataError, UsageError
from reptk.core.files import expand_home, real_path, recover_folder
from reptk.core.foreign_files import read_json

Table = dict[str, Any]

RUN_KEY = "start.run"

RUN_OPTION = f"{RUN_KEY}="

ENCODER_KEYS = ("encoder.backbone", "encoder.stem", "encoder.pretrained", "encoder.weights")
"""What the run decides."""

TABLES = ("views", "encoder", "train", "eval")
"""Tables of a stage that are merged with those of the run."""

TRAIN_KEYS = ("workers", "device", "precision", "channels_last")
"""Keys of the run's `[train]` that a stage takes over: where and how fast it is executed."""


def is_stage(table: Table) -> bool:
    """Return whether a recipe starts from a run."""
    return "start" in table


def complete_stage(
    name: str, table: Table, overrides: Sequence[str], *, option: str = RUN_OPTION
) -> tuple[Table, list[str]]:
    """Complete a stage by the run that it starts from; other recipes are returned as they are.

    Data set, backbone, stem and size of the images are the run's, and so are its evaluators, after those of the stage. A recipe
    that is complete already, in the folder of a stage's run, does not read the first run again.

    Args:
        name: of the recipe, for messages.
        table: of its file.
        overrides: `key=value` pairs, of which `start.run=FOLDER` names the run.
        option: what the user writes before the folder of the run, for messages: `start.run=` or `--from `.

    Returns:
        The table, and the overrides that are left, with those that follow from them.

    Raises:
        UsageError: no run is named, it is none, or an override contradicts it.
        DataError: the run has no model yet, or a damaged one.
    """
    runs = [value_as_text(pair) for pair in overrides if pair.partition("=")[0] == RUN_KEY]
    others = [pair for pair in overrides if pair.partition("=")[0] != RUN_KEY]
    if not is_stage(table):
        if runs:
            raise UsageError(
                f"{option}{runs[-1]}: {name} is not a stage that starts from a run, as linear, linear_tcl and finetune are. To "
                f"start its backbone from the weights of a run: encoder.weights={runs[-1]}"
            )
        return table, others
    start = table["start"]
    if not isinstance(start, dict):
        return table, others  # reported by the validation
    recorded = start.get("run")
    run = runs[-1] if runs else recorded
    if not run or not isinstance(run, str):
        raise UsageError(
            f"{name} starts from a finished run, which is not named: {option}RUN, e.g. {option}runs/supcon_digits/1"
        )
    folder = real_path(expand_home(run))
    for key in TABLES:
        if not isinstance(table.get(key, {}), dict):
            raise UsageError(f"{name}: {key} must be a table, got {table[key]!r}")
    if "backbone" in table.get("encoder", {}):
        if runs and folder != real_path(expand_home(str(recorded))):
            raise UsageError(
                f"{option}{run}: {name} has started from {recorded}; to start from {run}, name the stage: linear {option}{run}"
            )
        return table, others
    if not runs:
        # From the file of the recipe.
        option = f"{name}: {RUN_OPTION}"
    recipe = _read_run(run, folder, option)
    others = _without_same_backbone(recipe["model"]["backbone"], others)
    completed = _completed(table, recipe, folder, others)
    return completed, [*others, *_view_overrides(completed["views"], others)]


def _read_run(run: str, folder: Path, option: str) -> Table:
    """Return the recipe of a finished run, and with it the configuration of its model as `model`."""
    if not (folder / RECIPE_FILE).is_file():
        no_run = describe_no_run(run)
        message = f"{option}{run}: {no_run.what}{no_run.hint(option)}"
        if no_run.is_weights:
            message += f". To train another recipe from these weights: encoder.weights={run}"
        raise UsageError(message)
    recipe = read(folder / RECIPE_FILE)
    recover_folder(folder / "model")
    if not has_model_weights(folder / "model"):
        raise DataError(
            f"{option}{run}: this run has no model yet, which a finished run has. Finish it: "
            f"{resume_command(run, recipe.get('plugins', []))}"
        )
    tables = {key: recipe.get(key, {}) for key in ("start", "data", "encoder", "train", "eval")}
    if isinstance(tables["eval"], dict):
        tables |= {f"eval.{key}": part for key, part in tables["eval"].items()}
    for key, value in tables.items():
        if not isinstance(value, dict):
            raise DataError(f"{folder / RECIPE_FILE}: {key} must be a table, got {value!r}")
    try:
        model = read_json(folder / "model" / "config.json")
        model = model.get("reptk", model)  # earlier versions had everything in one table
        recipe["model"] = {"backbone": str(model["backbone"]), "stem": model["stem"], "size": model["size"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise DataError(f"{option}{run}: its model is damaged: config.json cannot be read ({cause!r})") from cause
    return recipe


def _completed(table: Table, recipe: Table, folder: Path, overrides: Sequence[str]) -> Table:
    model = recipe["model"]
    encoder = {"backbone": model["backbone"], "stem": model["stem"], "weights": str(folder / "model")}
    pairs_of_file = [f"encoder.{key}={value}" for key, value in table.get("encoder", {}).items()]
    _check_encoder_overrides(encoder, folder, [*pairs_of_file, *overrides])
    train = table.get("train", {})
    inherited = {key: recipe.get("train", {})[key] for key in TRAIN_KEYS if key in recipe.get("train", {})}
    evaluators = dict(table.get("eval", {}))
    for key, part in recipe.get("eval", {}).items():
        # How often the run was evaluated while it trained depended on its length.
        part = {name: value for name, value in part.items() if name != "every_epochs"}
        evaluators.setdefault(key, part)
    start = {**table["start"], "run": str(folder), "pretrained": _starts_from_trained_weights(recipe)}
    if _is_share(recipe.get("data", {}).get("labelled")):
        start["label_seed"] = recipe.get("start", {}).get("label_seed", recipe.get("seed", 0))
    return {
        **table,
        "start": start,
        "data": recipe.get("data", {}),
        "views": {"size": model["size"], **table.get("views", {})},
        "encoder": {**table.get("encoder", {}), **encoder},
        "train": {**inherited, **train},
        "eval": evaluators,
    }


def _is_share(labelled: object) -> bool:
    """Return whether `data.labelled` is a share, which is drawn by a seed."""
    return isinstance(labelled, int | float)


def _without_same_backbone(backbone: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that name the run's backbone, with or without the tag of timm's weights."""
    same = [f"encoder.backbone={name}" for name in (backbone, backbone.partition(".")[0])]
    return [pair for pair in overrides if pair not in same]


def _check_encoder_overrides(encoder: Table, folder: Path, overrides: Sequence[str]) -> None:
    for pair in overrides:
        key, _, value = pair.partition("=")
        if key in ENCODER_KEYS and value != str(encoder.get(key.removeprefix("encoder."))):
            raise UsageError(
                f"{pair}: the stage starts from the encoder of {folder} (encoder.backbone={encoder['backbone']}, "
                f"encoder.stem={encoder['stem']}); leave it out, or start from another run"
            )


def _view_overrides(views: Table, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that keep size and number of views if others replace the views, which drops their arguments."""
    values = {}
    for pair in overrides:
        key, _, value = pair.partition("=")
        values[key] = value
    name = values.get("views.name")
    if name not in VIEWS.names():
        return []  # not replaced; or unknown, which the validation reports
    pairs = []
    for argument in ("size", "count"):
        if argument in views and f"views.{argument}" not in values and VIEWS.takes(name, argument):
            pairs.append(f"views.{argument}={views[argument]}")
    return pairs


def _starts_from_trained_weights(recipe: Table) -> bool:
    """Return whether a run's backbone had trained weights before any training by reptk."""
    if "start" in recipe:
        return bool(recipe["start"].get("pretrained"))
    encoder = recipe.get("encoder", {})
    return bool(encoder.get("pretrained")) or encoder.get("weights") is not None
