"""Values that nobody expects in a file: numbers, texts and paths, alone or in the place of one value of a nested table."""

import random
from collections.abc import Iterator
from typing import Any

SPECIAL_FILES = (
    "pipe.png",
    "/dev/zero",
    "/dev/random",
    "/dev/stdin",
    "/proc/kmsg",
    "loop",
    "dangling",
    "/",
    "endless.png",
)
"""Paths that lead to no file, among them those that never end."""

STRANGE_NUMBERS = (0, -1, 1, 2**31, 2**62, 2**63 - 1, -(2**63), 10**15, 10**400, 0.5, -0.0, 1e308, 1e-320)
STRANGE_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "\x1b[31m",
        "\u202egpj.exe",
        "\udcff",
        "x" * 100_000,
        "a/" * 3000,
        "9" * 5000,
        "NaN",
        "null",
    ),
    *(
        "<script>alert(1)</script>",
        '"></style><script>',
        "javascript:alert(1)",
        "{{ 7 * 7 }}",
        "%s%n",
        "[bold]",
        "=1+1",
    ),
    *(
        "../../../etc/passwd",
        "/etc/passwd",
        "~root",
        "http://localhost:1/x",
        "hf-hub:x/y",
        "reptk.plugins./../../evil.py",
    ),
    *SPECIAL_FILES,
)


def strange_value(draw: random.Random) -> Any:
    """Return a number, a text, or a nested value."""
    nested = (
        [],
        {},
        [[[]]],
        {"": {}},
        [None],
        None,
        True,
        float("nan"),
        float("inf"),
        [1, "a"],
        {"name": []},
        {"a": 1},
    )
    kind = draw.choice(["number", "text", "nested", "deep"])
    if kind == "number":
        return draw.choice(STRANGE_NUMBERS)
    if kind == "text":
        return draw.choice(STRANGE_TEXTS)
    if kind == "nested":
        return draw.choice(nested)
    deep: Any = 1
    for _ in range(draw.choice([10, 300])):
        deep = draw.choice([[deep], {"a": deep}])
    return deep


def with_strange_value(draw: random.Random, table: Any) -> Any:
    """Return nested tables and lists in which one value is replaced, removed or added."""
    places = list(places_of(table))
    if not places or draw.random() < 0.05:
        return strange_value(draw)
    container, key = draw.choice(places)
    kind = draw.choice(["replace", "replace", "replace", "remove", "add"])
    if kind == "remove":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        container[draw.choice([str(draw.choice(STRANGE_TEXTS)), "plugins", "name", "download"])] = strange_value(draw)
    else:
        container[key] = strange_value(draw)
    return table


def places_of(table: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys."""
    if isinstance(table, dict):
        keys = list(table)
    elif isinstance(table, list):
        keys = list(range(len(table)))[:50]
    else:
        return
    for key in keys:
        yield table, key
        yield from places_of(table[key])
