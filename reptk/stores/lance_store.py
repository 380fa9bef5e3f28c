"""Lance: a folder of columns with an index, searched in place; https://lance.org."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptk.config.registry import STORES
from reptk.core.disk_space import check_free_space, explain_write_errors, is_disk_full
from reptk.core.errors import DataError, EnvironmentProblem, ReptkError, UsageError, first_line
from reptk.core.files import atomic_folder, recover_folder
from reptk.stores.protocol import (
    Collection,
    StoredRows,
    raise_changed,
    ranked,
    require_collection,
    require_new_collection,
    require_store_package,
    require_unchanged,
)

METADATA_KEY = b"reptk"
COLUMNS = ["number", "id", "path", "label", "class", "vector"]

MIN_INDEXED_ROWS = 100_000
"""Fewer rows are compared with every query."""

ROWS_PER_PARTITION = 4096
"""Lance's advice: https://lance.org/guide/performance."""

MIN_PROBES = 20
PARTITIONS_PER_PROBE = 16
"""A query visits max(MIN_PROBES, partitions // PARTITIONS_PER_PROBE) partitions."""

REFINE_FACTOR = 10
"""REFINE_FACTOR * k candidates are ranked by their stored vectors."""

BLOCK_ROWS = 8192

MAX_REASON_LETTERS = 300
"""Of a message of Lance."""


@STORES.register("lance")
class LanceStore:
    """lance:FOLDER, a Lance data set of this machine with the columns number, id, path, label, class and vector.

    It is searched without an index up to 100,000 rows, from there by IVF_PQ, and candidates are ranked by their stored vectors.

    Args:
        address: `lance:FOLDER`.

    Raises:
        UsageError: there is no folder in the address, or one of another machine.
        EnvironmentProblem: the package pylance is missing.
    """

    def __init__(self, address: str) -> None:
        self.name = address
        folder = address.partition(":")[2]
        if not folder:
            raise UsageError("lance: names no folder; e.g. lance:photos.lance")
        if "://" in folder:
            raise UsageError(f"{address}: a folder of this machine is needed, e.g. lance:photos.lance")
        require_store_package("lance:", "lance", "lance")
        self.folder = Path(folder)
        self._data_set: Any = None

    def write(self, collection: Collection, blocks: Iterable[StoredRows], *, replace: bool) -> None:
        lance = _import_lance()
        recover_folder(self.folder)
        if self.folder.exists() or self.folder.is_symlink():
            existing = self._existing_collection()
            require_new_collection(self.name, existing, collection, replace=replace, is_taken=True)
        parent = self.folder.absolute().parent
        if not parent.is_dir():
            raise EnvironmentProblem(
                f"cannot write {self.name}: there is no folder {parent}. Make it, or choose another"
            )
        check_free_space(self.folder, collection.vector_bytes(), "Choose another disk")
        schema = _schema(collection)
        with (
            explain_write_errors(self.folder, "Choose another folder"),
            atomic_folder(self.folder, force=replace) as new,
        ):
            fragments = []
            for block in blocks:
                # An error of reading the rows is raised here, and not within Lance, which would change it.
                with _lance_errors("be written", self.name, EnvironmentProblem):
                    table = _table(block, schema)
                    fragments += lance.fragment.write_fragments(table, str(new), schema=schema)
            with _lance_errors("be written", self.name, EnvironmentProblem):
                operation = lance.LanceOperation.Overwrite(schema, fragments)
                data_set = lance.LanceDataset.commit(str(new), operation)
                if collection.count >= MIN_INDEXED_ROWS:
                    _create_index(data_set, collection)
        self.close()

    def read_collection(self) -> Collection:
        self.close()  # what was open may have been replaced
        recover_folder(self.folder)
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {self.folder}. Write one: reptk export EMBEDDINGS --to {self.name}")
        collection = require_collection(self.name, self._existing_collection(), exists=True)
        data_set = self._open()
        with _lance_errors("be read", self.name):
            width = data_set.schema.field("vector").type.list_size
            count = data_set.count_rows()
        require_unchanged(self.name, collection, count, width)
        return collection

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return ranked((self._matches(query, k) for query in queries), k)

    def fetch(self, numbers: NDArray[np.int64]) -> StoredRows:
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self._open().count_rows():
            raise DataError(f"{self.name} has no row {int(numbers.max())}")
        with _lance_errors("be read", self.name):
            # A row's number is its position, since all rows were written in order, at once.
            table = self._open().take(numbers, columns=COLUMNS)
        if not np.array_equal(table.column("number").to_numpy(), numbers):
            raise_changed(self.name)
        return StoredRows(
            numbers,
            _vectors(table.column("vector").combine_chunks()),
            table.column("id").to_pylist(),
            table.column("path").to_pylist(),
            table.column("label").to_numpy(),
            table.column("class").to_pylist(),
        )

    def find(self, image_id: str) -> int | None:
        quoted = image_id.replace("'", "''")
        with _lance_errors("be read", self.name):
            table = self._open().to_table(columns=["number"], filter=f"id = '{quoted}'")
        numbers = table.column("number").to_numpy()
        if not len(numbers):
            return None
        return int(numbers.min())

    def vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        with _lance_errors("be read", self.name):
            batches = self._open().to_batches(columns=["number", "vector"], batch_size=BLOCK_ROWS)
            for batch in batches:
                yield batch.column("number").to_numpy(), _vectors(batch.column("vector"))

    def index_kind(self) -> str:
        indices = self._open().describe_indices()
        if not indices:
            return "exact"
        return indices[0].index_type

    def close(self) -> None:
        self._data_set = None

    def _matches(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the similarities and numbers (m,) of the rows that Lance finds for one query."""
        nearest = {"column": "vector", "q": query, "k": k, "metric": "cosine", **self._search_options()}
        with _lance_errors("be searched", self.name):
            table = self._open().to_table(columns=["number", "_distance"], nearest=nearest)
        distances = table.column("_distance").to_numpy().astype(np.float64)
        return 1 - distances, table.column("number").to_numpy()

    def _open(self) -> Any:
        if self._data_set is None:
            lance = _import_lance()
            with _lance_errors("be read", self.name):
                self._data_set = lance.dataset(str(self.folder))
        return self._data_set

    def _existing_collection(self) -> Collection | None:
        """Return the collection in the folder; None if it is another folder, or a file."""
        if not (self.folder / "_versions").is_dir():
            return None
        metadata = self._open().schema.metadata or {}
        return Collection.from_json(metadata.get(METADATA_KEY), self.name)

    def _search_options(self) -> dict[str, int]:
        if self.index_kind() == "exact":
            return {}
        partitions = _num_partitions(self._open().count_rows())
        return {"nprobes": max(MIN_PROBES, partitions // PARTITIONS_PER_PROBE), "refine_factor": REFINE_FACTOR}


def _import_lance() -> ModuleType:
    # Otherwise it prints a line when it creates a data set.
    os.environ.setdefault("LANCE_LOG", "error")
    import lance
    import lance.fragment

    return lance


def _schema(collection: Collection) -> Any:
    import pyarrow

    value_type = {"float16": pyarrow.float16(), "float32": pyarrow.float32()}[collection.dtype]
    fields = [
        ("number", pyarrow.int64()),
        ("id", pyarrow.string()),
        ("path", pyarrow.string()),
        ("label", pyarrow.int64()),
        ("class", pyarrow.string()),
        ("vector", pyarrow.list_(value_type, collection.width)),
    ]
    return pyarrow.schema(fields, metadata={METADATA_KEY: collection.to_json().encode()})


def _table(block: StoredRows, schema: Any) -> Any:
    import pyarrow

    values = pyarrow.array(np.ascontiguousarray(block.vectors).reshape(-1))
    vectors = pyarrow.FixedSizeListArray.from_arrays(values, block.vectors.shape[1])
    columns = [block.numbers, block.ids, block.paths, block.labels, block.class_names]
    arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
    return pyarrow.Table.from_arrays([*arrays, vectors], schema=schema)


def _vectors(column: Any) -> NDArray[Any]:
    """Return a column of lists of one length as (b, F)."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _create_index(data_set: Any, collection: Collection) -> None:
    options = {"index_type": "IVF_FLAT"}
    if collection.width % 8 == 0:
        # 8 values a byte; what that loses, ranking the candidates by their stored vectors brings back.
        options = {"index_type": "IVF_PQ", "num_sub_vectors": collection.width // 8}
    data_set.create_index("vector", metric="cosine", num_partitions=_num_partitions(collection.count), **options)


def _num_partitions(count: int) -> int:
    return max(1, count // ROWS_PER_PARTITION)


@contextmanager
def _lance_errors(action: str, name: str, error_class: type[ReptkError] = DataError) -> Iterator[None]:
    """Turn an error of Lance into one with a message of one line; a full disk is left to `explain_write_errors`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ArithmeticError) as cause:
        if is_disk_full(cause):
            raise
        raise error_class(f"{name} cannot {action}: {first_line(cause)[:MAX_REASON_LETTERS]}") from cause
