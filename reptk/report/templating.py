"""The Jinja environment of all HTML pages.

Everything that a template prints is made printable and escaped, so that no name of a file, class or run can become
markup. A variable that the Python code does not provide is an error.
"""

import functools
import math
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reptk.report.formatting import printable

PACKAGE = "reptk.report"
NO_BREAK_SPACE = "\u00a0"


@functools.cache
def environment() -> Environment:
    """Return the environment in which all templates are rendered."""
    jinja = Environment(
        # From the package, so that templates are found in a wheel too.
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        # A misspelled name would otherwise print nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    # Jinja's `tojson` escapes what could end a script element or an attribute in single quotes.
    jinja.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    jinja.filters["lines"] = _lines
    jinja.filters["unbroken"] = _unbroken
    jinja.filters["breakable"] = _breakable
    return jinja


def render(template: str, **variables: Any) -> str:
    """Return the page that a template of `reptk/report/templates` makes of the variables."""
    return environment().get_template(template).render(variables)


def read_asset(name: str) -> Markup:
    """Return a style sheet or script of this package, which goes into the page as it is."""
    return Markup((files(PACKAGE) / name).read_text(encoding="utf-8"))


def for_json(value: Any) -> Any:
    """Return `value` with every text printable, and with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return value


def _finalize(value: Any) -> Any:
    """Make text printable before Jinja escapes it; markup is escaped already."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def _unbroken(text: str) -> str:
    """Return a sentence in which no line ends between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", f"{NO_BREAK_SPACE}%", text)


def _breakable(text: str) -> Markup:
    """Return a path or another name that may be broken after its separators, rather than within its words."""
    parts = re.split(r"(?<=[/\\_.,=-])", text)
    return Markup("<wbr>").join(escape(printable(part)) for part in parts)


def _lines(text: str) -> Markup:
    """Return text with its line breaks, which `printable` would replace."""
    lines = [escape(printable(line)) for line in text.splitlines()]
    return Markup("\n").join(lines)
