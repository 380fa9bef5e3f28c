"""Files are replaced as a whole or not at all."""

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from killed_processes import hidden_names, kill_at_every_moment
from reptk.core import files
from reptk.core.file_locks import machine_name
from reptk.core.files import (
    atomic_folder,
    atomic_write,
    expand_home,
    holds_only,
    json_text,
    parse_json,
    real_path,
    recover_folder,
    sha256_of,
    write_bytes,
    write_text,
)


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "status.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent.parent == path.parent  # a rename within one file system is atomic
    assert path.read_text() == "new"
    assert file_names(tmp_path) == ["status.json"]


def test_new_file_is_created(tmp_path):
    with atomic_write(tmp_path / "new.bin") as temporary:
        temporary.write_bytes(b"content")
        assert not (tmp_path / "new.bin").exists()
    assert (tmp_path / "new.bin").read_bytes() == b"content"


def write_half(path: Path, error: BaseException) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interruption"])
def test_block_that_raises_leaves_the_old_content(error, tmp_path):
    path = tmp_path / "status.json"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "old"
    assert file_names(tmp_path) == ["status.json"]


def test_block_that_raises_creates_no_file(tmp_path):
    with pytest.raises(ValueError, match="no content"), atomic_write(tmp_path / "new.bin"):
        raise ValueError("no content")
    assert file_names(tmp_path) == []


def test_block_that_writes_nothing_is_an_error_and_leaves_the_old_content(tmp_path):
    path = tmp_path / "status.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_write_bytes_and_write_text_replace_a_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert file_names(tmp_path) == ["file"]


def test_write_text_writes_undecodable_file_names_as_their_bytes(tmp_path):
    name = b"photo \xff.jpg".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "list.txt", name)
    assert (tmp_path / "list.txt").read_bytes() == b"photo \xff.jpg"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "new"


def test_a_pipe_gets_the_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    contents = []
    reader = threading.Thread(target=lambda: contents.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "content")
    reader.join()
    assert contents == ["content"]
    assert file_names(tmp_path) == ["pipe"]


def test_a_name_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / (255 * "x"), "text")
    assert file_names(tmp_path) == [255 * "x"]


# Folders


def write_folder(path: Path, text: str, *, force: bool = True) -> None:
    with atomic_folder(path, force=force) as folder:
        (folder / "a").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_text(text)


def read_folder(path: Path) -> str:
    """Return the text of a folder that `write_folder` wrote, which must be complete and of one version."""
    assert file_names(path) == ["a", "inner"]
    assert (path / "a").read_text() == (path / "inner" / "b").read_text()
    return (path / "a").read_text()


@pytest.fixture(params=["exchange", "no exchange"])
def folder_systems(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that can exchange two folders in one step, and others."""
    if request.param == "no exchange":
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)


@pytest.mark.usefixtures("folder_systems")
def test_a_folder_is_created_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_folder(path, "old", force=False)
    assert read_folder(path) == "old"
    with pytest.raises(FileExistsError):
        write_folder(path, "new", force=False)
    assert read_folder(path) == "old"
    write_folder(path, "new")
    assert read_folder(path) == "new"
    assert file_names(tmp_path) == ["model"]


@pytest.mark.usefixtures("folder_systems")
def test_a_folder_that_a_link_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere" / "model")
    for text in ("old", "new"):
        write_folder(tmp_path / "model", text)
    assert (tmp_path / "model").is_symlink()
    assert read_folder(tmp_path / "elsewhere" / "model") == "new"
    assert file_names(tmp_path / "elsewhere") == ["model"]


def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", "old")

    def write_half_of_a_folder() -> None:
        with atomic_folder(tmp_path / "model", force=True) as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half_of_a_folder()
    assert read_folder(tmp_path / "model") == "old"
    assert file_names(tmp_path) == ["model"]


def test_a_folder_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("years of work")
    with pytest.raises(NotADirectoryError):
        write_folder(tmp_path / "thesis", "new")
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_folders_with_other_files_are_told_apart(tmp_path: Path) -> None:
    names = frozenset({"a", "b"})
    assert holds_only(tmp_path, names)
    (tmp_path / "a").touch()
    assert holds_only(tmp_path, names)
    assert not holds_only(tmp_path / "a", names)
    (tmp_path / "c").touch()
    assert not holds_only(tmp_path, names)


# A process that is killed at any moment


def check_every_moment(write: Callable[[Path, str], object], read: Callable[[Path], str], folder: Path) -> list[str]:
    """Return what was read after `write` replaced "old" by "new", killed at every moment: at each one of the two, whole."""
    path = folder / "target"
    contents = []
    for _, killed in kill_at_every_moment(lambda: write(path, "old"), lambda: write(path, "new"), folder):
        recover_folder(path)
        contents.append(read(path))
        assert contents[-1] in ("old", "new")
        assert killed or contents[-1] == "new"
        # The next writer removes what the killed one left.
        write(path, "next")
        assert read(path) == "next"
        assert hidden_names(folder) == []
    return contents


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    contents = check_every_moment(write_text, lambda path: path.read_text(), tmp_path)
    assert contents == sorted(contents, reverse=True), "old, and from some moment on new"
    assert contents.count("old") >= 5
    assert contents.count("new") >= 3


@pytest.mark.usefixtures("folder_systems")
def test_a_folder_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    contents = check_every_moment(write_folder, read_folder, tmp_path)
    assert contents == sorted(contents, reverse=True)
    assert contents.count("old") >= 10
    assert contents.count("new") >= 5


def write_file_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def write_folder_in_two_steps(path: Path, text: str) -> None:
    path.mkdir(exist_ok=True)
    write_text(path / "a", text)
    (path / "inner").mkdir(exist_ok=True)
    write_text(path / "inner" / "b", text)


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (write_file_in_place, Path.read_text),
        (write_folder_in_two_steps, read_folder),
    ],
)
def test_writers_in_place_fail_this_test(write: Callable, read: Callable, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_every_moment(write, read, tmp_path)


# Leftovers


def test_what_a_living_writer_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = f"""
import pathlib, sys
from reptk.core.files import atomic_write
with atomic_write(pathlib.Path({str(path)!r})) as temporary:
    temporary.write_text("of the other process")
    print("ready", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    write_text(path, "of this process")
    with atomic_write(path) as temporary:
        # A second writer of the same process.
        write_text(path, "second")
        temporary.write_text("first")
    assert path.read_text() == "first"
    assert len(hidden_names(tmp_path)) >= 1
    process.communicate()
    assert process.returncode == 0
    assert path.read_text() == "of the other process"
    assert file_names(tmp_path) == ["file"]


def without_locks(descriptor: int) -> None:
    return None


@pytest.mark.parametrize("machine", ["this", "another"])
def test_without_locks_the_process_and_the_age_decide(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "try_lock", without_locks)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    lock = {"this": f"{machine_name()} {int(ended.stdout)}", "another": f"another-{machine_name()} {os.getpid()}"}
    work = tmp_path / ".file.0123abcd.writing"
    work.mkdir()
    (work / ".reptk-lock").write_text(lock[machine])
    (work / "file").write_text("half")
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("first")
        write_text(tmp_path / "file", "second")  # the other one, of a process that lives, stays
    assert (tmp_path / "file").read_text() == "first"
    assert work.exists() == (machine == "another")
    if machine == "another":
        long_ago = work.stat().st_mtime - 2 * files.UNLOCKED_SECONDS
        os.utime(work, (long_ago, long_ago))
        write_text(tmp_path / "file", "third")
        assert file_names(tmp_path) == ["file"]


def test_hidden_folders_of_others_stay(tmp_path: Path) -> None:
    names = [".file.writing", ".file.0123abcd", ".other.0123abcd.writing", ".file.x.0123abcd.writing", ".file.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
    write_text(tmp_path / "file", "text")
    assert file_names(tmp_path) == sorted([*names, "file"])


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", refuse)
    code = errno.EINVAL
    write_text(tmp_path / "file", "text")
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "text"


# Hashes, JSON, paths


def test_sha256_of_a_file(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_json_has_null_for_what_is_not_finite() -> None:
    value = {"a": math.nan, "b": [1.5, math.inf, {"c": (-math.inf, "NaN")}], "d": True}
    assert json.loads(json_text(value)) == {"a": None, "b": [1.5, None, {"c": [None, "NaN"]}], "d": True}


def test_json_that_is_too_deeply_nested_is_a_value_error() -> None:
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}
    with pytest.raises(ValueError, match="too deeply nested"):
        parse_json(100_000 * "[")


def test_a_name_of_no_user_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/photos") == Path("/home/me/photos")
    assert expand_home("~nobody-of-this-name/photos") == Path("~nobody-of-this-name/photos")


def test_links_in_a_circle_stay(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("folder")
    assert real_path(tmp_path / "link" / "a") == tmp_path.resolve() / "folder" / "a"
    assert real_path(tmp_path / "circle").name == "circle"
