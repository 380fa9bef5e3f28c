"""Devices, pipes, sockets and files larger than plausible are refused before anything is read."""

import os
import socket
from pathlib import Path

import pytest

from reptk.config import toml
from reptk.core.errors import DataError, UsageError
from reptk.core.foreign_files import (
    UnsuitableFile,
    append_to_regular,
    open_regular,
    read_bytes,
    read_json,
    read_text,
    require_regular_file,
)
from reptk.data.decoding.decode import decode
from reptk.data.decoding.pixel_options import PixelOptions
from reptk.data.layouts.image_table import read_image_table

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def make_special(kind: str, folder: Path) -> Path:
    path = folder / "special.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(
    ("kind", "message"), [("pipe", "a named pipe"), ("socket", "a socket"), ("link to a device", "a device")]
)
def test_what_has_no_end_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    path = make_special(kind, tmp_path)
    for read in (require_regular_file, read_text, read_json, lambda path: read_bytes(path, 100)):
        with pytest.raises(UnsuitableFile, match=f"is {message}, not a file"):
            read(path)
    with pytest.raises(DataError, match=f"special.png: it is {message}, not a file"):
        decode(path, 8)
    with pytest.raises(DataError, match=f"is {message}, not a file"):
        read_image_table(path.rename(tmp_path / "special.csv"))
    with pytest.raises(UsageError, match=f"is {message}, not a file"):
        toml.read(tmp_path / "special.csv")


def test_appending_reaches_regular_files_alone(pipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        with append_to_regular(path) as file:
            file.write(b"line\n")
    assert path.read_bytes() == b"line\n" * 2
    (tmp_path / "link").symlink_to(path)
    for other in (pipe, tmp_path / "link"):
        with pytest.raises(UnsuitableFile, match="not a file"), append_to_regular(other):
            pass
    # With a reader, a pipe can be opened.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UnsuitableFile, match="is a named pipe, not a file"), append_to_regular(pipe):
        pass
    os.close(reader)
    assert path.read_bytes() == b"line\n" * 2


def test_a_file_that_is_replaced_by_a_pipe_before_it_is_opened_is_refused(
    pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    status = os.stat(tmp_path / "file")  # noqa: PTH116
    monkeypatch.setattr(os, "stat", lambda path: status)
    with pytest.raises(UnsuitableFile, match="a named pipe"), open_regular(pipe):
        pass


def test_the_size_is_checked_before_memory_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnsuitableFile, match="has 1,099,511,627,776 bytes, more than the 67,108,864"):
        read_json(path)
    with pytest.raises(DataError, match="it has 1,099,511,627,776 bytes"):
        decode(path, 8)
    with pytest.raises(DataError, match="more than the 16,777,216"):
        decode(path, 8, options=PixelOptions(max_pixels=100))
    with pytest.raises(UsageError, match="more than the 1,048,576"):
        toml.read(path)


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [1, "\u00e9"]}', encoding="utf-8")
    assert read_json(path) == {"a": [1, "\u00e9"]}
    assert read_text(path) == path.read_text(encoding="utf-8")
    assert read_bytes(path, path.stat().st_size) == path.read_bytes()
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "gone")
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="needs Linux")
def test_files_of_the_system_without_an_end_are_empty() -> None:
    try:
        assert read_bytes("/proc/kmsg", 100) == b""
    except PermissionError:
        pytest.skip("only the administrator may open it")
