"""The fingerprint of a data set: whether a resumed run reads the images it was started with."""

import gzip
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reptk.core.counts import format_count
from reptk.core.files import json_text, sha256_of, write_bytes, write_text
from reptk.core.foreign_files import open_regular, read_json
from reptk.core.name_lists import first_names
from reptk.data.protocol import Data, InMemory

FileIdentity = Literal["stat", "content", "off"]
"""What is compared of each file: its size and time of modification, its SHA-256, or nothing."""

SUMMARY_FILE = "data.json"
FILES_FILE = "data_files.txt.gz"

STAT_THREADS = 16
"""Files whose size is asked for at once: on a network file system each answer takes a while."""

MAX_EXAMPLES = 3
GONE = "gone"


class Fingerprint(NamedTuple):
    """What identifies a data set.

    splits: for each split its number of images, the hash of its labels, and of its pixels if they are in memory.
    files: what identifies each file, by its name below the folder that all files share; in the order of the images.
    check: what `files` holds.
    """

    splits: dict[str, dict[str, Any]]
    files: dict[str, str]
    check: FileIdentity


def fingerprint(data: Data, check: FileIdentity = "stat") -> Fingerprint:
    """Compute the fingerprint of a data set as it is now.

    Args:
        data: the data set.
        check: what to read of each file. Sizes of a million files take seconds on a local disk.
    """
    splits = {}
    paths: list[Path] = []
    for name, split in data.splits.items():
        if split is None:
            continue
        described: dict[str, Any] = {"images": len(split), "labels": _sha256(split.labels.contiguous().numpy())}
        if isinstance(split.images, InMemory):
            described["pixels"] = _sha256(split.images.pixels.cpu().contiguous().numpy())
        splits[name] = described
        if check != "off":
            paths += split.images.files()
    splits["classes"] = {"names": _sha256("\0".join(data.classes).encode("utf-8", "surrogateescape"))}
    unique = list(dict.fromkeys(paths))
    identify = _content_of
    if check == "stat":
        identify = _stat_of
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        identities = list(pool.map(identify, unique))
    files = dict(zip(_relative_names(unique), identities, strict=True))
    return Fingerprint(splits, files, check)


def write_fingerprint(data: Fingerprint, folder: Path) -> None:
    """Write a fingerprint into a run's folder: `SUMMARY_FILE`, and the files, if there are any, in `FILES_FILE`."""
    lines = "".join(f"{identity} {_escaped(name)}\n" for name, identity in data.files.items())
    content = lines.encode("utf-8", "surrogateescape")
    if data.files:
        write_bytes(folder / FILES_FILE, gzip.compress(content, mtime=0))
    summary = {"check": data.check, "files": len(data.files), "splits": data.splits}
    write_text(folder / SUMMARY_FILE, json_text(summary, indent=2) + "\n")


MAX_LIST_BYTES = 1 << 30
"""Of the list of files in a fingerprint, unpacked: more than ten million of them."""


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """Read the fingerprint in a run's folder; None if there is none, or it is damaged."""
    try:
        summary = read_json(folder / SUMMARY_FILE)
        files = {}
        if summary["files"]:
            lines = _unpacked(folder / FILES_FILE).decode("utf-8", "surrogateescape").split("\n")[:-1]
            for line in lines:
                identity, _, name = line.partition(" ")
                files[_unescaped(name)] = identity
        if len(files) != summary["files"]:
            return None
        return Fingerprint(dict(summary["splits"]), files, summary["check"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _unpacked(path: Path) -> bytes:
    """Return the content of a compressed file, which may claim to be small and be endless."""
    with open_regular(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
        content = unpacked.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(f"{path} lists more files than a data set can have")
    return content


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Return what has changed between two fingerprints, a line each; none if nothing has."""
    lines = []
    if before.check == now.check:
        added = [name for name in now.files if name not in before.files]
        removed = [name for name in before.files if name not in now.files]
        changed = [name for name, identity in now.files.items() if before.files.get(name, identity) != identity]
        for what, names in (("added", added), ("removed", removed), ("changed", changed)):
            if names:
                lines.append(f"{format_count(len(names), 'file')} {what}: {first_names(names, MAX_EXAMPLES)}")
        if not lines and list(before.files) != list(now.files):
            lines.append("the same files in another order")
    for name in dict.fromkeys([*before.splits, *now.splits]):
        if before.splits.get(name) != now.splits.get(name):
            lines.append(_split_difference(name, before.splits.get(name), now.splits.get(name)))
    return lines


def show_same_files(before: Fingerprint, now: Fingerprint) -> bool:
    """Return whether two fingerprints show that two folders hold the same files: both have compared them, and none differs."""
    return before.check == now.check != "off" and not differences(before, now)


def _split_difference(name: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    if name == "classes":
        return "other classes, or in another order"
    if before is None or now is None:
        return f"split {name}: {_count_of(before)} before, {_count_of(now)} now"
    if before.get("images") != now.get("images"):
        return f"split {name}: {_count_of(before)} before, {_count_of(now)} now"
    if before.get("labels") != now.get("labels"):
        return f"split {name}: other labels"
    return f"split {name}: other pixels"


def _count_of(split: dict[str, Any] | None) -> str:
    if split is None:
        return "none"
    return format_count(int(split.get("images", 0)), "image")


def _stat_of(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return GONE
    return f"{stat.st_size},{stat.st_mtime_ns}"


def _content_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:
        return GONE


def _relative_names(paths: Iterable[Path]) -> list[str]:
    """Return the names of files below the folder that all of them share, so that a data set may be moved as a whole."""
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - of a million files, and links are not resolved
    if not absolute:
        return []
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
    return [os.path.relpath(path, common) for path in absolute]


def _escaped(name: str) -> str:
    """A name in one line."""
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _unescaped(name: str) -> str:
    parts = name.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\r", "\r") for part in parts)


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
