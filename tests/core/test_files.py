"""Files are replaced as a whole or not at all."""

import hashlib
import json
import math
from pathlib import Path

import pytest

from reptk.core.files import (
    atomic_write,
    expand_home,
    json_text,
    parse_json,
    real_path,
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
        assert temporary.parent == path.parent  # a rename within one file system is atomic
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
