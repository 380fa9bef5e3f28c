"""The docstrings of reptk, which are Google's style with code in single backticks and indented formulas, for Sphinx."""

import inspect
import re
from collections.abc import Callable
from typing import Any

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Example|Examples):$")
ARGUMENT = re.compile(r"^ {4}(\w+): (.*)$")
CODE = re.compile(r"(`[^`]*`)")


def description_of(factory: Callable[..., Any]) -> str:
    """Return a docstring before its sections, as Markdown, in which indented formulas are code already."""
    lines = []
    for line in _own_lines(factory):
        if SECTION.match(line):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def argument_descriptions(factory: Callable[..., Any]) -> dict[str, str]:
    """Return what the section `Args:` says of each argument, in one line."""
    descriptions: dict[str, str] = {}
    section = name = ""
    for line in _own_lines(factory):
        heading = SECTION.match(line)
        if heading is not None:
            section = heading[1]
            continue
        if section != "Args":
            continue
        argument = ARGUMENT.match(line)
        if argument is not None:
            name = argument[1]
            descriptions[name] = argument[2].strip()
        elif name and line.strip():
            descriptions[name] += f" {line.strip()}"
    return descriptions


def as_restructured_text(lines: list[str]) -> list[str]:
    """Return the lines of a docstring in reStructuredText; `Args:` and the like are left to napoleon."""
    converted: list[str] = []
    is_formula = is_in_section = False
    for number, line in enumerate(lines):
        is_indented = line.startswith("    ")
        follows_blank = number > 0 and not lines[number - 1].strip()
        if line.strip() and not is_indented:
            is_formula = False
            is_in_section = SECTION.match(line) is not None
        if is_indented and follows_blank and not is_in_section and not is_formula:
            converted += ["::", ""]
            is_formula = True
        if is_formula or line.strip().startswith(">>>"):
            converted.append(line)
        else:
            converted.append(_escaped(line))
    return converted


def _own_lines(factory: Callable[..., Any]) -> list[str]:
    """Return the lines of a docstring, not of that of a base class, which says nothing of this part."""
    return inspect.cleandoc(factory.__doc__ or "").splitlines()


def _escaped(line: str) -> str:
    """Return a line in which characters have no meaning to reStructuredText, but for code in backticks."""
    pieces = []
    for piece in CODE.split(line):
        if piece.startswith("`"):
            # Code that ends in a space would not be code.
            pieces.append(f"``{piece.strip('`').strip()}``")
        else:
            piece = re.sub(r"([\\*|])", r"\\\1", piece)
            pieces.append(re.sub(r"_(?!\w)", r"\\_", piece))
    return "".join(pieces)
