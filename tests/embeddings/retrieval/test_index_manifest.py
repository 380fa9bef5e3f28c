"""A damaged index folder is refused, before FAISS reads any of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import reptk
from embedding_inputs import change_manifest, make_embeddings, needs_faiss, run_command
from killed_processes import flip_bit
from reptk import neighbors
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings, Index
from reptk.embeddings.retrieval import index_manifest

pytestmark = [pytest.mark.usefixtures("one_thread")]

DAMAGE = {
    "another hash": (lambda folder: flip_bit(folder / "embeddings.safetensors", -5), "another hash"),
    "cut": (lambda folder: (folder / "embeddings.safetensors").write_bytes(b"x"), "another length"),
    "gone": (lambda folder: (folder / "embeddings.safetensors").unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "is no index"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
    "foreign": (lambda folder: (folder / "manifest.json").write_text('{"step": 3}'), "something else"),
    "newer": (lambda folder: change_manifest(folder, version=3), "newer reptk"),
    "incomplete": (lambda folder: change_manifest(folder, count=None), "is incomplete"),
    "another count": (lambda folder: change_manifest(folder, count=3), "is 12 x"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_is_refused(
    damage: Callable[[Path], object],
    message: str,
    photo_embeddings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    reptk.index(photo_embeddings, out=tmp_path / "e.index")
    damage(tmp_path / "e.index")
    arguments = ["search", tmp_path / "e.index", "--id", "0", "--no-html"]
    assert message in run_command(arguments, capsys, exit_code=3)


@needs_faiss
def test_every_flipped_bit_is_noticed(clustered: Embeddings, tmp_path: Path) -> None:
    folder = tmp_path / "e.index"
    reptk.index(clustered, out=folder, kind="IVF4,Flat", on_disk=True)
    for name in sorted(index_manifest.FILE_NAMES):
        content = (folder / name).read_bytes()
        # Of the manifest, every byte; of the others, which have one hash each, a few.
        step = 1 if name == "manifest.json" else len(content) // 10
        for at in range(0, len(content), step):
            flip_bit(folder / name, at, bit=at % 8)
            with pytest.raises(DataError):
                Index.open(folder)
            (folder / name).write_bytes(content)
    assert len(Index.open(folder, verify=True)) == len(clustered)


def test_an_index_of_an_earlier_version_is_opened(tmp_path: Path) -> None:
    reptk.index(make_embeddings(list("abc")), out=tmp_path / "e.index")
    path = tmp_path / "e.index" / "manifest.json"
    record = json.loads(path.read_text())
    del record["manifest_sha256"]
    path.write_text(json.dumps(record))
    assert len(Index.open(tmp_path / "e.index")) == 3


def test_large_embeddings_are_hashed_on_demand(
    photo_embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reptk.index(photo_embeddings, out=tmp_path / "e.index")
    flip_bit(tmp_path / "e.index" / "embeddings.safetensors", -5)
    monkeypatch.setattr(index_manifest, "MAX_HASHED_BYTES", 10)
    Index.open(tmp_path / "e.index")
    with pytest.raises(DataError, match="another hash"):
        Index.open(tmp_path / "e.index", verify=True)


@needs_faiss
def test_faiss_reads_only_bytes_that_were_hashed(
    clustered: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reptk.index(clustered, out=tmp_path / "e.index", kind="IVF4,Flat")
    monkeypatch.setattr(
        neighbors.ApproximateIndex, "from_bytes", lambda _: pytest.fail("bytes of another hash were read")
    )
    flip_bit(tmp_path / "e.index" / "index.faiss", -5)
    with pytest.raises(DataError, match="another hash"):
        Index.open(tmp_path / "e.index")
    (tmp_path / "e.index" / "index.faiss").unlink()
    with pytest.raises(DataError, match="is missing"):
        Index.open(tmp_path / "e.index")
