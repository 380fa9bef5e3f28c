"""`reptk plugin check`: build the parts of a plugin, try what they must do, and say what a violation means."""

import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from reptk import config
from reptk.config import signature
from reptk.config.part_catalog import kind_of, recipe_table
from reptk.config.plugins import load_parts
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, STORES, VIEWS, Registry, unknown
from reptk.config.value_schedule import at_start
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.passwords import redacted
from reptk.core.printable_names import in_one_line
from reptk.testing.dataset_checks import try_dataset
from reptk.testing.evaluator_checks import try_evaluator
from reptk.testing.loss_checks import try_loss
from reptk.testing.method_checks import try_method
from reptk.testing.requirements import Outcome, place_of
from reptk.testing.store_checks import try_store
from reptk.testing.view_checks import try_views

Part = tuple[Registry, str]
"""A part's registry and its name."""

VIOLATED = 1
"""Exit code if a part violates a requirement."""

LINE_WIDTH = 120


def check_plugin(spec: str, words: Sequence[str], *, fixed: bool) -> int:
    """Check the parts that a plugin registers, and print a verdict on each. Returns the exit code.

    Args:
        spec: a file or module, which is executed.
        words: the name of one of its parts, and `key=value` arguments of a part; both optional.
        fixed: whether views are meant to be the same for every key.

    Raises:
        UsageError: the plugin cannot be imported or has no such part, or its arguments are wrong or missing.
        DataError: a data set finds no images.
        EnvironmentProblem: a store cannot be reached.
    """
    names = [word for word in words if "=" not in word]
    pairs = [word for word in words if "=" in word]
    if len(names) > 1:
        raise UsageError(f"one part at a time, or all of a plugin: got {', '.join(names)}")
    parts = load_parts(spec)
    if names:
        known = sorted(name for _, name in parts)
        if names[0] not in known:
            raise UsageError(f"{spec}: {unknown('part', names[0], known)}")
        parts = [part for part in parts if part[1] == names[0]]
    unchecked = [part for part in parts if part[0] not in _CHECKS]
    parts = [part for part in parts if part[0] in _CHECKS]
    if not parts:
        raise UsageError(_without_check(spec, unchecked))
    if pairs and len(parts) > 1:
        listed = ", ".join(f"{kind_of(registry)} {name}" for registry, name in parts)
        raise UsageError(
            f"{spec} registers {listed}. Say which of them the arguments are for: {_command(spec, 'NAME', *pairs)}"
        )
    # Wrong arguments are reported before any check, which may take seconds.
    tables = [_argument_table(spec, part, pairs) for part in parts]
    faulty = []
    for part, table in zip(parts, tables, strict=True):
        if not _check_part(spec, part, table, fixed=fixed):
            faulty.append(f"{kind_of(part[0])} {part[1]}")
    if unchecked:
        print(_without_check(spec, unchecked))
    if not faulty:
        return 0
    sys.stdout.flush()
    print(f"error: requirements violated: {', '.join(faulty)}; see the lines with FAIL", file=sys.stderr)
    return VIOLATED


def _without_check(spec: str, parts: Sequence[Part]) -> str:
    """Return a sentence about parts of kinds that have no check."""
    listed = ", ".join(f"{kind_of(registry)} {name}" for registry, name in parts)
    kinds = ", ".join(kind_of(registry) for registry in _CHECKS)
    return f"{spec}: there is no check for {listed}. What can be checked: {kinds}"


def _argument_table(spec: str, part: Part, pairs: Sequence[str]) -> config.Table:
    """Return `{name, ...arguments}` with the defaults.

    Raises:
        UsageError: an argument is unknown, of another type, or missing.
    """
    registry, name = part
    if registry is STORES:
        return _store_table(spec, name, pairs)
    key = recipe_table(registry, name)
    if any(pair.startswith("name=") for pair in pairs):
        raise UsageError(f"name is no argument; the part is named before its arguments: {_command(spec, name)}")
    table = config.override(_nested(key, {"name": name}), [f"{key}.{pair}" for pair in pairs])
    for inner_key in key.split("."):
        table = table[inner_key]
    missing = []
    for argument, default in signature.defaults(registry.get(name), registry.supplied).items():
        if default is signature.REQUIRED and argument not in table:
            missing.append(argument)
    if missing:
        examples = [*pairs, *(f"{argument}=..." for argument in missing)]
        raise UsageError(
            f"{registry.kind} {name!r} needs {' and '.join(missing)}, without a default: {_command(spec, name, *examples)}"
        )
    # A scheduled argument is checked with its first value, with which a run builds the part.
    return at_start(registry.get(name), config.complete(key, table))


def _store_table(spec: str, name: str, pairs: Sequence[str]) -> config.Table:
    """Return `{name, address}`.

    Raises:
        UsageError: there is no address, or another argument.
    """
    address = None
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key != "address":
            raise UsageError(f"store {name!r} has no argument {key!r}; its only one is address")
        address = value
    if not address:
        raise UsageError(
            f"store {name!r} needs the address of a collection that does not exist yet: "
            f"{_command(spec, name, f'address={name}:...')}"
        )
    return {"name": name, "address": address}


def _nested(key: str, table: config.Table) -> config.Table:
    for inner_key in reversed(key.split(".")):
        table = {inner_key: table}
    return table


def _command(spec: str, *words: str) -> str:
    return f"reptk plugin check {' '.join([shlex.quote(spec), *words])}"


def _check_part(spec: str, part: Part, table: config.Table, *, fixed: bool) -> bool:
    """Check one part and print the verdict. Returns whether it meets every requirement."""
    registry, name = part
    arguments = ", ".join(f"{key}={_shown(value)}" for key, value in table.items() if key != "name")
    print(in_one_line(f"{spec}: {kind_of(registry)} {name} ({arguments or 'no arguments'})"), flush=True)
    try:
        outcomes = _CHECKS[registry](table, fixed)
    except (UsageError, DataError, EnvironmentProblem):
        raise
    except Exception as error:  # the part's code may raise anything
        _print_text(f"FAIL  it cannot be built: {type(error).__name__}: {error}{place_of(error)}")
        return False
    violated = [outcome for outcome in outcomes if outcome.observed is not None]
    observations = {outcome.observed for outcome in outcomes}
    if len(violated) == len(outcomes) and len(observations) == 1:
        # E.g. it cannot be built or called at all.
        _print_text(f"FAIL  none of {len(outcomes)} requirements could be tried: {violated[0].observed}")
        return False
    for outcome in outcomes:
        _print_outcome(outcome)
    if violated:
        print(f"  {len(violated)} of {len(outcomes)} requirements violated")
        return False
    print(f"  all {len(outcomes)} requirements met")
    return True


def _shown(value: Any) -> Any:
    """Return the value of an argument without the password of an address."""
    if isinstance(value, str):
        return redacted(value)
    return value


def _print_outcome(outcome: Outcome) -> None:
    requirement, observed = outcome
    if observed is None:
        _print_text(f"ok    {requirement.statement}")
        return
    _print_text(f"FAIL  {requirement.statement}")
    _print_text(f"      observed: {observed}")
    _print_text(f"      so: {requirement.consequence}")


def _print_text(text: str) -> None:
    text = in_one_line(text.replace("\n", " "))
    print(textwrap.fill(text, LINE_WIDTH, initial_indent="  ", subsequent_indent=10 * " ", break_on_hyphens=False))


def _check_loss(table: config.Table, fixed: bool) -> list[Outcome]:
    if LOSSES.takes(table["name"], "num_classes"):
        return try_loss(partial(LOSSES.get(table["name"]), **_without_name(table)))
    return try_loss(config.build(LOSSES, table))


def _check_method(table: config.Table, fixed: bool) -> list[Outcome]:
    return try_method(METHODS.get(table["name"]), _without_name(table))


def _check_dataset(table: config.Table, fixed: bool) -> list[Outcome]:
    try:
        data = config.build(DATASETS, table)
    except OSError as cause:
        raise DataError(f"{table['name']}: {cause}") from cause
    return try_dataset(data)


def _check_views(table: config.Table, fixed: bool) -> list[Outcome]:
    views = config.build(VIEWS, table)
    sizes = views.sizes or (table.get("size"),)
    if sizes[0] is None:
        raise UsageError(
            f"views {table['name']!r} say no size: give them an argument size, or an attribute sizes, which is a tuple"
        )
    return try_views(views, size=sizes[0], random=not fixed)


def _check_evaluator(table: config.Table, fixed: bool) -> list[Outcome]:
    return try_evaluator(config.build(EVALUATORS, table))


def _check_store(table: config.Table, fixed: bool) -> list[Outcome]:
    return try_store(STORES.get(table["name"]), table["address"])


def _without_name(table: config.Table) -> Mapping[str, Any]:
    return {key: value for key, value in table.items() if key != "name"}


_CHECKS: Mapping[Registry, Callable[[config.Table, bool], list[Outcome]]] = {
    LOSSES: _check_loss,
    METHODS: _check_method,
    DATASETS: _check_dataset,
    VIEWS: _check_views,
    EVALUATORS: _check_evaluator,
    STORES: _check_store,
}
