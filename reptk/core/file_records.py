"""Manifests: JSON that says of files how long they are and which hashes they have, and that carries a hash of itself."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from reptk.core.errors import DataError
from reptk.core.files import parse_json, sha256_of
from reptk.core.foreign_files import MAX_JSON_BYTES, read_bytes, read_text

T = TypeVar("T")

NO_HASH = "0" * 64
"""Is in the place of a hash that a file holds of itself while it is computed."""

HASH_KEY = "manifest_sha256"


class ManifestFormat(NamedTuple):
    """What a manifest of a kind holds.

    name: value of the key `format`.
    version: the newest that can be read.
    required_types: of further keys.
    keys_without_hash: the keys of earlier versions, whose manifests carry no hash of themselves; empty if all carry one.
    """

    name: str
    version: int
    required_types: Mapping[str, type]
    keys_without_hash: frozenset[str] = frozenset()


def read_manifest(
    path: Path, manifest_format: ManifestFormat, *, subject: str, foreign: str, damaged: Callable[[str], str]
) -> dict[str, Any]:
    """Return a manifest that is intact and has all keys that its format requires.

    Args:
        path: the file.
        manifest_format: what it has to hold.
        subject: what the manifest is of, for the message about a newer version.
        foreign: the message if the manifest is that of something else.
        damaged: returns the message for a reason, which begins with the name of the file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, of something else, or of a newer reptk.
    """
    try:
        text = read_text(path)
        manifest = parse_json(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as cause:
        raise DataError(damaged(f"{path.name} cannot be read: {cause}")) from cause
    if not isinstance(manifest, dict) or manifest.get("format") != manifest_format.name:
        raise DataError(foreign)
    version = manifest.get("version")
    if not isinstance(version, int):
        raise DataError(damaged(f"{path.name} does not say of which version it is"))
    # Older versions can be read; a newer one may mean something else by the same keys.
    if version > manifest_format.version:
        raise DataError(f"{subject} was written by a newer reptk (version {version}); update reptk to read it")
    # Earlier versions wrote other keys and no hash; a damaged key is none of theirs.
    if not is_intact(text, manifest) and not manifest_format.keys_without_hash.issuperset(manifest):
        raise DataError(damaged(f"{path.name} has another hash than when it was written"))
    for key, required_type in manifest_format.required_types.items():
        if not isinstance(manifest.get(key), required_type):
            raise DataError(damaged(f"{path.name} is incomplete: it has no valid {key!r}"))
    return manifest


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
