"""Every part that a recipe may name, and where it comes from; parts that cannot be imported with the reason."""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reptk import __version__
from reptk.config import signature
from reptk.config.part_tables import common_arguments
from reptk.config.plugins import CONTRIBUTED, PluginImportError, contributed_plugins, load_plugin
from reptk.config.registry import (
    DATASETS,
    EVALUATORS,
    LOSSES,
    METHODS,
    REGISTRIES,
    STORES,
    TRACKERS,
    VIEWS,
    Registry,
)
from reptk.core.errors import UsageError

KINDS: Mapping[str, Registry] = {
    "loss": LOSSES,
    "method": METHODS,
    "dataset": DATASETS,
    "views": VIEWS,
    "evaluator": EVALUATORS,
    "store": STORES,
}
"""The kinds of parts under the names that commands use."""


def kind_of(registry: Registry) -> str:
    """Return the key of `KINDS` under which a registry is; what it calls a part if it is not among them."""
    for kind, other in KINDS.items():
        if other is registry:
            return kind
    return registry.kind


def recipe_table(registry: Registry, name: str) -> str:
    """Return the table of a recipe that holds this part's arguments, e.g. `loss` or `eval.my_metric`; no recipe has stores."""
    if registry is EVALUATORS:
        return f"eval.{name}"
    if registry is TRACKERS:
        return f"trackers.{name}"
    if registry is DATASETS:
        return "data"
    return kind_of(registry)


class ListedPart(NamedTuple):
    """A part of the catalog.

    kind: what its registry calls it.
    name: as in a recipe.
    origin: module or file, and the distribution with its version if it is installed.
    summary: first sentence of its documentation; empty if it has none.
    arguments: what a recipe may set, each as `name=default` or `name (required)`.
    problem: why it cannot be imported, in one sentence; None if it can.
    """

    kind: str
    name: str
    origin: str
    summary: str = ""
    arguments: tuple[str, ...] = ()
    problem: str | None = None


class BrokenPlugin(NamedTuple):
    """A plugin that cannot be imported, and why."""

    spec: str
    problem: str


def load_known_plugins(requested: Sequence[str]) -> list[BrokenPlugin]:
    """Import the contributed plugins and those that the user names, and return those that cannot be imported."""
    broken = []
    for spec in [*requested, *contributed_plugins()]:
        try:
            load_plugin(spec)
        except PluginImportError as error:
            broken.append(BrokenPlugin(spec, error.reason))
        except UsageError as error:
            broken.append(BrokenPlugin(spec, str(error)))
    return broken


def listed_parts(registries: Sequence[Registry] = REGISTRIES) -> list[ListedPart]:
    """Return the parts of these registries, by name; installed parts are imported for it."""
    parts = []
    for registry in registries:
        for name in registry.names():
            parts.append(_listed_part(registry, name))
    return parts


def arguments_of(factory: Callable[..., Any], supplied: Sequence[str]) -> tuple[str, ...]:
    """Return the parameters of a factory that a recipe sets, as `name=default`, `name (optional)` or `name (required)`."""
    arguments = []
    for name, default in signature.defaults(factory, supplied).items():
        arguments.append(_argument_text(name, default))
    return tuple(arguments)


def _argument_text(name: str, default: Any) -> str:
    if default is signature.REQUIRED:
        return f"{name} (required)"
    if default is None:  # TOML has no such value
        return f"{name} (optional)"
    return f"{name}={_value_text(default)}"


def origin_of(registry: Registry, name: str) -> str:
    """Return where a part that can be imported is from: its module or file, and its distribution with its version.

    Raises:
        UsageError: it cannot be imported.
    """
    factory = registry.get(name)
    qualified_name = f"{factory.__module__}.{factory.__qualname__}"
    distribution = registry.distribution(name)
    if distribution is not None:
        return f"{distribution}, {qualified_name}"
    if factory.__module__.startswith(f"{CONTRIBUTED}."):
        file = factory.__module__.removeprefix(f"{CONTRIBUTED}.")
        return f"reptk {__version__}, plugins/{file}.py"
    if factory.__module__.startswith("reptk."):
        return f"reptk {__version__}, {qualified_name}"
    try:
        return str(Path(inspect.getfile(factory)))
    except (TypeError, OSError):  # defined without a file
        return qualified_name


def _listed_part(registry: Registry, name: str) -> ListedPart:
    try:
        factory = registry.get(name)
        origin = origin_of(registry, name)
    except UsageError as error:
        return ListedPart(registry.kind, name, registry.distribution(name) or "", problem=str(error))
    arguments = list(arguments_of(factory, registry.supplied))
    for key, default in common_arguments(registry, name).items():
        arguments.append(_argument_text(key, default))
    return ListedPart(registry.kind, name, origin, _summary(factory), tuple(arguments))


def _summary(factory: Callable[..., Any]) -> str:
    """Return the first sentence or line of a factory's documentation."""
    # Not that of a base class, which says nothing of this part.
    text = inspect.cleandoc(factory.__doc__ or "")
    first_paragraph = " ".join(text.partition("\n\n")[0].split())
    # Not after "et al." and "e.g.".
    first_sentence = re.split(r"(?<!e\.g)\. (?=[A-Z`])", first_paragraph, maxsplit=1)[0]
    return first_sentence.removesuffix(".")


def _value_text(value: Any) -> str:
    """Return a default as it is written in `key=value`."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
