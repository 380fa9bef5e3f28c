"""Pieces of Markdown."""

import re
from collections.abc import Iterable, Sequence

CODE = re.compile(r"(`[^`]*`)")


def escape(text: str) -> str:
    """Return text in which only code in backticks has a meaning to Markdown."""
    pieces = []
    for piece in CODE.split(text):
        if not piece.startswith("`"):
            piece = re.sub(r"([\\*<\[\]])", r"\\\1", piece)
        pieces.append(piece)
    return "".join(pieces)


def code(text: str) -> str:
    """Return text as code within a line."""
    return f"`{text}`"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. Cells are Markdown, of one line each."""
    lines = [_row(heading), _row(["---"] * len(heading))]
    lines += [_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def code_block(text: str, language: str = "text") -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def toctree(pages: Iterable[str], *, depth: int = 1, hidden: bool = False) -> str:
    """Return the directive that lists pages."""
    lines = ["```{toctree}", f":maxdepth: {depth}"]
    if hidden:
        lines.append(":hidden:")
    return "\n".join([*lines, "", *pages, "```", ""])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
