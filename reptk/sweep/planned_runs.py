"""OUT/planned.json: which runs a sweep was started with, so that those it had no time for are not taken for new ones."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from reptk.core.files import json_text, write_text
from reptk.core.foreign_files import read_json
from reptk.sweep.grid import GridCell
from reptk.sweep.sweep_folder import run_identity

FILE = "planned.json"


def read_planned(out: Path) -> set[str] | None:
    """Return the digests of the runs that commands in this folder were started with; None if it is not known."""
    try:
        runs = read_json(out / FILE)["runs"]
        return {str(digest) for digest in runs}
    except (OSError, ValueError, KeyError, TypeError):
        # The file decides on words of a message alone.
        return None


def record_planned(out: Path, cells: Sequence[GridCell]) -> None:
    """Add runs to those that were planned.

    Args:
        out: the folder of the sweep, which exists.
        cells: of the command that is started.
    """
    digests = read_planned(out) or set()
    digests |= {digest_of(cell) for cell in cells}
    write_text(out / FILE, json_text({"runs": sorted(digests)}, indent=1) + "\n")


def digest_of(cell: GridCell) -> str:
    """Return what is the same for runs with the same results, however the command has spelled their values."""
    identity = run_identity(cell.recipe)
    return hashlib.sha256(repr(sorted(identity.items())).encode("utf-8", "surrogateescape")).hexdigest()[:16]
