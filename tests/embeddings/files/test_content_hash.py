"""One flipped bit anywhere in a file of embeddings is noticed when it is read, by every command."""

import hashlib
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import assert_same_embeddings, both_formats, make_embeddings, needs_pyarrow, run_command
from killed_processes import flip_bit
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings
from reptk.embeddings.files import content_hash

pytestmark = [pytest.mark.usefixtures("one_thread")]


@both_formats
def test_every_flipped_bit_is_noticed(suffix: str, tmp_path: Path) -> None:
    path = make_embeddings().save(tmp_path / f"e{suffix}")
    content = path.read_bytes()
    # A bit of every third byte that is no padding.
    positions = [at for at in range(0, len(content), 3) if content[at : at + 9].strip(b" \0")]
    assert len(positions) > 200
    for at in positions:
        flip_bit(path, at, bit=at % 8)
        with pytest.raises(DataError, match=f"e{suffix}"):
            Embeddings.load(path)
        path.write_bytes(content)
    assert_same_embeddings(Embeddings.load(path, verify=True), make_embeddings())


@both_formats
def test_the_hash_depends_on_every_byte(suffix: str, tmp_path: Path) -> None:
    """A file is not damaged if it has the hash of what it holds; so the hash is what notices the damage."""
    path = make_embeddings().save(tmp_path / f"e{suffix}")
    content = path.read_bytes()
    at = content.index(make_embeddings().vectors.numpy().tobytes()[:8])
    flip_bit(path, at)
    with pytest.raises(DataError, match="another hash than when it was written"):
        Embeddings.load(path)


@both_formats
def test_large_files_are_hashed_on_request(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_embeddings().save(tmp_path / f"e{suffix}")
    content = path.read_bytes()
    monkeypatch.setattr(content_hash, "MAX_HASHED_BYTES", len(content) - 1)
    flip_bit(path, content.index(b"unknown") if b"unknown" in content else content.index(b"backbone"))
    Embeddings.load(path)
    Embeddings.load(path, verify=False)
    with pytest.raises(DataError, match="another hash"):
        Embeddings.load(path, verify=True)


@needs_pyarrow
def test_pages_of_large_files_have_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_embeddings().save(tmp_path / "e.parquet")
    monkeypatch.setattr(content_hash, "MAX_HASHED_BYTES", 0)
    at = path.read_bytes().index(make_embeddings().vectors.numpy().tobytes()[:8])
    flip_bit(path, at)
    with pytest.raises(DataError, match="CRC"):
        Embeddings.load(path)


@needs_pyarrow
def test_a_table_that_another_program_has_changed_is_read(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = make_embeddings().save(tmp_path / "e.parquet")
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(2, 3), path)
    loaded = Embeddings.load(path, verify=True)
    assert torch.equal(loaded.vectors, make_embeddings().vectors[2:5])


@both_formats
def test_every_command_refuses_a_damaged_file(
    suffix: str, photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / f"e{suffix}"
    reptk.embed(encoder_run, photo_folder, out=path)
    content = path.read_bytes()
    vectors = Embeddings.load(path).vectors.numpy().tobytes()
    at = content.index(vectors[:8]) + 1 if vectors[:8] in content else len(content) // 2
    flip_bit(path, at)
    commands = [
        ["embed", encoder_run, "--data", photo_folder, "--out", path, "--update"],
        ["evaluate", path],
        ["evaluate", path, "--queries", path],
        ["index", path, "--out", tmp_path / "e.index"],
        ["search", path, "--id", "0", "--no-html"],
        ["search", path, "--duplicates", "--no-html"],
    ]
    for command in commands:
        message = run_command(command, capsys, exit_code=3)
        assert message.startswith(f"error: {path} is damaged: its content has another hash"), command
        assert message.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]


def test_the_index_of_a_damaged_file_keeps_its_own_hash(tmp_path: Path) -> None:
    path = make_embeddings(list("abc")).save(tmp_path / "e.safetensors")
    reptk.index(path, out=tmp_path / "e.index")
    stored = tmp_path / "e.index" / "embeddings.safetensors"
    assert hashlib.sha256(stored.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
    assert len(Embeddings.load(stored, verify=True)) == 3
