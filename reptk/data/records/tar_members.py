"""The images of one tar shard in WebDataset's layout: where each begins, and what its neighbors of the same name say.

The files of a sample have one name up to the first dot, its key: 000017.jpg, 000017.cls, 000017.json. A tar of class folders
(`tar cf photos.tar cat dog`) has the same layout, with keys such as cat/000017.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from reptk.core.counts import format_bytes
from reptk.core.files import parse_json
from reptk.core.foreign_files import open_regular
from reptk.core.printable_names import in_one_line
from reptk.data.decoding.decode import EXTENSIONS
from reptk.data.table_headings import HEADINGS, heading_key

COMPRESSED = {
    b"\x1f\x8b": "gzip (gunzip)",
    b"BZh": "bzip2 (bunzip2)",
    b"\xfd7zXZ\x00": "xz (unxz)",
    b"\x28\xb5\x2f\xfd": "zstd (unzstd)",
    b"\x04\x22\x4d\x18": "lz4 (unlz4)",
}
"""First bytes of compressed files, and what unpacks them."""

BLOCK_BYTES = tarfile.BLOCKSIZE
MAX_LABEL_BYTES = 4096
MAX_JSON_BYTES = 1 << 20
MAX_IMAGE_BYTES = (1 << 32) - 1
"""The index has 32 bits for the size of an image."""

OCTAL = re.compile(rb" *([0-7]+)[\0 ]*")
"""A number in a header. `int` takes more, e.g. a sign, with which an archive could send its reader back to where it was."""

CLASS_FILE = "cls"
JSON_FILE = "json"


class TarSample(NamedTuple):
    """An image of a shard.

    Attributes:
        key: of the sample.
        offset: of the first byte of the image in the shard.
        size: of the image in bytes.
        class_text: content of its .cls file; None without one.
        json_label: label in its .json file; None without one.
    """

    key: str
    offset: int
    size: int
    class_text: str | None
    json_label: str | None


@dataclass
class ShardContent:
    """What is in a shard.

    Args:
        samples: the images, in the order in which their samples begin.
        without_image: keys of samples that have labels or other files of a sample, and no image.
        problems: phrases that say why the shard cannot be used.
        unread_labels: phrases that name files of labels that cannot be read as such; their samples have no label by them.
        num_other: files that belong to no sample.
    """

    samples: list[TarSample] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread_labels: list[str] = field(default_factory=list)
    num_other: int = 0


class _Member(NamedTuple):
    offset: int
    size: int


FILE = "a file"
OTHER = "a folder or a device"


class _Entry(NamedTuple):
    """Something in an archive: its content has `size` bytes from `offset` on, and the next header is at `end`."""

    name: str
    offset: int
    size: int
    kind: str
    end: int


def read_shard(path: Path, advance: Callable[[int], None]) -> ShardContent:
    """Read the headers of a shard, and the files of labels in it.

    Args:
        path: the shard.
        advance: called with the number of further bytes that are done.
    """
    content = ShardContent()
    try:
        with open_regular(path) as file:
            unusable = _unusable(file)
            if unusable is not None:
                content.problems.append(unusable)
                return content
            members = _members_by_key(file, content, advance)
            for key, files in members.items():
                _add_sample(file, key, files, content)
    except OSError as cause:
        content.problems.append(f"cannot be read: {cause.strerror or cause}")
    return content


def _unusable(file: BinaryIO) -> str | None:
    """Return why a file is not a tar that can be indexed; None if it may be one."""
    start = file.read(BLOCK_BYTES)
    file.seek(0)
    if not start:
        return "is empty"
    for signature, tool in COMPRESSED.items():
        if start.startswith(signature):
            return f"is compressed with {tool}: unpack it, since images inside it cannot be read one by one"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: fetch the file itself (git lfs pull)"
    return None


def _members_by_key(
    file: BinaryIO, content: ShardContent, advance: Callable[[int], None]
) -> dict[str, dict[str, _Member]]:
    """Return the files of each sample by their endings, in the order of the archive."""
    num_bytes = os.fstat(file.fileno()).st_size
    samples: dict[str, dict[str, _Member]] = {}
    position = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in _entries(archive, file):
                if entry.offset + entry.size > num_bytes:
                    content.problems.append(f"is truncated in {in_one_line(entry.name)}: copy it again")
                    return samples
                advance(entry.end - position)
                position = entry.end
                _add_entry(entry, samples, content)
    except (tarfile.TarError, ValueError, OverflowError) as cause:
        # The last two are what `tarfile` raises where a header says that the next has a negative or a huge size.
        if samples:
            content.problems.append(f"is truncated or damaged ({cause}): copy it again")
        else:
            content.problems.append(f"is no tar archive ({cause})")
        return samples
    problem = _problem_at_end(file, position, num_bytes)
    if problem is not None:
        content.problems.append(problem)
    advance(max(0, num_bytes - position))
    return samples


def _entries(archive: tarfile.TarFile, file: BinaryIO) -> Iterator[_Entry]:
    """Yield what is in an archive. Headers of ordinary files are parsed here, several times as fast as by `tarfile`."""
    position = 0
    while True:
        entry = _plain_entry(os.pread(file.fileno(), BLOCK_BYTES, position), position)
        if entry is None:
            file.seek(position)
            archive.offset = position
            # It keeps the first file that it has read when it was opened, and all others.
            archive.firstmember = None
            member = archive.next()
            archive.members.clear()
            if member is None:
                return
            entry = _Entry(member.name, member.offset_data, member.size, _kind(member), archive.offset)
        if entry.size < 0 or entry.end <= position:
            raise tarfile.ReadError(f"the header at byte {position:,} has an impossible size")
        yield entry
        position = entry.end


def _plain_entry(header: bytes, position: int) -> _Entry | None:
    """Return the file whose header this is; None for anything else than an ordinary file in the format of POSIX or GNU."""
    if len(header) < BLOCK_BYTES or header[257:262] != b"ustar" or header[156] not in (0, ord("0")):
        return None
    size_digits = OCTAL.fullmatch(header[124:136])
    checksum_digits = OCTAL.fullmatch(header[148:156])
    if size_digits is None or checksum_digits is None:
        return None
    size = int(size_digits[1], 8)
    # The checksum counts its own bytes as blanks.
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(checksum_digits[1], 8):
        return None
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    if not name or name.endswith(b"/"):
        return None
    offset = position + BLOCK_BYTES
    end = offset + (size + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
    return _Entry(name.decode("utf-8", "surrogateescape"), offset, size, FILE, end)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "sparse"
    if member.isreg():
        return FILE
    if member.issym() or member.islnk():
        return "a link"
    return OTHER


def _problem_at_end(file: BinaryIO, end: int, num_bytes: int) -> str | None:
    """Return why an archive does not end as archives do, after its last file at `end`; None if it does."""
    file.seek(end)
    block = file.read(BLOCK_BYTES)
    if len(block) < BLOCK_BYTES:
        return "is truncated, since it lacks the mark at the end: copy it again, or let its writer finish"
    if any(block):
        return f"is damaged at byte {end:,}, where a header should be: copy it again"
    while block:
        block = file.read(1 << 20)
        if any(block):
            return "has more files after the mark at its end, as joined archives have: keep them apart, or unpack and pack them"
        if file.tell() - end > (1 << 24):
            break  # writers fill up to some kilobytes
    return None


def _add_entry(entry: _Entry, samples: dict[str, dict[str, _Member]], content: ShardContent) -> None:
    name = entry.name.removeprefix("./")
    folder, _, file_name = name.rpartition("/")
    if entry.kind == OTHER or file_name.startswith(".") or folder.startswith(".") or "__MACOSX" in folder:
        return
    stem, _, extension = file_name.partition(".")
    key = stem
    if folder:
        key = f"{folder}/{stem}"
    extension = extension.lower()
    if entry.kind != FILE:
        if _is_image(extension):
            advice = "pack it with --dereference --hard-dereference"
            content.problems.append(f"has {in_one_line(name)}, which is {entry.kind}: {advice}")
        return
    files = samples.setdefault(key, {})
    if extension in files:
        content.problems.append(f"has {in_one_line(name)} twice: keys tell samples apart, so rename one")
        return
    files[extension] = _Member(entry.offset, entry.size)


def _is_image(extension: str) -> bool:
    """Return whether an ending, which may have several parts, is that of an image."""
    return f".{extension.rpartition('.')[2]}" in EXTENSIONS


def _add_sample(file: BinaryIO, key: str, files: dict[str, _Member], content: ShardContent) -> None:
    image = _image_of(key, files, content)
    if image is None:
        if CLASS_FILE in files or JSON_FILE in files:
            content.without_image.append(key)
        else:
            content.num_other += 1
        return
    if not image.size:
        content.without_image.append(key)
        return
    if image.size > MAX_IMAGE_BYTES:
        content.problems.append(f"has an image of {image.size:,} bytes ({in_one_line(key)}): take it out")
        return
    class_text = None
    json_label = None
    if CLASS_FILE in files:
        class_text = _text_of(file, files[CLASS_FILE])
        if class_text is None:
            content.unread_labels.append(f"{in_one_line(key)}.cls, which is not a number or a name in UTF-8")
    elif JSON_FILE in files:
        json_label = _label_in_json(file, key, files[JSON_FILE], content)
    content.samples.append(TarSample(key, image.offset, image.size, class_text, json_label))


def _image_of(key: str, files: dict[str, _Member], content: ShardContent) -> _Member | None:
    """Return the image of a sample: the one whose ending has one part, else the only one with several, as in 17.left.png."""
    images = [extension for extension in files if _is_image(extension)]
    simple = [extension for extension in images if "." not in extension]
    candidates = simple or images
    if len(candidates) > 1:
        listed = ", ".join(f".{extension}" for extension in candidates)
        content.problems.append(
            f"has several images of the sample {in_one_line(key)} ({listed}): leave one whose ending has one part, as .jpg"
        )
    if len(candidates) != 1:
        return None
    return files[candidates[0]]


def _text_of(file: BinaryIO, member: _Member) -> str | None:
    if member.size > MAX_LABEL_BYTES:
        return None
    try:
        return os.pread(file.fileno(), member.size, member.offset).decode().strip("\0 \t\r\n")
    except UnicodeDecodeError:
        return None


def _label_in_json(file: BinaryIO, key: str, member: _Member, content: ShardContent) -> str | None:
    """Return the label in a .json file, under one of its usual names."""
    name = f"{in_one_line(key)}.json"
    if member.size > MAX_JSON_BYTES:
        content.unread_labels.append(f"{name}, which has {format_bytes(member.size)}")
        return None
    try:
        values = parse_json(os.pread(file.fileno(), member.size, member.offset))
    except (ValueError, RecursionError):
        content.unread_labels.append(f"{name}, which is not JSON")
        return None
    if isinstance(values, str | int) and not isinstance(values, bool):
        return str(values)
    if not isinstance(values, dict):
        content.unread_labels.append(f"{name}, which is not a JSON object")
        return None
    by_key = {heading_key(name): value for name, value in values.items()}
    for heading in HEADINGS["label"]:
        value = by_key.get(heading)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    return None
