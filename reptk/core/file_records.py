"""What manifests say of files, their lengths and hashes, and how files are compared with that."""

from pathlib import Path
from typing import Any

from reptk.core.files import sha256_of


def file_record(path: Path) -> dict[str, Any]:
    """Return the length and the hash of a file, as manifests hold them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def find_damage(path: Path, record: Any, *, max_hashed_bytes: int | None = None) -> str | None:
    """Return what is wrong with a file, as the rest of a sentence that begins with its name; None if nothing is.

    Args:
        path: the file. Its name is the caller's, never one that a manifest holds, which may lead out of its folder.
        record: what the manifest says, see `file_record`; anything else if the manifest is damaged itself.
        max_hashed_bytes: of larger files only the length is compared; None for no limit.
    """
    if not path.is_file():
        return "is missing"
    if not isinstance(record, dict):
        return "is not listed in manifest.json"
    num_bytes = path.stat().st_size
    if num_bytes != record.get("bytes"):
        return "has another length than manifest.json says"
    if max_hashed_bytes is not None and num_bytes > max_hashed_bytes:
        return None
    if sha256_of(path) != record.get("sha256"):
        return "has another hash than manifest.json says"
    return None
