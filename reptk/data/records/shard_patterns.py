"""Files of shards: those below a folder, or those that a pattern names.

A pattern has ranges and lists in braces as in the shell (`{000000..000009}`, `{train,val}`), or globs.
"""

import glob
import os
import re
from collections.abc import Callable
from pathlib import Path

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.core.name_lists import first_names

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
GLOB = re.compile(r"[*?\[]")

MAX_NAMES = 1_000_000
MAX_LISTED = 5


def is_pattern(path: Path) -> bool:
    """Return whether a path that does not exist is a pattern."""
    text = str(path)
    # A list in braces may be longer than a file name can be, of which Path.exists raises an error.
    return bool(GLOB.search(text) or BRACES.search(text)) and not os.path.exists(path)  # noqa: PTH110


def expand_pattern(pattern: Path) -> list[Path]:
    """Return the files that a pattern names, in its order, and those of a glob sorted; none twice.

    Raises:
        DataError: it names no files, or files that do not exist, or one of its alternatives matches none; all of these are
            counted.
    """
    paths: dict[Path, None] = {}
    missing = []
    without_match = []
    names = _expand_braces(str(pattern))
    for name in names:
        # First, since the name of a file, or of its folder, may itself hold brackets.
        if Path(name).is_file():
            paths[Path(name)] = None
        elif GLOB.search(name):
            matches = _matching_files(Path(name))
            paths.update(dict.fromkeys(matches))
            if not matches:
                without_match.append(name)
        else:
            missing.append(name)
    if without_match and len(names) > 1:
        count = f"{format_count(len(without_match), 'alternative')} of {pattern} (data.root)"
        raise DataError(
            f"{count} without a file: {first_names(without_match, MAX_LISTED)}; correct the pattern, or fetch the files"
        )
    if missing:
        count = f"{format_count(len(missing), 'file')} that {pattern} (data.root) names"
        raise DataError(
            f"{count} do not exist: {first_names(missing, MAX_LISTED)}; fetch them, or name those that are here"
        )
    if not paths:
        raise DataError(f"{pattern} (data.root) matches no file")
    return list(paths)


def find_files(base: Path, is_shard: Callable[[Path], bool]) -> list[Path]:
    """Return the shards that the user names.

    Args:
        base: a folder, whose shards are returned sorted by path and without hidden ones; or a single file, or a pattern, whose
            files may have any names.
        is_shard: whether a file of a folder is a shard by its name.

    Raises:
        DataError: files that a pattern names are missing.
    """
    if base.is_file():
        return [base]
    if is_pattern(base):
        return expand_pattern(base)
    files = []
    for path in base.rglob("*"):
        is_hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
        if is_shard(path) and not is_hidden and path.is_file():
            files.append(path)
    return sorted(files)


def common_folder(base: Path) -> Path:
    """Return the folder that holds the shards that the user names: of a pattern, the part without one."""
    if base.is_file():
        return base.parent
    while is_pattern(base):
        base = base.parent
    return base


def _matching_files(pattern: Path) -> list[Path]:
    """Return the files that a glob matches, sorted. The folders at its beginning that exist as they are written are no glob."""
    existing = common_folder(pattern.parent)
    rest = pattern.relative_to(existing)
    matches = glob.glob(os.path.join(glob.escape(str(existing)), rest), recursive=True)  # noqa: PTH207, PTH118
    return sorted(path for path in map(Path, matches) if path.is_file())


def _expand_braces(text: str) -> list[str]:
    """Return the names that a pattern with braces stands for; the innermost braces are expanded first."""
    names = [text]
    while True:
        expanded = []
        for name in names:
            expanded += _expand_first(name)
            if len(expanded) > MAX_NAMES:
                raise DataError(f"{text} (data.root) names more than {MAX_NAMES:,} files")
        if expanded == names:
            return names
        names = expanded


def _expand_first(name: str) -> list[str]:
    match = BRACES.search(name)
    if match is None:
        return [name]
    before, after = name[: match.start()], name[match.end() :]
    limits = RANGE.fullmatch(match[1])
    if limits is None:
        return [before + choice + after for choice in match[1].split(",")]
    first, last = int(limits[1]), int(limits[2])
    if abs(last - first) > MAX_NAMES:
        raise DataError(f"{name} (data.root) names more than {MAX_NAMES:,} files")
    # As in the shell: leading zeros of either end are kept, and a range may descend.
    width = 0
    if limits[1].startswith("0") or limits[2].startswith("0"):
        width = max(len(limits[1]), len(limits[2]))
    step = 1
    if first > last:
        step = -1
    return [f"{before}{number:0{width}}{after}" for number in range(first, last + step, step)]
