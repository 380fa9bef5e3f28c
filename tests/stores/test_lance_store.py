"""LanceStore: what is special about it: folders, an index, a full disk."""

import resource
from contextlib import closing
from pathlib import Path

import pytest

import reptk
from embedding_inputs import make_embeddings, unit_vectors
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.embeddings import StoreIndex, export, verify_recall
from reptk.stores import lance_store

lance = pytest.importorskip("lance")

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_many_rows_get_an_index_whose_recall_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_store, "MIN_INDEXED_ROWS", 1000)
    monkeypatch.setattr(lance_store, "ROWS_PER_PARTITION", 250)
    vectors = unit_vectors(1000, 16)
    address = f"lance:{tmp_path / 'many.lance'}"
    with closing(export(reptk.Embeddings(vectors, list(map(str, range(1000)))), address)) as index:
        assert index.store.index_kind() == "IVF_PQ"
        assert verify_recall(index, num_queries=50).value > 0.9
        monkeypatch.setattr(lance_store, "MIN_PROBES", 1)
        assert verify_recall(index, num_queries=50).value < 0.9, "one of four partitions is not enough"


def test_other_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    embeddings = make_embeddings(["a", "b"])
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for target in (folder, folder / "notes.txt"):
        with pytest.raises(UsageError, match="was not written by reptk"):
            export(embeddings, f"lance:{target}", force=True)
    assert (folder / "notes.txt").read_text() == "mine"
    lance.write_dataset(embeddings_table(), str(tmp_path / "other.lance"))
    with pytest.raises(UsageError, match="was not written by reptk"):
        export(embeddings, f"lance:{tmp_path / 'other.lance'}", force=True)
    with pytest.raises(DataError, match="was not written by reptk"):
        StoreIndex.open(f"lance:{tmp_path / 'other.lance'}")
    with pytest.raises(DataError, match="was not written by reptk"):
        StoreIndex.open(f"lance:{folder}")
    with pytest.raises(EnvironmentProblem, match="there is no folder"):
        export(embeddings, f"lance:{tmp_path / 'gone' / 'e.lance'}")


def embeddings_table():
    import pyarrow

    return pyarrow.table({"vector": pyarrow.array([[1.0, 0.0]], pyarrow.list_(pyarrow.float32(), 2))})


def test_a_folder_that_has_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "e.lance"
    export(make_embeddings(["a", "b", "c"]), f"lance:{path}")
    lance.dataset(str(path)).delete("number = 1")
    with pytest.raises(DataError, match=r"has changed .* holds 2 vectors of 5 values"):
        StoreIndex.open(f"lance:{path}")


def test_a_damaged_folder_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "e.lance"
    export(make_embeddings(["a", "b", "c"]), f"lance:{path}")
    for file in (path / "data").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(DataError, match="cannot be searched"):
        reptk.search(f"lance:{path}", unit_vectors(1), k=2)


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    embeddings = reptk.Embeddings(unit_vectors(3000, 64), list(map(str, range(3000))))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(EnvironmentProblem, match=r"the disk of .*full\.lance is full"):
            export(embeddings, f"lance:{tmp_path / 'full.lance'}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["lance:", "lance:s3://bucket/e.lance"])
def test_addresses_that_are_no_folder_of_this_machine(address: str) -> None:
    with pytest.raises(UsageError, match=r"lance:photos\.lance"):
        export(make_embeddings(["a"]), address)
