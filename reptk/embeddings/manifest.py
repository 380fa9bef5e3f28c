"""What an index folder says of itself: manifest.json, with a hash of every file, held against what lies there."""

import hashlib
import json
from pathlib import Path
from typing import Any

from reptk.core.errors import DataError

FORMAT, VERSION = "reptk index", 1
EMBEDDINGS, FAISS, MANIFEST = "embeddings.safetensors", "index.faiss", "manifest.json"
FILES = frozenset({EMBEDDINGS, FAISS, MANIFEST})

HASHED_BYTES = 1 << 30
"""Embeddings up to this size are held against their hash whenever an index is opened, larger ones by their length."""


def read(path: Path) -> dict[str, Any]:
    """The manifest of an index folder.

    Raises:
        DataError: none, foreign, damaged, or of a newer reptk.
    """
    try:
        said = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise DataError(
            f"{path} is no index: it has no {MANIFEST}. Make one: reptk index EMBEDDINGS --out ..."
        ) from cause
    except (OSError, ValueError) as cause:
        raise DataError(damaged(path, f"{MANIFEST} cannot be read: {cause}")) from cause
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise DataError(f"{path} is no index of reptk: its {MANIFEST} is of something else")
    if not isinstance(said.get("version"), int) or said["version"] > VERSION:
        raise DataError(f"{path} was made by a newer reptk (version {said.get('version')}); update reptk to read it")
    needed = {"kind": str, "count": int, "width": int, "files": dict, "recall": dict}
    whole = all(isinstance(said.get(name), kind) for name, kind in needed.items())
    if not whole or not isinstance(said["recall"].get("value"), int | float):
        raise DataError(damaged(path, f"{MANIFEST} is incomplete"))
    return said


def verify_embeddings(path: Path, manifest: dict[str, Any], every: bool) -> None:
    """Raise DataError if the embeddings are not those that the manifest tells of."""
    said = _entry(path, manifest, EMBEDDINGS)
    if (every or said["bytes"] <= HASHED_BYTES) and _sha256(path / EMBEDDINGS) != said.get("sha256"):
        raise DataError(damaged(path, f"{EMBEDDINGS} has another hash than {MANIFEST} says"))


def verified_faiss(path: Path, manifest: dict[str, Any]) -> bytes:
    """The bytes of the FAISS index: code that trusts them will parse them, so the bytes that were hashed are returned.

    Raises:
        DataError: they are not those that the manifest tells of.
    """
    said = _entry(path, manifest, FAISS)
    content = (path / FAISS).read_bytes()
    if hashlib.sha256(content).hexdigest() != said.get("sha256"):
        raise DataError(damaged(path, f"{FAISS} has another hash than {MANIFEST} says, so it is not read"))
    return content


def vouched(path: Path) -> dict[str, Any]:
    """What to say of a file."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def damaged(path: Path, why: str) -> str:
    """The message for an index that cannot be trusted."""
    return f"the index {path} is damaged: {why}. Build it again: reptk index EMBEDDINGS --out {path} --force"


def _entry(path: Path, manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """What the manifest says of a file that is there and has its length."""
    file, said = path / name, manifest["files"].get(name)
    if not file.is_file() or not isinstance(said, dict):
        raise DataError(damaged(path, f"{name} is missing"))
    if file.stat().st_size != said.get("bytes"):
        raise DataError(damaged(path, f"{name} has another length than {MANIFEST} says"))
    return said


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
