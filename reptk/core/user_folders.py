"""Folders of the user's home folder in which reptk stores files."""

import os
from pathlib import Path

from reptk.core.files import expand_home


def cache_folder() -> Path:
    """Return the folder of what reptk can compute again: `$XDG_CACHE_HOME/reptk`, or `~/.cache/reptk`."""
    parent = os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache")
    return Path(parent) / "reptk"


def data_folder() -> Path | None:
    """Return the folder of what cannot be computed again: `$XDG_DATA_HOME/reptk`, or `~/.local/share/reptk`.

    None if there is no home folder.
    """
    parent = os.environ.get("XDG_DATA_HOME")
    if parent:
        return Path(parent) / "reptk"
    try:
        return Path.home() / ".local" / "share" / "reptk"
    except RuntimeError:
        return None
