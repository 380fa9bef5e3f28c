"""Build the index of tar shards: every header is read once, and names of classes become labels at the end."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.console import Console

from reptk.core.console import Logger
from reptk.core.counts import format_bytes, format_count
from reptk.core.errors import DataError
from reptk.core.file_records import file_record
from reptk.core.files import atomic_write, json_text, write_text
from reptk.core.mapped_arrays import chunks
from reptk.core.name_lists import first_names
from reptk.core.printable_names import in_one_line
from reptk.data.bad_samples import tolerated_unreadable
from reptk.data.class_names import sorted_class_names
from reptk.data.records.tar_members import ShardContent, TarSample, read_shard
from reptk.data.split_names import UNLABELED, is_split_name, split_role

FORMAT_VERSION = 1

RECORD = np.dtype(
    [("offset", "<u8"), ("key_end", "<u8"), ("size", "<u4"), ("shard", "<u4"), ("label", "<i4"), ("kind", "<u4")]
)
"""Of an image: offset and size in its shard, the end of its key in the file of keys, the number of its shard, its label, and
what the label comes from."""

NO_LABEL, BY_FOLDER, BY_JSON, BY_CLASS_FILE = range(4)
"""What a label comes from; if there are several, the last."""

KIND_NAMES = {BY_FOLDER: "folders", BY_JSON: ".json files", BY_CLASS_FILE: ".cls files"}

INDEX_FILES = ("records.bin", "keys.bin")

MAX_PROBLEMS = 10
MAX_LISTED_LABELS = 3
MEGABYTE = 1 << 20
CACHE_ADVICE = "Name another folder for caches by the environment variable XDG_CACHE_HOME"


@dataclass
class _Build:
    """What is known of the shards that were read so far.

    Args:
        labels: number of each text of a label, by what it comes from.
        num_of_kind: images by what their label comes from.
        images: number of images of each shard.
        problems: what is wrong, with the names of the shards.
        without_image: samples without an image.
        unread_labels: the first files of labels that cannot be read as such.
        num_unread_labels: how many there are.
        num_other: files that belong to no sample.
    """

    labels: dict[int, dict[str, int]] = field(default_factory=dict)
    num_of_kind: Counter[int] = field(default_factory=Counter)
    images: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    unread_labels: list[str] = field(default_factory=list)
    num_unread_labels: int = 0
    num_other: int = 0
    key_bytes: int = 0


def build_index(paths: Sequence[Path], folder: Path) -> None:
    """Read all shards, and write the files of the index.

    Raises:
        DataError: shards cannot be indexed, with all that is wrong with all of them.
    """
    stats = [_stat_of(path) for path in paths]
    num_bytes = sum(size for size, _ in stats)
    if not sys.stderr.isatty():
        text = f"indexing {format_count(len(paths), 'shard')} ({format_bytes(num_bytes)}) once, into {folder}"
        print(text, file=sys.stderr)
    build = _Build()
    with (
        atomic_write(folder / "records.bin") as records_path,
        atomic_write(folder / "keys.bin") as keys_path,
    ):
        with records_path.open("wb") as records, keys_path.open("wb") as keys, _progress(num_bytes) as advance:
            for number, path in enumerate(paths):
                _add_shard(number, path, read_shard(path, advance), build, records, keys)
        _check(build, paths)
        classes, notes = _assign_labels(records_path, build)
    # A shard that was written to meanwhile is found when the index is opened.
    manifest = {
        "version": FORMAT_VERSION,
        "stats": stats,
        "images": build.images,
        "classes": classes,
        "notes": notes,
        "unread_labels": _unread_labels_text(build),
        "files": {name: file_record(folder / name) for name in INDEX_FILES},
        "shards": [str(path) for path in paths],
    }
    write_text(folder / "manifest.json", json_text(manifest) + "\n")


def _stat_of(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause.strerror}") from cause
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _progress(num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show on standard error how many megabytes of the shards are done; yield a function that takes further bytes."""
    logger = Logger(console=Console(stderr=True))
    with logger.count("indexing", num_bytes // MEGABYTE, unit="MB") as advance:
        rest = 0

        def report(count: int) -> None:
            nonlocal rest
            megabytes, rest = divmod(rest + count, MEGABYTE)
            if megabytes:
                advance(megabytes)

        yield report


def _add_shard(
    number: int, path: Path, content: ShardContent, build: _Build, records: BinaryIO, keys: BinaryIO
) -> None:
    """Append the images of a shard to the files of the index."""
    build.problems += [f"{path} {problem}" for problem in content.problems]
    build.without_image += [f"{in_one_line(key)} in {path}" for key in content.without_image]
    unread_labels = [f"{path} has {phrase}" for phrase in content.unread_labels]
    # Of the first alone: there may be one for each of many millions of images.
    build.unread_labels = (build.unread_labels + unread_labels)[:MAX_LISTED_LABELS]
    build.num_unread_labels += len(unread_labels)
    build.num_other += content.num_other
    build.images.append(len(content.samples))
    encoded = [sample.key.encode("utf-8", "surrogateescape") for sample in content.samples]
    rows = np.zeros(len(encoded), RECORD)
    rows["shard"] = number
    rows["offset"] = [sample.offset for sample in content.samples]
    rows["size"] = [sample.size for sample in content.samples]
    rows["key_end"] = build.key_bytes + np.cumsum([len(key) for key in encoded], dtype=np.int64)
    labels = [_provisional_label(sample, build) for sample in content.samples]
    rows["kind"] = [kind for kind, _ in labels]
    rows["label"] = [label for _, label in labels]
    records.write(rows.tobytes())
    keys.write(b"".join(encoded))
    build.key_bytes += sum(map(len, encoded))


def _provisional_label(sample: TarSample, build: _Build) -> tuple[int, int]:
    """Return what the label of an image comes from, and the number of its text among those of that kind."""
    folder = sample.key.rpartition("/")[0]
    if sample.class_text is not None:
        kind, text = BY_CLASS_FILE, sample.class_text
    elif sample.json_label is not None:
        kind, text = BY_JSON, sample.json_label
    elif folder:
        kind, text = BY_FOLDER, folder
    else:
        kind, text = NO_LABEL, ""
    build.num_of_kind[kind] += 1
    numbers = build.labels.setdefault(kind, {})
    return kind, numbers.setdefault(text, len(numbers))


def _check(build: _Build, paths: Sequence[Path]) -> None:
    """Raise DataError if the shards cannot be used, with everything that is wrong."""
    num_images = sum(build.images)
    problems = list(build.problems)
    num_lacking = len(build.without_image)
    if num_lacking > tolerated_unreadable(num_images + num_lacking):
        names = first_names(build.without_image, 3)
        problems.append(f"{format_count(num_lacking, 'sample')} of {num_images + num_lacking:,} have no image: {names}")
    if problems:
        lines = "\n  ".join(first_lines(problems))
        raise DataError(f"{_shards_text(paths)} cannot be indexed:\n  {lines}")
    if not num_images:
        raise DataError(
            f"{_shards_text(paths)} hold no images; a sample has files of one name, such as 000017.jpg and 000017.cls"
        )


def _unread_labels_text(build: _Build) -> str:
    """Return which files of labels cannot be read as such; an empty text if all can."""
    if not build.num_unread_labels:
        return ""
    listed = "; ".join(build.unread_labels)
    if build.num_unread_labels > len(build.unread_labels):
        listed += "; ..."
    return f"{format_count(build.num_unread_labels, 'file')} of labels cannot be read: {listed}"


def first_lines(lines: Sequence[str]) -> list[str]:
    """Return the first lines of many, and how many more there are."""
    if len(lines) <= MAX_PROBLEMS:
        return list(lines)
    return [*lines[:MAX_PROBLEMS], f"and {len(lines) - MAX_PROBLEMS:,} more"]


def _shards_text(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return str(paths[0])
    return f"{len(paths):,} shards ({paths[0]} to {paths[-1].name})"


def _assign_labels(records_path: Path, build: _Build) -> tuple[list[str], list[str]]:
    """Write the labels into the records; return the names of the classes, in the order of their labels, and notes.

    The labels are those of .cls files if there are any, else of .json files, else the names of folders. An image that has none
    of the kind has no label.
    """
    kind = max((kind for kind, count in build.num_of_kind.items() if count), default=NO_LABEL)
    texts = list(build.labels[kind])
    names = [_class_name(text) for text in texts]
    if kind == BY_FOLDER:
        names = _classes_of_folders(texts, has_others=build.num_of_kind[NO_LABEL] > 0)
    classes = sorted_class_names(names)
    label_of = {name: label for label, name in enumerate(classes)}
    table = np.array([label_of.get(name, -1) for name in names], np.int32)
    if sum(build.images):
        records = np.memmap(records_path, RECORD, "r+")
        for part in chunks(len(records)):
            rows = records[part]
            is_of_kind = rows["kind"] == kind
            labels = np.full(len(rows), -1, np.int32)
            labels[is_of_kind] = table[rows["label"][is_of_kind]]
            rows["label"] = labels
        records.flush()
    notes = []
    if classes:
        notes.append(f"  labels from {KIND_NAMES[kind]}")
    if build.without_image:
        count = format_count(len(build.without_image), "sample")
        notes.append(f"  skipped: {count} without an image: {first_names(build.without_image, 3)}")
    if build.num_unread_labels:
        notes.append(f"  note: {_unread_labels_text(build)}")
    if build.num_other:
        notes.append(f"  not read: {format_count(build.num_other, 'file')} that belong to no image")
    return list(classes), notes


def _class_name(text: str) -> str:
    """Return the name of a class; empty for -1, which stands for the secret labels of a test split."""
    if text == "-1":
        return ""
    return text


def _classes_of_folders(folders: Sequence[str], *, has_others: bool) -> list[str]:
    """Return the class of each folder, empty for none: the first folder that is not shared by all, nor that of a split.

    Args:
        folders: those that images lie in.
        has_others: whether there are images in none.
    """
    parts = [folder.split("/") for folder in folders]
    if not has_others:
        while all(len(names) > 1 for names in parts) and len({names[0] for names in parts}) == 1:
            parts = [names[1:] for names in parts]
    if all(is_split_name(names[0]) for names in parts):
        parts = [names[1:] for names in parts]
    classes = []
    for names in parts:
        if not names or split_role(names[0]) == UNLABELED:
            classes.append("")
        else:
            classes.append(names[0])
    return classes
