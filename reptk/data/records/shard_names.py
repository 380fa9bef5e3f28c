"""What the names of shards say: their split, their number, and how ids of images call them."""

import re
from collections.abc import Iterable
from pathlib import Path

from reptk.core.counts import verb_form
from reptk.data.split_names import split_role

SHARD_NUMBER = re.compile(r"(?:^|[-_.])(?P<number>\d+)(?:-of-(?P<count>\d+))?(?:-[0-9a-f]{6,})?$")
"""What follows the split in the name of a shard: -00000-of-00014, with or without a hash, or _0001."""


def file_id(path: Path, base: Path | None) -> str:
    """Return the path of a shard below the folder `base`, without its ending; its name alone if it is not below."""
    if base is None or path == base or not path.is_relative_to(base):
        return path.stem
    return str(path.relative_to(base).with_suffix(""))


def split_name(path: Path, base: Path | None) -> str:
    """Return the split that a shard belongs to, as it is written in its name or in that of its folder; empty for none.

    Args:
        path: the shard.
        base: the folder that the user names, whose own name says nothing.
    """
    stem = SHARD_NUMBER.sub("", path.stem)
    if split_role(stem) is not None:
        return stem
    if path != base and path.parent != base and split_role(path.parent.name) is not None:
        return path.parent.name
    return ""


def missing_shards(split_of: Iterable[tuple[Path, str]]) -> list[str]:
    """Return a note for each split of whose shards, which are numbered `-00000-of-00014`, some are missing."""
    present: dict[tuple[str, int], set[int]] = {}
    for path, split in split_of:
        match = SHARD_NUMBER.search(path.stem)
        if match and match["count"]:
            present.setdefault((split, int(match["count"])), set()).add(int(match["number"]))
    notes = []
    for (split, count), numbers in present.items():
        if len(numbers) < count:
            are = verb_form(len(numbers), "is", "are")
            notes.append(f"{len(numbers):,} of {count:,} files of {split or 'the data set'} {are} here")
    return notes
