"""reptk.index: exact and approximate indexes, and what may be replaced by them."""

import json
import sys
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import needs_faiss, needs_pyarrow
from reptk.core import rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.embeddings import Embeddings, Index
from reptk.embeddings.retrieval import build_index
from reptk.embeddings.retrieval.build_index import measure_recall
from reptk.embeddings.retrieval.similarity_index import exact_search

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("source", ["safetensors", pytest.param("parquet", marks=needs_pyarrow), "memory"])
def test_an_index_holds_the_embeddings(source: str, photo_embeddings: Path, tmp_path: Path) -> None:
    embeddings = Embeddings.load(photo_embeddings)
    given = embeddings if source == "memory" else embeddings.save(tmp_path / f"e.{source}")
    index = reptk.index(given, out=tmp_path / "e.index")
    (tmp_path / "e.index").rename(tmp_path / "moved.index")
    moved = Index.open(tmp_path / "moved.index", verify=True)
    for opened in (index, moved):
        assert torch.equal(opened.embeddings.vectors, embeddings.vectors)
        assert list(opened.embeddings.ids) == list(embeddings.ids)
        assert (opened.kind, opened.recall) == ("Flat", 1.0)
        assert opened.embeddings.metadata == embeddings.metadata


@pytest.mark.parametrize("source", ["safetensors", pytest.param("parquet", marks=needs_pyarrow), "memory"])
def test_vectors_of_any_length_are_compared_by_direction(source: str, tmp_path: Path) -> None:
    vectors = torch.randn(20, 6, generator=rng.generator("lengths"))
    embeddings = Embeddings(vectors, list("abcdefghijklmnopqrst"))
    given = embeddings if source == "memory" else embeddings.save(tmp_path / f"e.{source}")
    index = reptk.index(given, out=tmp_path / "e.index")
    unit = torch.nn.functional.normalize(vectors, dim=1)
    similarities, rows = index.search(unit, 20)
    expected = (unit @ unit.T).sort(descending=True)
    assert torch.allclose(similarities, expected.values, atol=1e-6)
    assert torch.equal(rows[:, 0], torch.arange(20))


@needs_faiss
@pytest.mark.parametrize("kind", ["IVF4,Flat", "HNSW8", "IVF4,PQ4x4"])
def test_approximate_kinds(kind: str, clustered: Embeddings, tmp_path: Path) -> None:
    reptk.index(clustered, out=tmp_path / "e.index", kind=kind)
    index = Index.open(tmp_path / "e.index")
    assert index.kind == kind
    queries = clustered.vectors[:50]
    similarities, rows = index.search(queries, 10)
    _, exact_rows = exact_search(clustered.vectors, queries, 10)
    assert torch.equal(rows[:, 0], torch.arange(50)), "an image finds itself"
    is_hit = (rows[:, :, None] == exact_rows[:, None]).any(2)
    assert is_hit.float().mean() > 0.9
    assert index.recall > 0.9
    stored = (queries[:, None] * clustered.vectors[rows]).sum(2)
    assert torch.allclose(similarities, stored, atol=1e-5), "similarities are those of the stored vectors"
    _, other_rows = index.search(queries, 10, torch.arange(50))
    assert not (other_rows == torch.arange(50)[:, None]).any()


@needs_faiss
def test_recall_is_measured(clustered: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = reptk.index(clustered, out=tmp_path / "e.index", kind="IVF4,Flat")
    assert measure_recall(index)["value"] == index.recall
    monkeypatch.setattr(index.approximate, "search", lambda queries, k: (None, torch.arange(k).expand(len(queries), k)))
    assert measure_recall(index)["value"] < 0.5


@pytest.mark.filterwarnings("ignore:FAISS is not installed")
def test_flat_needs_no_faiss(photo_embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert reptk.index(photo_embeddings, out=tmp_path / "e.index").recall == 1


def test_only_an_index_is_replaced(photo_embeddings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e.index"
    reptk.index(photo_embeddings, out=folder)
    with pytest.raises(UsageError, match="--force"):
        reptk.index(photo_embeddings, out=folder)
    (folder / "manifest.json").write_text("{")
    reptk.index(photo_embeddings, out=folder, force=True)
    bad = Embeddings(torch.full((2, 3), torch.nan), ["a", "b"])
    with pytest.raises(DataError, match="2 of 2 embeddings"):
        reptk.index(bad, out=folder, force=True)
    assert len(Index.open(folder)) == 12, "the old index stays until the new one is complete"
    reptk.index(Embeddings(torch.eye(3), list("abc")), out=folder, force=True)
    assert len(Index.open(folder)) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is no index"):
        reptk.index(photo_embeddings, out=tmp_path / "mine", force=True)
    with pytest.raises(EnvironmentProblem, match="there is no folder"):
        reptk.index(photo_embeddings, out=tmp_path / "no" / "e.index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.index", "mine"]


@needs_faiss
@pytest.mark.filterwarnings("ignore:.*train 4 centroids badly")
@pytest.mark.parametrize("automatic", [False, True])
def test_lists_on_disk(automatic: bool, clustered: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = reptk.index(clustered, out=tmp_path / "m.index", kind="IVF4,PQ4x4")
    folder = tmp_path / "d.index"
    on_disk = True
    if automatic:
        monkeypatch.setattr(build_index, "ON_DISK_BYTES", 640 * (2 + 8) - 1)
        on_disk = None
    reptk.index(clustered, out=folder, kind="IVF4,PQ4x4", on_disk=on_disk)
    assert sorted(path.name for path in folder.iterdir()) == [
        "embeddings.safetensors",
        "index.faiss",
        "lists.ivfdata",
        "manifest.json",
    ]
    moved = tmp_path / "moved.index"
    folder.rename(moved)
    index = Index.open(moved)
    assert index.is_on_disk
    assert index.recall == in_memory.recall
    queries = clustered.vectors[:50]
    assert torch.equal(torch.stack(index.search(queries, 10)), torch.stack(in_memory.search(queries, 10)))
    assert json.loads((moved / "manifest.json").read_text())["version"] == 2, (
        "earlier versions say that they cannot read it"
    )
    lists = moved / "lists.ivfdata"
    content = lists.read_bytes()
    lists.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"lists\.ivfdata has another length"):
        Index.open(moved)
    lists.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match=r"lists\.ivfdata has another hash"):
        Index.open(moved)
    reptk.index(clustered, out=moved, kind="IVF4,Flat", on_disk=False, force=True)
    assert not (moved / "lists.ivfdata").exists()


@needs_faiss
def test_only_lists_are_on_disk(clustered: Embeddings, tmp_path: Path) -> None:
    for kind in ("Flat", "HNSW8", "auto"):
        with pytest.raises(UsageError, match="only kinds of inverted lists"):
            reptk.index(clustered, out=tmp_path / "e.index", kind=kind, on_disk=True)
    assert list(tmp_path.iterdir()) == []
