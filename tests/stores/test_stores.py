"""What every store has to do, tried with the real engines: rows survive, search is right, nothing is half written."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

import reptk
from embedding_inputs import NAMES, make_embeddings, unit_vectors
from reptk.config.registry import STORES
from reptk.core.errors import DataError, UsageError
from reptk.embeddings import StoreIndex, export, verify_recall
from reptk.stores import Collection, Store, StoredRows, open_store
from reptk.testing import check_store

pytestmark = [pytest.mark.usefixtures("one_thread")]

COUNT, WIDTH = 70, 8


def many_embeddings(*, key: int = 0, width: int = WIDTH) -> reptk.Embeddings:
    ids = [f"class {row % 3}/{row:02}.png" for row in range(COUNT)]
    labels = torch.arange(COUNT) % 3
    metadata = {"root": "/photos", "encoder": {"backbone": "x"}}
    return reptk.Embeddings(unit_vectors(COUNT, width, key), ids, ids, labels, ("a", "b", "c"), metadata)


def test_every_store_meets_the_requirements(address: str, store_name: str) -> None:
    check_store(STORES.get(store_name), address)
    with pytest.raises(UsageError, match="the check would replace 60 embeddings of 8 values"):
        check_store(STORES.get(store_name), address)


def test_rows_survive(address: str) -> None:
    embeddings = make_embeddings(NAMES, kind="files with ids")
    with closing(export(embeddings, address)) as index:
        assert len(index) == len(NAMES)
        rows = index.store.fetch(np.arange(len(NAMES))[::-1].copy())
        # Some engines scale vectors of unit length again.
        np.testing.assert_allclose(rows.vectors[::-1], embeddings.vectors.numpy(), atol=1e-6)
        assert rows.paths[::-1] == NAMES
        assert rows.ids[::-1] == list(embeddings.ids)
        assert rows.labels[::-1].tolist() == embeddings.labels.tolist()
        assert rows.class_names[::-1] == [embeddings.class_of(row) for row in range(len(NAMES))]
        assert index.collection.metadata["root"] == embeddings.metadata["root"], "undecodable names, too"
        assert index.collection.metadata["encoder"] == {"backbone": "x"}
        with pytest.raises(DataError, match="has no row"):
            index.store.fetch(np.array([0, 99]))


def test_search_finds_what_exact_search_finds(address: str) -> None:
    embeddings = many_embeddings()
    queries = unit_vectors(5, WIDTH, key=3)
    export(embeddings, address)
    expected = reptk.search(embeddings, queries, ids=["class 1/07.png", "9"], k=6)
    results = reptk.search(address, queries, ids=["class 1/07.png", "9"], k=6)
    assert [result.row for result in results] == [result.row for result in expected]
    for result, other in zip(results, expected, strict=True):
        assert [neighbor[:3] for neighbor in result.neighbors] == [neighbor[:3] for neighbor in other.neighbors]
        assert [neighbor.path for neighbor in result.neighbors] == [neighbor.path for neighbor in other.neighbors]
        assert [neighbor.label for neighbor in result.neighbors] == [neighbor.label for neighbor in other.neighbors]
        similarities = [neighbor.similarity for neighbor in result.neighbors]
        assert similarities == pytest.approx([neighbor.similarity for neighbor in other.neighbors], abs=1e-5)
    with closing(StoreIndex.open(address)) as index:
        assert verify_recall(index, k=5, num_queries=20)[:2] == (5, 1.0)
    with pytest.raises(UsageError, match="no image with the id 'nobody'"):
        reptk.search(address, ids=["nobody"])
    with pytest.raises(DataError, match="same encoder"):
        reptk.search(address, unit_vectors(1, 3))
    with closing(StoreIndex.open(address)) as index, pytest.raises(DataError, match="queries hold NaN"):
        index.search(torch.full((1, WIDTH), torch.nan), 1)


def test_a_collection_is_replaced_only_on_request(address: str) -> None:
    export(many_embeddings(), address)
    with pytest.raises(UsageError, match=r"exists and holds 70 embeddings of 8 values by x\. .*--force"):
        export(many_embeddings(key=1), address)
    with pytest.raises(UsageError, match="the new ones have 5 values"):
        export(many_embeddings(width=5), address)
    with closing(export(many_embeddings(width=5), address, force=True)) as index:
        assert index.collection.width == 5


def interrupted_blocks(embeddings: reptk.Embeddings) -> Iterator[StoredRows]:
    """Yield the first half of the rows, and raise."""
    half = slice(0, COUNT // 2)
    names = list(embeddings.ids)[half]
    labels = embeddings.labels[half].numpy()
    yield StoredRows(np.arange(COUNT // 2), embeddings.vectors[half].numpy(), names, names, labels, names)
    raise DataError("interrupted")


@pytest.mark.parametrize("exists", [False, True])
def test_after_an_error_nothing_has_changed(exists: bool, address: str, store_name: str, tmp_path: Path) -> None:
    if exists:
        export(many_embeddings(), address)
    new = many_embeddings(width=5)
    before = sorted(path.name for path in tmp_path.iterdir())
    with closing(open_store(address)) as store:
        with pytest.raises(DataError, match="interrupted"):
            store.write(Collection(COUNT, 5, "float32", {}), interrupted_blocks(new), replace=True)
        assert count_collections(store, store_name, tmp_path) == exists
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if exists:
        assert len(reptk.search(address, unit_vectors(1, WIDTH), k=3)[0].neighbors) == 3
    else:
        with pytest.raises(DataError, match=r"no such|no folder"):
            reptk.search(address, unit_vectors(1, WIDTH))


def count_collections(store: Store, store_name: str, folder: Path) -> int:
    """Return how many collections there are, complete or not."""
    if store_name == "lance":
        return len([path for path in folder.iterdir() if path.is_dir()])
    if store_name == "qdrant":
        return len(store._connect().get_collections().collections)
    tables = "SELECT count(*) FROM pg_tables WHERE tablename = %s OR tablename LIKE 'reptk%%'"
    with store._database.transaction() as connection:
        return connection.execute(tables, [store._database.table[-1]]).fetchone()[0]


def test_vectors_without_direction_are_refused(address: str, store_name: str, tmp_path: Path) -> None:
    embeddings = many_embeddings()
    embeddings.vectors[60] = torch.nan
    with pytest.raises(DataError, match=r"1 of 70 embeddings .* NaN .*class 0/60.png"):
        export(embeddings, address)
    with pytest.raises(DataError, match=r"no such|no folder"):
        StoreIndex.open(address)


def test_vectors_get_unit_length(address: str) -> None:
    embeddings = many_embeddings()
    embeddings.vectors[::2] *= 3
    with closing(export(embeddings, address)) as index:
        norms = index.vectors_of(range(COUNT)).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(COUNT))


def test_names_that_no_database_stores_are_refused(address: str) -> None:
    with pytest.raises(DataError, match="is not valid UTF-8"):
        export(make_embeddings(["a.png", "cat\udcff.jpg"]), address)


def test_half_precision(address: str) -> None:
    embeddings = make_embeddings(NAMES, half=True)
    with closing(export(embeddings, address)) as index:
        assert index.collection.dtype == "float16"
        torch.testing.assert_close(index.vectors_of(range(len(NAMES))), embeddings.vectors.float(), atol=1e-3, rtol=0)
        assert verify_recall(index, k=2, num_queries=5).num_queries == 5


def test_requests_to_qdrant_are_of_a_size_that_a_server_takes(
    address: str, store_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store_name != "qdrant":
        pytest.skip("the others have no such limit")
    from qdrant_client import QdrantClient

    sizes = []
    rows = []

    def upsert(client: object, name: str, *, points: object, wait: bool) -> None:
        sizes.append(len(points.model_dump_json()))
        rows.append(len(points.ids))

    monkeypatch.setattr(QdrantClient, "upsert", upsert)
    vectors = torch.nn.functional.normalize(torch.randn(1000, 2048, generator=torch.Generator().manual_seed(0)), dim=1)
    store = open_store(address)
    numbers = np.arange(1000)
    names = [f"{'x' * 400}/{number}.png" for number in range(1000)]
    block = StoredRows(numbers, vectors.numpy(), names, list(names), np.zeros(1000, int), ["cat"] * 1000)
    store.write(Collection(1000, 2048, "float32", {}), [block], replace=False)
    assert sum(rows) == 1000
    assert max(sizes) < 32e6
