"""Which indexes this user built on this machine: a keyed hash in the manifest tells them from those of others.

FAISS trusts what it parses, and a file that was written to hurt can overwrite memory. The hash of the file in the manifest
only shows damage: whoever writes the file can write that, too. The key of the signature never leaves the home folder.
"""

import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from reptk.core.foreign_files import read_bytes
from reptk.core.user_folders import data_folder

KEY_BYTES = 32


def sign(sha256: str) -> str | None:
    """Return the signature of a file with this hash; None if there can be no key, as without a writable home folder."""
    key = _read_key() or _create_key()
    if key is None:
        return None
    return _signature(key, sha256)


def is_signed(sha256: Any, signature: Any) -> bool:
    """Return whether a signature of a file with this hash was made by this user on this machine."""
    key = _read_key()
    if key is None or not isinstance(sha256, str) or not isinstance(signature, str):
        return False
    return hmac.compare_digest(_signature(key, sha256).encode(), signature.encode("utf-8", "replace"))


def _signature(key: bytes, sha256: str) -> str:
    return hmac.new(key, sha256.encode("utf-8", "replace"), "sha256").hexdigest()


def _key_file() -> Path | None:
    folder = data_folder()
    if folder is None:
        return None
    return folder / "index.key"


def _read_key() -> bytes | None:
    file = _key_file()
    if file is None:
        return None
    try:
        key = read_bytes(file, KEY_BYTES)
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None


def _create_key() -> bytes | None:
    """Write a new key, which nobody else may read. Returns the one that another process wrote first, if there is one."""
    file = _key_file()
    if file is None:
        return None
    key = secrets.token_bytes(KEY_BYTES)
    # Complete before it gets its name, since another process may read it at once.
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - a descriptor
            stream.write(key)
            stream.flush()
            os.fsync(stream.fileno())
        if file.is_file() and file.stat().st_size != KEY_BYTES:
            file.unlink()  # of a disk that was full
        try:
            os.link(temporary, file)  # fails if there is one already
        finally:
            temporary.unlink()
    except OSError:
        return _read_key()
    return key
