"""How numbers, intervals and classes are written on the page."""

import math
from collections.abc import Sequence
from typing import Any

from reptk.report.html import Html, element, readable

DASH = "\u2013"
MINUS = "\u2212"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage, without its sign; a dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.{digits}f}".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def interval(bounds: Sequence[float] | None) -> str:
    """The 95 % interval of a share, in percent."""
    return "" if bounds is None else f"{percent(bounds[0])} {DASH} {percent(bounds[1])}"


def number(value: Any) -> str:
    """Any number, short."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return DASH
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 100):
        return f"{int(value):,}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS) if abs(value) < 1000 else f"{value:,.0f}".replace("-", MINUS)


def class_name(classes: Sequence[str], label: int) -> str:
    """A class by its label; "no label" for -1."""
    if label < 0:
        return "no label"
    return readable(classes[label]) or f"class {label}" if label < len(classes) else f"class {label}"


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def mark(kind: str) -> Html:
    """A sign that stands beside a colour: "right", "wrong", "more", "less" or "same"."""
    paths = {
        "right": "M2.5 6.5 5 9l4.5-6",
        "wrong": "M3 3l6 6M9 3l-6 6",
        "more": "M6 10V2.5M2.8 5.5 6 2.3l3.2 3.2",
        "less": "M6 2v7.5M2.8 6.5 6 9.7l3.2-3.2",
        "same": "M2 4.6c1.4-1.2 2.6-1.2 4 0s2.6 1.2 4 0M2 8c1.4-1.2 2.6-1.2 4 0s2.6 1.2 4 0",
    }
    line = element("path", d=paths[kind])
    return element(
        "svg", line, class_=f"mark mark-{kind}", viewBox="0 0 12 12", width="12", height="12", aria_hidden="true"
    )


def section(name: str, title: str, *content: Any, note: Any = None) -> Html:
    """A part of the page with its heading."""
    head = element("h2", title, id=f"{name}-title")
    about = element("p", note, class_="note") if note else None
    return element("section", head, about, *content, id=name, aria_labelledby=f"{name}-title")


def scrolled(*content: Any, label: str, class_: str = "") -> Html:
    """What may be wider or longer than the page, in a box that scrolls by keys too."""
    return element("div", *content, class_=f"scrolled {class_}".strip(), tabindex="0", role="region", aria_label=label)
