"""How numbers, intervals, classes and foreign text are written on a page."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

DASH = "\u2013"
# As wide as a plus sign, so that columns of differences line up.
MINUS = "\u2212"
REPLACEMENT = "\ufffd"
DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
"""Characters that change the writing direction of the text around them."""


def format_percent(value: float | None, digits: int = 1) -> str:
    """Return a share as a percentage without the percent sign; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.{digits}f}".replace("-", MINUS)


def format_points(value: float) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def format_interval(bounds: Sequence[float] | None) -> str:
    """Return the interval of a share in percent; an empty string for None."""
    if bounds is None:
        return ""
    low, high = bounds
    return f"{format_percent(low)} {DASH} {format_percent(high)}"


def format_number(value: Any) -> str:
    """Return a number with about three digits; anything that is not a number as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return DASH
    # Counts may be stored as floats.
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) >= 100)
    if is_whole:
        text = f"{int(value):,}"
    elif abs(value) < 1000:
        text = f"{value:.3g}"
    else:
        text = f"{value:,.0f}"
    return text.replace("-", MINUS)


def format_share(value: float | None) -> str:
    """Return a metric in percent if it can be a share; a number outside of 0..1 as it is."""
    if value is None or not math.isfinite(value) or 0 <= value <= 1:
        return format_percent(value)
    return format_number(value)


def is_finite_number(value: Any) -> bool:
    """Return whether a value that was read from a file is a number, and not NaN or infinite."""
    # A bool is an int in Python.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_position(value: float) -> str:
    """Return where a share lies on a scale from 0 to 1, as a CSS percentage."""
    return f"{100 * min(max(value, 0), 1):.2f}%"


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the name of a class; "no label" for -1, and the label itself for a class without a name."""
    if label < 0:
        return "no label"
    name = ""
    if label < len(classes):
        name = printable(classes[label])
    return name or f"class {label}"


def printable(text: str) -> str:
    """Return `text` with everything replaced that a page cannot show.

    Control characters become their pictures (a line break becomes \u240a). Lone surrogates, which come from file names
    that are not UTF-8, and marks of the writing direction become replacement characters.
    """
    if text.isascii() and text.isprintable():
        return text
    # A page is written as UTF-8, which has no surrogates.
    encodable = text.encode("utf-8", "replace").decode()
    return "".join(_printable_character(character) for character in encodable)


def _printable_character(character: str) -> str:
    if character in DIRECTION_MARKS:
        return REPLACEMENT
    if unicodedata.category(character) != "Cc":
        return character
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    return REPLACEMENT  # the C1 controls have no pictures
