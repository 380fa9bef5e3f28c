"""Parts of a recipe, `{name, ...arguments}`: checked by the signatures of their factories, completed with defaults, built."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reptk.config import signature
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, TRACKERS, VIEWS, Registry, unknown
from reptk.config.schema import EncoderSection, RecipeError, Table, TrackerNames
from reptk.config.signature import Problem
from reptk.config.value_schedule import ValueSchedule, schedules_in
from reptk.core.errors import UsageError

PARTS: dict[str, Registry] = {"data": DATASETS, "views": VIEWS, "method": METHODS, "loss": LOSSES}
"""The tables of a recipe that name a registered part."""

SCHEDULED_TABLES = ("loss", "method")
"""Tables of parts whose numbers may have a schedule, as `optim.weight_decay` may; see `reptk.config.value_schedule`."""

COMMON_ARGUMENTS: Mapping[Registry, Mapping[str, Any]] = {
    DATASETS: {"labelled": None, "only_labelled": False, "shuffle": "global"},
    EVALUATORS: {"every_epochs": 0},
}
"""Keys that every data set takes (which training images have labels, `reptk.data.labels.label_selection`, and their order,
`reptk.data.batches.keyed_order`), and every evaluator."""

LABEL_KEYS = ("labelled", "only_labelled")

SHUFFLE = re.compile(r"global|window:[1-9][0-9]{0,8}")
"""What `data.shuffle` may be."""


def build(registry: Registry, part: Table, **supplied: Any) -> Any:
    """Build a part from its table.

    Args:
        registry: of the part's kind.
        part: `{name, ...arguments}`.
        supplied: values that are not in the table, e.g. `encoder` and `views` for a method. Those that the factory has no
            parameter for are left out.

    Raises:
        UsageError: the factory refuses the arguments.
    """
    arguments = _arguments(part)
    if registry is DATASETS:
        options = common_options(part)
        arguments = {key: value for key, value in arguments.items() if key not in options}
    try:
        return registry.build(part["name"], arguments, supplied)
    except (ValueError, TypeError) as cause:
        raise UsageError(f"{registry.kind} {part['name']!r}: {cause}") from cause


def complete(key: str, part: Table) -> Table:
    """Check one part of a recipe (`key`: data, views, method, loss or eval.NAME) and complete it with its defaults.

    Raises:
        RecipeError: listing all problems.
    """
    problems: list[Problem] = []
    completed = complete_part(key, PARTS.get(key, EVALUATORS), part, problems)
    if problems:
        raise RecipeError(key, problems)
    return completed


def complete_part(key: str, registry: Registry, part: Any, problems: list[Problem]) -> Table:
    """Return the part with its defaults, and append what is wrong with it to `problems`."""
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        problems.append((f"{key}.name", f"say which {registry.kind}: {', '.join(registry.names())}"))
        return {"name": ""}
    name = part["name"]
    try:
        factory = registry.get(name)
    except UsageError as error:
        problems.append((f"{key}.name", str(error)))
        return part
    arguments = _arguments(part)
    common_keys: Table = {}
    if key == "data":
        common_keys = _complete_label_keys(label_options(part), problems)
        common_keys |= _complete_shuffle(common_options(part), problems)
        arguments = {argument: value for argument, value in arguments.items() if argument not in common_keys}
    schedules: dict[str, Table] = {}
    if key in SCHEDULED_TABLES:
        for argument, table in schedules_in(factory, arguments).items():
            schedules[argument] = _complete_schedule(f"{key}.{argument}", table, problems)
        arguments = _check_end_values(key, factory, arguments, schedules, problems)
    checked = signature.check(factory, arguments, registry.supplied)
    for argument in checked.unknown:
        problems.append((f"{key}.{argument}", _unknown_argument(registry, name, argument)))
    for inner_key, message in checked.problems:
        # The value of a schedule that was checked is its start.
        suffix = ".start" if inner_key in schedules else ""
        problems.append((f"{key}.{inner_key}{suffix}", message))
    return {"name": name, **checked.complete, **schedules, **common_keys}


def complete_evaluator(key: str, part: Any, problems: list[Problem]) -> Table:
    if not isinstance(part, dict):
        problems.append((f"eval.{key}", "must be a table"))
        return {}
    # `every_epochs` belongs to the recipe, not to the evaluator: no factory has a parameter of that name.
    every_epochs = part.get("every_epochs", 0)
    # bool is a subclass of int, and `true` is no number of epochs.
    if not isinstance(every_epochs, int) or isinstance(every_epochs, bool) or every_epochs < 0:
        problems.append((f"eval.{key}.every_epochs", f"must be an integer of at least 0, got {every_epochs!r}"))
    evaluator = {"name": key, **part}
    evaluator.pop("every_epochs", None)
    completed = complete_part(f"eval.{key}", EVALUATORS, evaluator, problems)
    return {"name": completed.pop("name"), "every_epochs": every_epochs, **completed}


def complete_trackers(table: Table, problems: list[Problem]) -> Any:
    """Return the `[trackers.NAME]` tables, with those of the trackers that `train.trackers` names."""
    tables = table.get("trackers", {})
    if not isinstance(tables, dict):
        return tables  # reported by pydantic
    train = table.get("train")
    named = train.get("trackers") if isinstance(train, dict) else None
    try:
        names = TypeAdapter(TrackerNames | None).validate_python(named) or ()
    except ValidationError:
        names = ()  # reported by pydantic
    completed = {}
    for name in dict.fromkeys([*tables, *names]):
        arguments = tables.get(name, {})
        if not isinstance(arguments, dict):
            problems.append((f"trackers.{name}", "must be a table"))
            continue
        if name not in TRACKERS.names():
            key = f"trackers.{name}" if name in tables else "train.trackers"
            problems.append((key, unknown("tracker", name, TRACKERS.names())))
            continue
        part = complete_part(f"trackers.{name}", TRACKERS, {**arguments, "name": name}, problems)
        completed[name] = _arguments(part)
    return completed


def label_options(part: Table) -> Table:
    """Return the keys of a `[data]` table that say which images have labels, without arguments of the data set itself."""
    return {key: value for key, value in common_options(part).items() if key in LABEL_KEYS}


def common_options(part: Table) -> Table:
    """Return the keys of a `[data]` table that every data set takes, without arguments of the data set itself."""
    return {key: part[key] for key in common_arguments(DATASETS, part["name"]) if key in part}


def common_arguments(registry: Registry, name: str) -> dict[str, Any]:
    """Return the keys that the table of every part of a kind takes besides the part's arguments, with their defaults.

    A part that has an argument of that name takes it itself.
    """
    accepted = signature.names(registry.get(name), registry.supplied)
    defaults = COMMON_ARGUMENTS.get(registry, {})
    return {key: default for key, default in defaults.items() if key not in accepted}


def headline_evaluator(evaluators: Mapping[str, Table], *, trains_classifier_alone: bool = False) -> str:
    """Return the key of the evaluator whose metric is the headline, as `reptk.evaluate.results.headline` chooses it.

    That is a classifier's accuracy which is listed first, else kNN, else the first evaluator.

    Args:
        evaluators: the complete `[eval.NAME]` tables.
        trains_classifier_alone: the accuracy is the headline wherever it is listed, since kNN stays the same.
    """
    if trains_classifier_alone:
        for key, table in evaluators.items():
            if table["name"] == "accuracy":
                return key
    first = next(iter(evaluators))
    if evaluators[first]["name"] == "accuracy":
        return first
    for key, table in evaluators.items():
        if table["name"] == "knn":
            return key
    return first


def takes_loss(method: Table) -> bool:
    """Whether the factory of this `[method]` table has a parameter `loss`; True if it is unknown, which is reported."""
    if not isinstance(method, dict) or method.get("name") not in METHODS.names():
        return True
    return METHODS.takes(method["name"], "loss")


def freezes_encoder(method: Table) -> bool:
    """Whether a `[method]` table trains a classifier alone, on an encoder that it freezes."""
    return method.get("freeze_encoder") is True


def trains_classifier_alone(method: Table, encoder: EncoderSection) -> bool:
    """Whether a recipe trains a classifier on a backbone of which nothing is trained."""
    has_classifier = METHODS.takes(method["name"], "num_classes")
    return freezes_encoder(method) or (has_classifier and encoder.freeze == "all")


def _complete_label_keys(options: Table, problems: list[Problem]) -> Table:
    """Return the `label_options` of a data set with their defaults, and append what is wrong with them to `problems`."""
    if not options:
        return {}
    completed = dict(options)
    labelled = completed.get("labelled")
    is_number = isinstance(labelled, int | float) and not isinstance(labelled, bool)
    if is_number and 0 < labelled <= 1:
        completed["labelled"] = float(labelled)
    elif labelled is not None and (is_number or not isinstance(labelled, str) or not labelled):
        problems.append(
            ("data.labelled", f"must be a share above 0 and at most 1, or the file of a list, got {labelled!r}")
        )
    only_labelled = completed.setdefault("only_labelled", False)
    if not isinstance(only_labelled, bool):
        problems.append(("data.only_labelled", f"must be true or false, got {only_labelled!r}"))
    return completed


def _complete_shuffle(options: Table, problems: list[Problem]) -> Table:
    """Return `data.shuffle` if it is set, and append what is wrong with it to `problems`."""
    if "shuffle" not in options:
        return {}
    shuffle = options["shuffle"]
    if not isinstance(shuffle, str) or not SHUFFLE.fullmatch(shuffle):
        problems.append(
            ("data.shuffle", f"must be global, or window:G with a number of shards such as window:16, got {shuffle!r}")
        )
    return {"shuffle": shuffle}


def _complete_schedule(key: str, table: Table, problems: list[Problem]) -> Table:
    """Return a schedule in place of a number with its defaults, and append what is wrong with it to `problems`."""
    try:
        schedule = ValueSchedule.model_validate(table)
    except ValidationError as error:
        for inner_key, message in signature.problems_of(error, ValueSchedule):
            problems.append((f"{key}.{inner_key}".removesuffix("."), message))
        return dict(table)
    return schedule.model_dump(mode="json", exclude_none=True)


def _check_end_values(
    key: str,
    factory: Callable[..., Any],
    arguments: dict[str, Any],
    schedules: Mapping[str, Table],
    problems: list[Problem],
) -> dict[str, Any]:
    """Check the ends of schedules by the bounds of their arguments, and return the arguments with the starts in their places.

    An argument whose schedule lacks one of these is left out, since that is reported already.
    """
    plain = dict(arguments)
    for argument, table in schedules.items():
        plain.pop(argument)
        if isinstance(table.get("start"), float) and isinstance(table.get("end"), float):
            plain[argument] = table["start"]
            for inner_key, message in signature.check(factory, {argument: table["end"]}).problems:
                if inner_key == argument:
                    problems.append((f"{key}.{argument}.end", message))
    return plain


def _arguments(part: Table) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "name"}


def _unknown_argument(registry: Registry, name: str, argument: str) -> str:
    """Return a message such as `'tcl' has no argument 'temprature'; did you mean 'temperature'? It takes temperature, k1`."""
    accepted = signature.names(registry.get(name), registry.supplied)
    # Most often the name of the part was changed, and the argument belongs to the part before.
    parts_with_argument = []
    for other, factory in registry.loaded().items():
        if argument in signature.names(factory, registry.supplied):
            parts_with_argument.append(other)
    accepted += common_arguments(registry, name)
    suggestion = signature.suggestion(argument, accepted)
    if parts_with_argument:
        hint = f"; {argument} belongs to {', '.join(parts_with_argument)}."
    elif suggestion:
        hint = suggestion
    else:
        hint = "."
    parameters = ", ".join(accepted) or "no arguments"
    return f"{name!r} has no argument {argument!r}{hint} It takes {parameters}"
