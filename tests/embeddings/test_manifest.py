"""A damaged index folder is refused, before FAISS reads any of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

import reptk
from embedding_inputs import change_manifest, flip_bit, needs_faiss, run_command
from reptk import neighbors
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings, Index, manifest

pytestmark = [pytest.mark.usefixtures("one_thread")]

DAMAGE = {
    "another hash": (lambda folder: flip_bit(folder / "embeddings.safetensors"), "another hash"),
    "cut": (lambda folder: (folder / "embeddings.safetensors").write_bytes(b"x"), "another length"),
    "gone": (lambda folder: (folder / "embeddings.safetensors").unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "is no index"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
    "foreign": (lambda folder: (folder / "manifest.json").write_text('{"step": 3}'), "something else"),
    "newer": (lambda folder: change_manifest(folder, version=2), "newer reptk"),
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


def test_large_embeddings_are_hashed_on_demand(
    photo_embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reptk.index(photo_embeddings, out=tmp_path / "e.index")
    flip_bit(tmp_path / "e.index" / "embeddings.safetensors")
    monkeypatch.setattr(manifest, "MAX_HASHED_BYTES", 10)
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
    flip_bit(tmp_path / "e.index" / "index.faiss")
    with pytest.raises(DataError, match="another hash"):
        Index.open(tmp_path / "e.index")
    (tmp_path / "e.index" / "index.faiss").unlink()
    with pytest.raises(DataError, match="is missing"):
        Index.open(tmp_path / "e.index")
