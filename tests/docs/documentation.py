"""What the pages of the documentation hold: blocks of Python, commands, code within lines, links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / "docs"

LAUNCHERS = ("torchrun", "srun", "python")

PLACEHOLDERS = {"NAME", "RUN", "PATH", "FOLDER", "FILE", "ADDRESS", "VERB", "KIND"}
"""Words that stand for something else in a command within a line."""

TABLES = ("encoder", "optim", "train", "data", "views", "method", "loss", "eval", "trackers")

FILE_ENDINGS = {"csv", "index", "md", "parquet", "png", "py", "safetensors", "sbatch", "toml"}
"""What looks like a key and is the name of a file."""

_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
_CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_KEY = re.compile(rf"^((?:{'|'.join(TABLES)})(?:\.\w+)+)(?:=|$)")
_LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


class Command(NamedTuple):
    """A command of reptk: its verb and the words behind it."""

    verb: str
    words: list[str]


def pages() -> list[Path]:
    """Return the pages that are written by hand."""
    paths = []
    for path in sorted(FOLDER.rglob("*.md")):
        if path.relative_to(FOLDER).parts[0] not in ("_build", "generated"):
            paths.append(path)
    return paths


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def python_blocks(text: str) -> list[str]:
    return _PYTHON.findall(text)


def plugin_files(text: str) -> dict[str, str]:
    """Return the blocks of Python that are files, which begin with their names."""
    files = {}
    for block in python_blocks(text):
        match = re.match(r"# (\w+\.py)\n", block)
        if match is not None:
            files[match[1]] = block
    return files


def shell_lines(text: str) -> list[str]:
    """Return the lines of the console blocks, without the prompt."""
    lines = []
    for block in _CONSOLE.findall(text):
        for line in block.splitlines():
            if not line.startswith("$ "):
                raise ValueError(f"a line of a console block begins with '$ ': {line!r}")
            lines.append(line.removeprefix("$ "))
    return lines


def inline_commands(text: str) -> list[str]:
    """Return the commands within lines that can be typed as they are."""
    commands = []
    for piece in _INLINE.findall(text):
        is_command = piece.startswith(("reptk ", "python -m reptk"))
        words = set(re.split(r"[^\w]+", piece))
        if is_command and not words & PLACEHOLDERS and len(piece.split()) > 2:
            commands.append(piece)
    return commands


def command_of(line: str) -> Command | None:
    """Return the command of reptk in a line, behind a launcher such as torchrun; None if it is another program."""
    words = shlex.split(line)
    if words[0] == "reptk":
        return Command(words[1], words[2:])
    if words[0] not in LAUNCHERS or "-m" not in words:
        return None
    position = words.index("-m") + 1
    if words[position] == "reptk.recipe":
        return Command("recipe", words[position + 1 :])
    if words[position] == "reptk":
        return Command(words[position + 1], words[position + 2 :])
    return None


def keys_in(text: str) -> set[str]:
    """Return the dotted keys of recipes that a text names in backticks."""
    keys = set()
    for piece in _INLINE.findall(text):
        for word in piece.split():
            match = _KEY.match(word)
            if match is not None and match[1].rpartition(".")[2] not in FILE_ENDINGS:
                keys.add(match[1])
    return keys


def links(text: str) -> list[str]:
    """Return the targets of links that are no addresses."""
    return [target for target in _LINK.findall(text) if "://" not in target]
