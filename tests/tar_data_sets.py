"""Data sets in tar shards of WebDataset's layout, written for tests."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from parquet_data_sets import encoded_image


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: Literal["w", "a"] = "w") -> Path:
    """Write an archive of files with these names and contents, or append them to one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_samples(path: Path, numbers: Sequence[int], labels: Sequence[object] | None = None) -> Path:
    """Write a shard of images with .cls files."""
    members = []
    for index, number in enumerate(numbers):
        members.append((f"{number:04}.png", encoded_image(number)))
        if labels is not None:
            members.append((f"{number:04}.cls", str(labels[index]).encode()))
    return write_tar(path, members)
