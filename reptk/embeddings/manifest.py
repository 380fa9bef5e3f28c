"""manifest.json of an index folder: what the index is, and the length and hash of every file in it."""

import hashlib
from pathlib import Path
from typing import Any

from reptk.core.errors import DataError
from reptk.core.files import sha256_of
from reptk.core.foreign_files import read_bytes, read_json
from reptk.embeddings.index_signature import is_signed, sign

FORMAT = "reptk index"
VERSION = 1

EMBEDDINGS_NAME = "embeddings.safetensors"
FAISS_NAME = "index.faiss"
MANIFEST_NAME = "manifest.json"
FILE_NAMES = frozenset({EMBEDDINGS_NAME, FAISS_NAME, MANIFEST_NAME})

MAX_HASHED_BYTES = 1 << 30
"""Embeddings up to this size are checked against their hash whenever an index is opened, larger ones by their length."""

_REQUIRED_TYPES = {"kind": str, "count": int, "width": int, "files": dict, "recall": dict}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index folder.

    Raises:
        DataError: there is none, or it is damaged, of another program, or of a newer reptk.
    """
    try:
        manifest = read_json(folder / MANIFEST_NAME)
    except FileNotFoundError as cause:
        raise DataError(
            f"{folder} is no index: it has no {MANIFEST_NAME}. Make one: reptk index EMBEDDINGS --out ..."
        ) from cause
    except (OSError, ValueError) as cause:
        raise DataError(damage_message(folder, f"{MANIFEST_NAME} cannot be read: {cause}")) from cause
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{folder} is no index of reptk: its {MANIFEST_NAME} is of something else")
    version = manifest.get("version")
    # Older versions can be read; a newer one may mean something else by the same keys.
    if not isinstance(version, int) or version > VERSION:
        raise DataError(f"{folder} was made by a newer reptk (version {version}); update reptk to read it")
    if not _is_complete(manifest):
        raise DataError(damage_message(folder, f"{MANIFEST_NAME} is incomplete"))
    return manifest


def file_record(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file: its length and its hash, and that of FAISS's index is signed."""
    record = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    signature = sign(record["sha256"]) if path.name == FAISS_NAME else None
    if signature is not None:
        record["signature"] = signature
    return record


def verify_embeddings(folder: Path, manifest: dict[str, Any], *, any_size: bool) -> None:
    """Raise DataError unless the embeddings are those that the manifest describes.

    Args:
        folder: the index.
        manifest: its manifest.
        any_size: whether to compare hashes of embeddings larger than `MAX_HASHED_BYTES`, too.
    """
    record = _verified_record(folder, manifest, EMBEDDINGS_NAME)
    # Hashing reads the whole file, which may take longer than the search itself.
    if not any_size and record["bytes"] > MAX_HASHED_BYTES:
        return
    if sha256_of(folder / EMBEDDINGS_NAME) != record.get("sha256"):
        raise DataError(damage_message(folder, f"{EMBEDDINGS_NAME} has another hash than {MANIFEST_NAME} says"))


def read_verified_faiss(folder: Path, manifest: dict[str, Any]) -> bytes:
    """Return the bytes of the FAISS index.

    FAISS trusts what it parses. So the very bytes that were hashed are returned, not a path at which they may change.

    Raises:
        DataError: they are not those that the manifest describes.
    """
    record = _verified_record(folder, manifest, FAISS_NAME)
    content = read_bytes(folder / FAISS_NAME, record["bytes"])
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        reason = f"{FAISS_NAME} has another hash than {MANIFEST_NAME} says, so it is not read"
        raise DataError(damage_message(folder, reason))
    return content


def is_built_here(manifest: dict[str, Any]) -> bool:
    """Return whether this user built the FAISS index on this machine, see `reptk.embeddings.index_signature`."""
    record = manifest["files"].get(FAISS_NAME)
    return isinstance(record, dict) and is_signed(record.get("sha256"), record.get("signature"))


def damage_message(folder: Path, reason: str) -> str:
    """Return the message for an index that cannot be trusted."""
    return f"the index {folder} is damaged: {reason}. Build it again: reptk index EMBEDDINGS --out {folder} --force"


def _is_complete(manifest: dict[str, Any]) -> bool:
    for name, required_type in _REQUIRED_TYPES.items():
        if not isinstance(manifest.get(name), required_type):
            return False
    return isinstance(manifest["recall"].get("value"), int | float)


def _verified_record(folder: Path, manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the manifest's record of a file, after checking that the file exists and has the recorded length."""
    path = folder / name
    record = manifest["files"].get(name)
    if not path.is_file() or not isinstance(record, dict):
        raise DataError(damage_message(folder, f"{name} is missing"))
    if path.stat().st_size != record.get("bytes"):
        raise DataError(damage_message(folder, f"{name} has another length than {MANIFEST_NAME} says"))
    return record
