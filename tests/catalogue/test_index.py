"""reptk index and its function: exact and approximate indexes, and what is wrong with damaged ones."""

import sys
from pathlib import Path

import pytest
import torch

import reptk
from catalogue_parts import manifest, needs_faiss, needs_pyarrow, said, spoil
from reptk import neighbors
from reptk.core import rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.embeddings import Embeddings, Index, indexing

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


@pytest.mark.parametrize("source", ["safetensors", pytest.param("parquet", marks=needs_pyarrow), "memory"])
def test_an_index_holds_the_embeddings(source: str, embedded: Path, tmp_path: Path) -> None:
    made = Embeddings.load(embedded)
    given = made if source == "memory" else made.save(tmp_path / f"e.{source}")
    index = reptk.index(given, out=tmp_path / "e.index")
    (tmp_path / "e.index").rename(tmp_path / "moved.index")
    moved = Index.open(tmp_path / "moved.index", verify=True)
    for one in (index, moved):
        assert torch.equal(one.embeddings.vectors, made.vectors)
        assert list(one.embeddings.ids) == list(made.ids)
        assert (one.kind, one.recall, one.embeddings.about) == ("Flat", 1.0, made.about)


def test_vectors_of_any_length_are_compared_by_direction(tmp_path: Path) -> None:
    drawn = torch.randn(20, 6, generator=rng.generator("lengths"))
    index = reptk.index(Embeddings(drawn, list("abcdefghijklmnopqrst")), out=tmp_path / "e.index")
    unit = torch.nn.functional.normalize(drawn, dim=1)
    similarities, rows = index.search(unit, 20)
    expected = (unit @ unit.T).sort(descending=True)
    assert torch.allclose(similarities, expected.values, atol=1e-6)
    assert torch.equal(rows[:, 0], torch.arange(20))


KINDS = ["IVF4,Flat", "HNSW8", "IVF4,PQ4x4"]


@needs_faiss
@pytest.mark.parametrize("kind", KINDS)
def test_approximate_kinds(kind: str, many: Embeddings, tmp_path: Path) -> None:
    reptk.index(many, out=tmp_path / "e.index", kind=kind)
    index = Index.open(tmp_path / "e.index")
    assert index.kind == kind
    similarities, rows = index.search(many.vectors[:50], 10)
    _, expected = indexing._exact(many.vectors, many.vectors[:50], 10)
    assert torch.equal(rows[:, 0], torch.arange(50)), "an image finds itself"
    found = (rows[:, :, None] == expected[:, None]).any(2)
    assert found.float().mean() > 0.9
    assert index.recall > 0.9
    pairs = (many.vectors[:50, None] * many.vectors[rows]).sum(2)
    assert torch.allclose(similarities, pairs, atol=1e-5), "similarities are those of the stored vectors"
    _, others = index.search(many.vectors[:50], 10, torch.arange(50))
    assert not (others == torch.arange(50)[:, None]).any()


@needs_faiss
def test_recall_is_measured(many: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = reptk.index(many, out=tmp_path / "e.index", kind="IVF4,Flat")
    assert indexing.recall(index)["value"] == index.recall
    monkeypatch.setattr(index.approximate, "search", lambda queries, k: (None, torch.arange(k).expand(len(queries), k)))
    assert indexing.recall(index)["value"] < 0.5


DAMAGE = {
    "another hash": (lambda path: spoil(path / "embeddings.safetensors"), "another hash"),
    "cut": (lambda path: (path / "embeddings.safetensors").write_bytes(b"x"), "another length"),
    "gone": (lambda path: (path / "embeddings.safetensors").unlink(), "is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "is no index"),
    "no JSON": (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
    "foreign": (lambda path: (path / "manifest.json").write_text('{"step": 3}'), "something else"),
    "newer": (lambda path: manifest(path, version=2), "newer reptk"),
    "incomplete": (lambda path: manifest(path, count=None), "is incomplete"),
    "another count": (lambda path: manifest(path, count=3), "is 12 x"),
}


@pytest.mark.parametrize(("damage", "wrong"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index(
    damage: object, wrong: str, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    reptk.index(embedded, out=tmp_path / "e.index")
    damage(tmp_path / "e.index")
    assert wrong in said(["search", tmp_path / "e.index", "--id", "0", "--no-html"], capsys, code=3)


@needs_faiss
def test_faiss_never_sees_what_was_not_hashed(
    many: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reptk.index(many, out=tmp_path / "e.index", kind="IVF4,Flat")
    monkeypatch.setattr(
        neighbors.ApproximateIndex, "from_bytes", lambda _: pytest.fail("bytes of another hash were read")
    )
    spoil(tmp_path / "e.index" / "index.faiss")
    with pytest.raises(DataError, match="another hash"):
        Index.open(tmp_path / "e.index")
    (tmp_path / "e.index" / "index.faiss").unlink()
    with pytest.raises(DataError, match="is missing"):
        Index.open(tmp_path / "e.index")


def test_flat_needs_no_faiss(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert reptk.index(embedded, out=tmp_path / "e.index").recall == 1


def test_what_an_index_may_replace(embedded: Path, tmp_path: Path) -> None:
    place = tmp_path / "e.index"
    reptk.index(embedded, out=place)
    with pytest.raises(UsageError, match="--force"):
        reptk.index(embedded, out=place)
    (place / "manifest.json").write_text("{")
    reptk.index(embedded, out=place, force=True)
    bad = Embeddings(torch.full((2, 3), torch.nan), ["a", "b"])
    with pytest.raises(DataError, match="2 of 2 embeddings"):
        reptk.index(bad, out=place, force=True)
    assert len(Index.open(place)) == 12, "what was there stays until the new one stands"
    reptk.index(Embeddings(torch.eye(3), list("abc")), out=place, force=True)
    assert len(Index.open(place)) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is no index"):
        reptk.index(embedded, out=tmp_path / "mine", force=True)
    with pytest.raises(EnvironmentProblem, match="there is no folder"):
        reptk.index(embedded, out=tmp_path / "no" / "e.index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.index", "mine"]
