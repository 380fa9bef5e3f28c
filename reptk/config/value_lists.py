"""Several values of one key, as `reptk sweep` takes them: `loss.temperature=0.05,0.1`, `seed=0..4`, `eval.knn.k=[1,5],[20]`."""

import re
import shlex
from collections.abc import Sequence

from reptk.core.errors import UsageError

MAX_RANGE = 10_000
"""Integers in a range such as 0..9."""

_RANGE = re.compile(r"([+-]?\d{1,18})\.\.([+-]?\d{1,18})", re.ASCII)

_BRACKETS = {"[": "]", "{": "}"}


def split_values(key: str, text: str) -> list[str]:
    """Return the values of a key, each as it would be typed alone.

    Commas outside of brackets and quotes separate values, and `a..b` stands for the integers from a to b, both included.

    Args:
        key: for messages.
        text: what follows the equals sign.

    Raises:
        UsageError: an empty value between commas, or a range without an integer or with too many.
    """
    parts = _split_at_commas(text)
    if len(parts) > 1 and not all(parts):
        raise UsageError(
            f"{key}={text}: a value is empty. Commas separate values, e.g. seed=0,1; a text that holds commas needs quotes"
        )
    values = []
    for part in parts:
        values += _range_values(key, part)
    return values


def has_several_values(text: str) -> bool:
    """Return whether `split_values` would return several values, or refuse the text."""
    try:
        return len(split_values("", text)) > 1
    except UsageError:
        return True


def several_values_hint(name: str, overrides: Sequence[str], refused_keys: Sequence[str]) -> str:
    """Return how to run several values of a key that a single run has refused; empty if none of them has several.

    Args:
        name: of the recipe.
        overrides: `key=value` pairs of the command.
        refused_keys: dotted keys that did not validate.
    """
    has_several = False
    for pair in overrides:
        key, _, text = pair.partition("=")
        if key in refused_keys and has_several_values(text):
            has_several = True
    if not has_several:
        return ""
    command = shlex.join(["reptk", "sweep", name, *overrides])
    return f"A run has one value of each key; to train one run for each value: {command}"


def _split_at_commas(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes. A bracket or quote that is not closed reaches to the end."""
    parts = []
    begin = 0
    closing: list[str] = []
    quote = ""
    for position, letter in enumerate(text):
        before = text[begin:position].strip()
        if quote:
            if letter == quote:
                quote = ""
        elif letter in "\"'" and (closing or not before):
            # An apostrophe within a word opens no quotes.
            quote = letter
        elif letter in _BRACKETS:
            closing.append(_BRACKETS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            parts.append(before)
            begin = position + 1
    rest = text[begin:]
    if parts:
        rest = rest.strip()
    return [*parts, rest]


def _range_values(key: str, text: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UsageError(f"{key}={text}: the first integer of a range is the smaller one, e.g. {last}..{first}")
    if last - first >= MAX_RANGE:
        raise UsageError(f"{key}={text} has {last - first + 1:,} values; a range has at most {MAX_RANGE:,}")
    return [str(number) for number in range(first, last + 1)]
