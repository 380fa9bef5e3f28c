"""The store my_store: a JSON file of rows, in place of your database.

reptk export photos.safetensors --to my_store:photos.json --plugin my_store.py
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from reptk import STORES
from reptk.stores import Collection, StoredRows, ranked, redacted, require_collection, require_new_collection


@STORES.register("my_store")
class MyStore:
    """my_store:FILE, a collection of vectors in a JSON file.

    Required are `write`, `read_collection`, `search`, `fetch`, `find` and `vectors` of `reptk.stores.Store`. Optional are
    `index_kind()`, which says how it is searched, and `close()`, which ends a connection.

    Args:
        address: as the user has written it. Nothing is connected to here, and messages contain `name`, which has no
            password. A package that is missing is reported by `reptk.stores.require_store_package`.
    """

    def __init__(self, address: str) -> None:
        self.name = redacted(address)
        self.file = Path(address.partition(":")[2])

    def write(self, collection: Collection, blocks: Iterable[StoredRows], *, replace: bool) -> None:
        """Write all rows, or change nothing: reading `blocks` may raise an error."""
        existing = self._existing_collection()
        require_new_collection(self.name, existing, collection, replace=replace, is_taken=self.file.exists())
        rows = []
        for block in blocks:
            columns = (block.ids, block.paths, block.labels.tolist(), block.class_names, block.vectors.tolist())
            rows += zip(block.numbers.tolist(), *columns, strict=True)
        # Readers see the earlier rows until all new ones are there.
        temporary = self.file.with_name(f".{self.file.name}")
        temporary.write_text(json.dumps({"collection": collection.to_json(), "rows": rows}), encoding="utf-8")
        temporary.replace(self.file)

    def read_collection(self) -> Collection:
        """Return the metadata that `write` got. A missing collection is a DataError."""
        return require_collection(self.name, self._existing_collection(), exists=self.file.exists())

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the similarities and numbers (q, k) of the rows that are most similar to each query (q, F) of unit length.

        `ranked` takes the similarities and numbers of each query in any order.
        """
        rows = self._rows()
        return ranked(((rows.vectors @ query, rows.numbers) for query in queries), k)

    def fetch(self, numbers: np.ndarray) -> StoredRows:
        """Return these rows, in their order. A missing row is a DataError."""
        return self._rows().in_order(numbers, self.name)

    def find(self, image_id: str) -> int | None:
        """Return the first row with an id, None if there is none."""
        rows = self._rows()
        numbers = [number for number, row_id in zip(rows.numbers.tolist(), rows.ids, strict=True) if row_id == image_id]
        return min(numbers, default=None)

    def vectors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the numbers (b,) and vectors (b, F) of all rows, block by block, in any order."""
        rows = self._rows()
        yield rows.numbers, rows.vectors

    def index_kind(self) -> str:
        """Return "exact", since all rows are compared."""
        return "exact"

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _existing_collection(self) -> Collection | None:
        """Return the metadata in the file; None if there is no file, or another one."""
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            text = content["collection"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return Collection.from_json(text, self.name)

    def _rows(self) -> StoredRows:
        rows = json.loads(self.file.read_text(encoding="utf-8"))["rows"]
        numbers, ids, paths, labels, class_names, vectors = zip(*rows, strict=True)
        return StoredRows(
            np.array(numbers),
            np.array(vectors, np.float32),
            list(ids),
            list(paths),
            np.array(labels),
            list(class_names),
        )
