"""What installed distributions offer in entry points, read once as long as nothing is installed or removed."""

import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points


def installed_entry_points(group: str) -> EntryPoints:
    """Return the entry points of a group, as `importlib.metadata` does, which opens files of every distribution."""
    return _entry_points_of(_state_of_path()).select(group=group)


def _state_of_path() -> tuple[tuple[str, int], ...]:
    """Return the folders of `sys.path` and their times of change: an installation adds a folder to one of them."""
    state = []
    for folder in sys.path:
        try:
            changed_ns = os.stat(folder or ".").st_mtime_ns  # noqa: PTH116 - of strings, which may be empty
        except OSError:
            changed_ns = 0
        state.append((folder, changed_ns))
    return tuple(state)


@lru_cache(maxsize=1)
def _entry_points_of(state: tuple[tuple[str, int], ...]) -> EntryPoints:
    return entry_points()
