"""manifest.json of a folder of embeddings: the parts, with their lengths and hashes, and how all of them were computed."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reptk.core import file_records
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.file_records import ManifestFormat, is_intact, manifest_text
from reptk.core.files import parse_json, write_text
from reptk.core.foreign_files import read_text
from reptk.embeddings.files.output_path import check_new_folder

FORMAT = "reptk embedding parts"
VERSION = 1

MANIFEST_NAME = "manifest.json"
LOCK_NAME = ".lock"
REPLACED_NAME = ".replaced.json"
"""Lists the parts that a run with --force replaces, until it is complete; another run goes on with it."""

PART_NAME = re.compile(r"part-(\d{6,})\.safetensors")

_MANIFEST_FORMAT = ManifestFormat(
    FORMAT, VERSION, {"rows": int, "width": int, "values": str, "classes": list, "about": dict, "parts": list}
)
_PART_TYPES = {"name": str, "rows": int, "bytes": int, "sha256": str}


def part_name(number: int) -> str:
    """Return the name of the file of a part."""
    return f"part-{number:06}.safetensors"


def part_paths(folder: Path) -> list[Path]:
    """Return the files of parts in a folder, by number; they need not be complete."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if PART_NAME.fullmatch(path.name)]
    return sorted(paths, key=part_number)


def part_number(path: Path) -> int:
    """Return the number in the name of a part."""
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not the name of a part")
    return int(match[1])


def is_parts_folder(path: str | Path) -> bool:
    """Return whether a folder holds embeddings in parts, complete or not."""
    path = Path(path)
    if not path.is_dir():
        return False
    if (path / MANIFEST_NAME).is_file():
        try:
            content = parse_json(read_text(path / MANIFEST_NAME))
        except (OSError, ValueError):
            content = None
        if isinstance(content, dict):
            return content.get("format") == FORMAT
    return bool(part_paths(path))


def holds_foreign_files(folder: Path) -> bool:
    """Return whether a folder holds anything besides parts, their manifest and hidden files."""
    for path in folder.iterdir():
        is_ours = path.name == MANIFEST_NAME or PART_NAME.fullmatch(path.name) is not None
        if not is_ours and not path.name.startswith("."):
            return True
    return (folder / MANIFEST_NAME).is_file() and not is_parts_folder(folder)


def check_output_folder(folder: Path) -> None:
    """Raise what writing parts into a folder would raise, before any work is done. It need not exist.

    Raises:
        UsageError: it holds other files, or is none.
        EnvironmentProblem: it cannot be written.
    """
    if not folder.exists():
        check_new_folder(folder)
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder, or a file that ends in .safetensors or .parquet")
    if holds_foreign_files(folder):
        raise UsageError(f"{folder} exists and holds other files than embeddings in parts. Choose another --out")
    if not os.access(folder, os.W_OK):
        raise EnvironmentProblem(f"cannot write {folder}: no right to write in it. Choose another --out")


def write_manifest(folder: Path, record: dict[str, Any], parts: Iterable[dict[str, Any]]) -> None:
    """Write the manifest, after all of its parts are there.

    Args:
        folder: of the parts.
        record: what holds for all parts: rows, width, values, classes, about.
        parts: name, rows, bytes and sha256 of each; of a shard also what is known of it.
    """
    content = {"format": FORMAT, "version": VERSION, **record, "parts": list(parts)}
    write_text(folder / MANIFEST_NAME, manifest_text(content))


def write_replaced(folder: Path, names: Sequence[str]) -> None:
    """List the parts that are no longer used once the manifest lists others. Until then readers find them."""
    write_text(folder / REPLACED_NAME, manifest_text({"parts": list(names)}))


def read_replaced(folder: Path) -> list[str]:
    """Return the names that `write_replaced` has listed; none if it has not, or if the list is damaged."""
    try:
        text = read_text(folder / REPLACED_NAME)
        record = parse_json(text)
    except (OSError, ValueError):
        return []
    if not isinstance(record, dict) or not is_intact(text, record):
        return []
    return [name for name in record["parts"] if PART_NAME.fullmatch(name)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of parts.

    Raises:
        DataError: there is none, or it is damaged, of something else, or of a newer reptk.
    """
    try:
        manifest = file_records.read_manifest(
            folder / MANIFEST_NAME,
            _MANIFEST_FORMAT,
            subject=str(folder),
            foreign=f"{folder} holds no embeddings in parts: its {MANIFEST_NAME} is of something else",
            damaged=partial(broken, folder),
        )
    except FileNotFoundError as cause:
        raise DataError(_without_manifest(folder)) from cause
    if not all(map(_is_part_record, manifest["parts"])):
        raise DataError(broken(folder, f"{MANIFEST_NAME} is incomplete: it has a part without name, rows or hash"))
    return manifest


def broken(folder: Path, reason: str) -> str:
    """Return the message for a folder of which something is damaged or missing."""
    return (
        f"the embeddings in {folder} are not complete: {reason}. Run the same reptk embed ... --out {folder} again: it "
        "computes what is missing or damaged, and nothing else"
    )


def _without_manifest(folder: Path) -> str:
    parts = part_paths(folder)
    if parts:
        return broken(folder, f"it has no {MANIFEST_NAME}, since embedding was interrupted after {len(parts):,} parts")
    return f"no embeddings in {folder}. Embed some: reptk embed RUN --data FOLDER --out {folder}"


def _is_part_record(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    if not all(isinstance(record.get(name), required) for name, required in _PART_TYPES.items()):
        return False
    # A name that leads out of the folder is none of ours.
    return PART_NAME.fullmatch(record["name"]) is not None
