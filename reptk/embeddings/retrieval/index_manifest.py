"""manifest.json of an index folder: what the index is, and the length and hash of every file in it."""

import hashlib
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from reptk.core import file_records
from reptk.core.errors import DataError
from reptk.core.file_records import ManifestFormat, find_damage
from reptk.core.foreign_files import read_bytes
from reptk.embeddings.files.content_hash import MAX_HASHED_BYTES
from reptk.embeddings.retrieval.index_signature import is_signed, sign

FORMAT = "reptk index"
VERSION = 1
VERSION_ON_DISK = 2
"""Of an index whose inverted lists are in a file, which earlier versions of reptk cannot read."""

EMBEDDINGS_NAME = "embeddings.safetensors"
FAISS_NAME = "index.faiss"
LISTS_NAME = "lists.ivfdata"
MANIFEST_NAME = "manifest.json"
FILE_NAMES = frozenset({EMBEDDINGS_NAME, FAISS_NAME, LISTS_NAME, MANIFEST_NAME})

KEYS_WITHOUT_HASH = frozenset(
    {"format", "version", "kind", "count", "width", "recall", "seconds", "files", "about", "versions", "commit"}
)
"""The keys of manifests of earlier versions, which carry no hash of themselves."""

_MANIFEST_FORMAT = ManifestFormat(
    FORMAT,
    VERSION_ON_DISK,
    {"kind": str, "count": int, "width": int, "files": dict, "recall": dict},
    KEYS_WITHOUT_HASH,
)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index folder.

    Raises:
        DataError: there is none, or it is damaged, of another program, or of a newer reptk.
    """
    try:
        manifest = file_records.read_manifest(
            folder / MANIFEST_NAME,
            _MANIFEST_FORMAT,
            subject=str(folder),
            foreign=f"{folder} is no index of reptk: its {MANIFEST_NAME} is of something else",
            damaged=partial(damaged_index_message, folder),
        )
    except FileNotFoundError as cause:
        raise DataError(
            f"{folder} is no index: it has no {MANIFEST_NAME}. Make one: reptk index EMBEDDINGS --out ..."
        ) from cause
    if not isinstance(manifest["recall"].get("value"), int | float):
        raise DataError(damaged_index_message(folder, f"{MANIFEST_NAME} is incomplete: it has no recall"))
    return manifest


def verify_embeddings(folder: Path, manifest: dict[str, Any], *, any_size: bool) -> None:
    """Raise DataError unless the embeddings are those that the manifest describes.

    Args:
        folder: the index.
        manifest: its manifest.
        any_size: whether to compare hashes of embeddings larger than `MAX_HASHED_BYTES`, too.
    """
    _check_file(folder, manifest, EMBEDDINGS_NAME, _max_hashed_bytes(any_size))


def read_verified_faiss(folder: Path, manifest: dict[str, Any]) -> bytes:
    """Return the bytes of the FAISS index.

    FAISS trusts what it parses. So the very bytes that were hashed are returned, not a path at which they may change.

    Raises:
        DataError: they are not those that the manifest describes.
    """
    _check_file(folder, manifest, FAISS_NAME, max_hashed_bytes=0)
    content = read_bytes(folder / FAISS_NAME, manifest["files"][FAISS_NAME]["bytes"])
    if hashlib.sha256(content).hexdigest() != manifest["files"][FAISS_NAME].get("sha256"):
        reason = f"{FAISS_NAME} has another hash than {MANIFEST_NAME} says, so it is not read"
        raise DataError(damaged_index_message(folder, reason))
    return content


def has_lists(manifest: dict[str, Any]) -> bool:
    """Return whether the inverted lists of the FAISS index are in a file of their own."""
    return LISTS_NAME in manifest["files"]


def verify_lists(folder: Path, manifest: dict[str, Any], *, any_size: bool) -> None:
    """Raise DataError unless the file of inverted lists is the one that the manifest describes; see `verify_embeddings`.

    Of a large file only the length is compared: what is in it can make a search return wrong rows, and nothing else.
    """
    _check_file(folder, manifest, LISTS_NAME, _max_hashed_bytes(any_size))


def sign_faiss(files: dict[str, dict[str, Any]]) -> None:
    """Add the signature of this user to the record of the FAISS index, if there is one."""
    if FAISS_NAME not in files:
        return
    signature = sign(files[FAISS_NAME]["sha256"])
    if signature is not None:
        files[FAISS_NAME]["signature"] = signature


def is_built_here(manifest: dict[str, Any]) -> bool:
    """Return whether this user built the FAISS index on this machine, see `reptk.embeddings.retrieval.index_signature`."""
    record = manifest["files"].get(FAISS_NAME)
    return isinstance(record, dict) and is_signed(record.get("sha256"), record.get("signature"))


def damaged_index_message(folder: Path, reason: str) -> str:
    """Return the message for an index that cannot be trusted."""
    command = f"reptk index EMBEDDINGS --out {shlex.quote(str(folder))} --force"
    return f"the index {folder} is damaged: {reason}. Build it again: {command}"


def _max_hashed_bytes(any_size: bool) -> int | None:
    """Return up to which size the content of a file is compared; None for any."""
    if any_size:
        return None
    return MAX_HASHED_BYTES  # hashing reads the whole file, which may take longer than the search itself


def _check_file(folder: Path, manifest: dict[str, Any], name: str, max_hashed_bytes: int | None) -> None:
    damage = find_damage(folder / name, manifest["files"].get(name), max_hashed_bytes=max_hashed_bytes)
    if damage is not None:
        raise DataError(damaged_index_message(folder, f"{name} {damage}"))
