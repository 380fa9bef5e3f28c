"""Parquet files of embeddings: readable by other programs, and tables of other programs are read."""

from pathlib import Path

import pytest
import torch

from embedding_inputs import NAMES, make_embeddings, unit_vectors
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings
from reptk.embeddings.files.parquet_file import ParquetFile

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    table = parquet.read_table(make_embeddings().save(tmp_path / "e.parquet"))
    assert table.schema.names == ["id", "path", "label", "class", "vector"]
    assert table["class"].to_pylist()[:3] == [None, "cat", "<b>\n&"]
    assert table["path"].to_pylist() == NAMES
    assert torch.equal(torch.tensor(table["vector"].to_pylist()), make_embeddings().vectors)


def test_tables_of_other_programs_can_be_read(tmp_path: Path) -> None:
    vectors = unit_vectors(3).double().tolist()
    parquet.write_table(pyarrow.table({"vector": vectors, "class": ["b", None, "a"]}), tmp_path / "e.parquet")
    loaded = Embeddings.load(tmp_path / "e.parquet")
    assert torch.equal(loaded.vectors, unit_vectors(3))
    assert list(loaded.ids) == ["0", "1", "2"]
    assert loaded.paths is None
    assert loaded.classes == ("a", "b")
    assert loaded.labels.tolist() == [1, -1, 0]


def test_class_names_that_are_not_utf8_are_read_back(tmp_path: Path) -> None:
    embeddings = Embeddings(unit_vectors(2), ["a", "b"], labels=torch.tensor([0, -1]), classes=("caf\udce9",))
    assert Embeddings.load(embeddings.save(tmp_path / "e.parquet")).classes == ("caf\udce9",)
    assert parquet.read_table(tmp_path / "e.parquet")["class"].to_pylist() == [b"caf\xe9", None]


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing", b"\x89PNG" * 9])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "e.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"e\.parquet cannot be read"):
        Embeddings.load(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0], [1.0, 2.0, 3.0], [1.0, 2.0]], "differ in length"),
        ([[1.0, 2.0], None], "no vector in 1 row"),
        ([1.0, 2.0], "cannot be read"),
        ([], "holds no rows"),
    ],
)
def test_a_column_that_is_no_matrix_is_refused(vectors: list, message: str, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"vector": vectors}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=message):
        Embeddings.load(tmp_path / "e.parquet")


def test_vectors_of_two_lengths_are_refused_even_in_different_blocks(tmp_path: Path) -> None:
    vectors = [[1.0, 0.0]] * 4 + [[1.0, 0.0, 0.0]] * 4
    parquet.write_table(pyarrow.table({"vector": vectors}), tmp_path / "e.parquet", row_group_size=4)
    with pytest.raises(DataError, match="differ in length"):
        list(ParquetFile(tmp_path / "e.parquet").read_blocks(4))
