"""The page of the keys of a recipe, from `reptk.config.schema`."""

import inspect
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reptk.config.schema import Recipe
from reptk.config.value_schedule import ValueSchedule
from reptk_pages.markdown import code, escape, table
from reptk_pages.type_texts import default_text, type_text

HEAD = """# Keys of a recipe

A recipe is a TOML file of these tables. On the command line a key is written with dots: `train.epochs=5`. The schema is closed:
an unknown key, a value of another type and a value out of range are errors, which name the nearest valid key. A run's
`recipe.toml` holds every key with its value, and is itself a recipe. `python -m reptk.recipe NAME --show` prints it.

The arguments of data sets, views, methods, losses, evaluators and trackers are on [pages of their own](parts/index.md).
"""

PARTS = {
    "data": "the data set and its arguments: [data sets](parts/data.md)",
    "views": "the augmentations and their arguments: [views](parts/views.md)",
    "method": "what the training loop trains: [methods](parts/methods.md)",
    "loss": "only where the method takes one: [losses](parts/losses.md)",
    "eval": "an evaluator by its name, `[eval.knn]`; none named: kNN: [evaluators](parts/evaluators.md)",
    "trackers": "arguments of trackers, `[trackers.wandb]`; see `train.trackers`: [trackers](parts/trackers.md)",
}
"""Tables whose keys are the arguments of parts."""

SCHEDULE = """## Schedules

A number in `[loss]` or `[method]`, and `optim.weight_decay`, may be a table that says how it changes during the run. In a file:
`temperature = {start = 0.2, end = 0.05}`. On the command line: `loss.temperature.start=0.2 loss.temperature.end=0.05`.
"""


def schema_pages() -> dict[str, str]:
    """Return the page by its path."""
    rows = []
    sections = []
    for name, field in Recipe.model_fields.items():
        if name in PARTS:
            rows.append([code(f"[{name}]"), "table", _default(field), PARTS[name]])
            continue
        model = _model_of(field)
        if model is None:
            rows.append(_row(name, field))
        else:
            rows.append([code(f"[{name}]"), "table", _default(field), _summary(model)])
            sections += _sections(name, model)
    formulas = inspect.cleandoc(ValueSchedule.__doc__ or "").split("\n\n", 1)[1]
    text = "\n".join([HEAD, "## Tables and keys at the top\n", _table(rows), *sections, SCHEDULE, _keys(ValueSchedule)])
    return {"schema.md": f"{text}\n{formulas}\n"}


def _sections(key: str, model: type[BaseModel]) -> list[str]:
    """Return the section of a table, and those of the tables in it."""
    text = f"## `[{key}]`\n\n{_summary(model)}\n\n{_keys(model)}"
    inner = []
    for name, field in model.model_fields.items():
        nested = _model_of(field)
        if nested is not None and nested is not ValueSchedule:
            inner += _sections(f"{key}.{name}", nested)
    return [text, *inner]


def _keys(model: type[BaseModel]) -> str:
    return _table(_row(name, field) for name, field in model.model_fields.items())


def _table(rows: Any) -> str:
    return table(["key", "type", "default", "meaning"], rows)


def _row(name: str, field: FieldInfo) -> list[str]:
    return [code(name), escape(_type(field)), _default(field), escape(field.description or "")]


def _type(field: FieldInfo) -> str:
    if _model_of(field) is ValueSchedule:
        return "number, at least 0, or the table of a schedule"
    return type_text(field.annotation, field.metadata)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return default_text(field.get_default(call_default_factory=True))


def _summary(model: type[BaseModel]) -> str:
    return escape(" ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split()))


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a table; None if the key is no table, or one of free keys."""
    pending = [field.annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending += get_args(annotation)
    return None
