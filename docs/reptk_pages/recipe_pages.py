"""The gallery of recipes: a table, and a page for each with the head of its file, its measured result and its text."""

import re
import tomllib
from importlib.resources import files
from typing import Any

from reptk_pages.markdown import code, code_block, escape, table, toctree

HEAD = """# Recipes

All recipes that come with reptk, as the files are. `python -m reptk.recipe --list` prints this table, and
`python -m reptk.recipe NAME --copy` copies a file to change it. *Measured* is the result that the file records, with exactly
its settings; the other recipes have not been trained to the end with this code. Which one to take:
[Choose a recipe](../../how_to/choose_a_recipe.md).
"""

COLUMNS = ("recipe", "data", "method", "loss", "positives", "backbone", "epochs", "measured")

KEYS = (
    ("data", "name"),
    ("method", "name"),
    ("loss", "name"),
    ("method", "positives"),
    ("encoder", "backbone"),
    ("train", "epochs"),
)
"""What the table shows of a recipe."""

SHARES = ("value", "untrained", "pixels")
"""Numbers of `[expect]` that are shares, which are printed as percent."""


def recipe_pages() -> dict[str, str]:
    """Return the pages by their paths."""
    texts = {}
    for path in files("reptk.recipes").iterdir():
        if path.name.endswith(".toml"):
            texts[path.name.removesuffix(".toml")] = path.read_text(encoding="utf-8")
    names = sorted(texts)
    rows = [_row(name, tomllib.loads(texts[name])) for name in names]
    pages = {"recipes/index.md": "\n".join([HEAD, table(COLUMNS, rows), toctree(names, hidden=True)])}
    for name in names:
        pages[f"recipes/{name}.md"] = _page(name, texts[name])
    return pages


def _row(name: str, recipe: dict[str, Any]) -> list[str]:
    cells = [f"[`{name}`]({name}.md)"]
    for section, key in KEYS:
        cells.append(escape(str(recipe.get(section, {}).get(key, ""))))
    measured = ""
    if "expect" in recipe:
        expect = recipe["expect"]
        measured = f"{expect['metric']} {100 * expect['value']:.1f} %"
    return [*cells, measured]


def _page(name: str, text: str) -> str:
    head, body = _split(text)
    parts = [f"# {name}\n", *_head_blocks(head)]
    expect = tomllib.loads(text).get("expect")
    if expect is not None:
        rows = [[code(key), _value(key, value)] for key, value in expect.items()]
        parts += ["## Measured\n", table(["", ""], rows), f"`reptk verify {name}` runs it and compares the result.\n"]
    parts += ["## The file\n", code_block(body, "toml")]
    return "\n".join(parts)


def _split(text: str) -> tuple[list[str], str]:
    """Return the lines of the comment at the head of a file, and what follows."""
    lines = text.splitlines()
    num_comments = 0
    while num_comments < len(lines) and lines[num_comments].startswith("#"):
        num_comments += 1
    head = [line.removeprefix("#").removeprefix(" ") for line in lines[:num_comments]]
    return head, "\n".join(lines[num_comments:])


def _head_blocks(lines: list[str]) -> list[str]:
    """Return the head as paragraphs, with its indented lines as blocks of code."""
    blocks = []
    for block in re.findall(r"(?:^  .+\n?)+|(?:^\S.*\n?)+", "\n".join(lines), re.MULTILINE):
        if block.startswith("  "):
            commands = "\n".join(line.strip() for line in block.splitlines())
            blocks.append(code_block(commands))
        else:
            blocks.append(f"{escape(block.strip())}\n")
    return blocks


def _value(key: str, value: Any) -> str:
    if key in SHARES:
        return f"{100 * value:.2f} %"
    return escape(str(value))
