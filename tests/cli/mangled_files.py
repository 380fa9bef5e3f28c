"""What a broken disk or a hostile stranger does to a file: damaged bytes, a strange value, or no file in its place."""

import hashlib
import json
import os
import random
from pathlib import Path

from mangled_formats import STRUCTURED, damage_bytes

from reptk.core.file_records import HASH_KEY, manifest_text


def mangle(draw: random.Random, name: str, content: bytes) -> bytes:
    """Return another content for a file."""
    ending = Path(name).suffix
    changes = [damage_bytes]
    if ending in STRUCTURED:
        changes += 3 * [STRUCTURED[ending]]
    changed = draw.choice(changes)(draw, content)
    if draw.random() < 0.05:
        changed = damage_bytes(draw, changed)
    return changed


def replace_by_special_file(draw: random.Random, path: Path) -> None:
    """Put a pipe, a folder or a link in the place of a file."""
    path.unlink()
    kind = draw.choice(["pipe", "folder", "link"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(draw.choice(["/dev/zero", "/dev/random", path.name, "nowhere", "/proc/kmsg", "../outside.txt"]))


def record_hash(manifest: Path, path: Path) -> None:
    """Write the size and the hash of a file into the manifest that describes it, as a stranger would."""
    table = json.loads(manifest.read_text())
    record = table["files"][path.name] if "files" in table else table
    record |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if HASH_KEY in table:
        manifest.write_text(manifest_text(table))
    else:
        manifest.write_text(json.dumps(table))
