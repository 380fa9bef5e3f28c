"""Manifests: every change of one is noticed, damage is named, and a folder that is replaced while it is read is read again."""

import json
from pathlib import Path

import pytest

from reptk.core.errors import DataError
from reptk.core.file_records import file_record, find_damage, is_intact, manifest_text, read_replaceable


def test_every_flipped_bit_of_a_manifest_is_noticed() -> None:
    text = manifest_text({"format": "x", "files": {"a": [1, 2.5, None]}, "name": "cat\udcff"})
    assert is_intact(text, json.loads(text))
    for at in range(len(text)):
        damaged = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        try:
            manifest = json.loads(damaged)
        except ValueError:
            continue
        assert not is_intact(damaged, manifest), damaged


def test_a_manifest_without_a_hash_is_not_intact() -> None:
    assert not is_intact("{}", {})
    assert not is_intact('{"manifest_sha256": 3}', {"manifest_sha256": 3})


def test_damage_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    record = file_record(path)
    assert find_damage(path, record) is None
    assert find_damage(path, None) == "is not listed in manifest.json"
    path.write_bytes(b"CONTENT")
    assert find_damage(path, record) == "has another hash than manifest.json says"
    assert find_damage(path, record, max_hashed_bytes=7) == "has another hash than manifest.json says"
    assert find_damage(path, record, max_hashed_bytes=6) is None, "only the length is compared"
    path.write_bytes(b"longer content")
    assert find_damage(path, record, max_hashed_bytes=6) == "has another length than manifest.json says"
    path.unlink()
    assert find_damage(path, record) == "is missing"


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(is_noticed: bool, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text("old")
    calls = []

    def read() -> str:
        calls.append(manifest.read_text())
        if calls == ["old"]:
            manifest.write_text("new")
            if is_noticed:
                raise DataError("the hashes differ")
        return calls[-1]

    assert read_replaceable(manifest, read) == "new"
    assert calls == ["old", "new"]


def test_a_damaged_folder_is_read_once(tmp_path: Path) -> None:
    calls = []

    def read() -> None:
        calls.append(1)
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        read_replaceable(tmp_path / "manifest.json", read)
    assert len(calls) == 1
