"""`reptk plugin list`: every part by kind, where it comes from and what can be set; broken ones with the reason."""

import shutil
import textwrap
from collections.abc import Sequence
from fnmatch import fnmatchcase

from reptk.config.part_catalog import KINDS, BrokenPlugin, ListedPart, listed_parts, load_known_plugins
from reptk.config.registry import REGISTRIES, nearest_hint
from reptk.core.counts import format_count
from reptk.core.errors import UsageError
from reptk.core.printable_names import in_one_line

HEADINGS = {
    "loss": "losses",
    "method": "methods",
    "data set": "data sets",
    "views": "views",
    "evaluator": "evaluators",
    "tracker": "trackers",
    "store": "stores",
}
"""Plurals of what registries call their parts."""

MAX_WIDTH = 120
"""Characters of a line, in a wider terminal as well."""


def list_parts(pattern: str | None, kind: str | None, plugins: Sequence[str]) -> int:
    """Print the parts. Returns the exit code, 0: what is broken is part of the list.

    Args:
        pattern: names to print, with `*` and `?`, or a part of a name; None for all.
        kind: a key of `KINDS`; None for all.
        plugins: files and modules to import as well.

    Raises:
        UsageError: no part has such a name.
    """
    broken_plugins = load_known_plugins(plugins)
    registries = list(REGISTRIES)
    if kind is not None:
        registries = [KINDS[kind]]
    known = listed_parts(registries)
    parts = [part for part in known if pattern is None or _matches(part.name, pattern)]
    if not parts and pattern is not None:
        names = sorted({part.name for part in known})
        raise UsageError(f"no {kind or 'part'} has a name like {pattern!r}.{nearest_hint(pattern, names)}")
    for registry in registries:
        _print_kind(registry.kind, [part for part in parts if part.kind == registry.kind])
    _print_broken_plugins(broken_plugins)
    num_broken = len([part for part in parts if part.problem is not None]) + len(broken_plugins)
    counts = format_count(len(parts), "part")
    if num_broken:
        counts += f", {num_broken} broken"
    print(counts)
    return 0


def _matches(name: str, pattern: str) -> bool:
    if not any(letter in pattern for letter in "*?["):
        pattern = f"*{pattern}*"
    return fnmatchcase(name, pattern.lower())


def _print_kind(kind: str, parts: Sequence[ListedPart]) -> None:
    if not parts:
        return
    print(HEADINGS.get(kind, kind))
    for part in parts:
        print(f"  {part.name}  ({in_one_line(part.origin)})")
        if part.problem is not None:
            _print_indented(f"BROKEN: {part.problem}")
            continue
        if part.summary:
            _print_indented(part.summary)
        if part.arguments:
            _print_indented(f"arguments: {', '.join(part.arguments)}")
    print()


def _print_broken_plugins(broken: Sequence[BrokenPlugin]) -> None:
    if not broken:
        return
    print("plugins that cannot be imported")
    for plugin in broken:
        print(f"  {in_one_line(plugin.spec)}")
        _print_indented(f"BROKEN: {plugin.problem}")
    print()


def _print_indented(text: str) -> None:
    width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)
    # A message of somebody else's code may have several lines.
    text = in_one_line(" ".join(text.split()))
    print(textwrap.fill(text, width, initial_indent=6 * " ", subsequent_indent=8 * " ", break_on_hyphens=False))
