"""The folder in which reptk stores what it can compute again."""

import os
from pathlib import Path

from reptk.core.files import expand_home


def default_folder() -> Path:
    """Return the folder of caches: `$XDG_CACHE_HOME/reptk`, or `~/.cache/reptk`."""
    home = os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache")
    return Path(home) / "reptk"
