"""Manifests: JSON that says of files how long they are and which hashes they have, and that carries a hash of itself."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from reptk.core.errors import DataError
from reptk.core.files import sha256_of
from reptk.core.foreign_files import MAX_JSON_BYTES, read_bytes

T = TypeVar("T")

NO_HASH = "0" * 64
"""Is in the place of a hash that a file holds of itself while it is computed."""

HASH_KEY = "manifest_sha256"


def manifest_text(record: dict[str, Any]) -> str:
    """Return a manifest as JSON, with its own hash added."""
    text = json.dumps({**record, HASH_KEY: NO_HASH}, indent=2) + "\n"
    return text.replace(_hash_entry(NO_HASH), _hash_entry(_sha256(text)))


def is_intact(text: str, manifest: dict[str, Any]) -> bool:
    """Return whether a manifest has the hash that it carries; False if it carries none.

    Args:
        text: the manifest's content.
        manifest: the same, parsed.
    """
    own_hash = manifest.get(HASH_KEY)
    if not isinstance(own_hash, str):
        return False
    return _sha256(text.replace(_hash_entry(own_hash), _hash_entry(NO_HASH))) == own_hash


def read_replaceable(manifest: Path, read: Callable[[], T]) -> T:
    """Return what `read` returns of a folder that another process may replace meanwhile; then it is read again.

    Otherwise files of the old folder would be compared with the manifest of the new one, and be taken for damaged.

    Args:
        manifest: the folder's manifest, which differs between the two.
        read: reads the folder. It raises DataError if the folder is damaged.
    """
    while True:
        before = _content(manifest)
        try:
            result = read()
        except DataError:
            if _content(manifest) == before:
                raise
        else:
            if _content(manifest) == before:
                return result


def _content(path: Path) -> bytes | None:
    try:
        return read_bytes(path, MAX_JSON_BYTES)
    except OSError:
        return None


def _hash_entry(digest: str) -> str:
    return f'"{HASH_KEY}": "{digest}"'


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


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
