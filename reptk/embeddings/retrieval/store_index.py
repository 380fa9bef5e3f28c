"""StoreIndex: a collection of embeddings in a database, searched like an index of a folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptk.core.errors import UsageError
from reptk.embeddings.retrieval.search_index import check_queries
from reptk.embeddings.unit_length import TOLERANCE
from reptk.stores import Collection, Store, StoredRows, open_store, raise_changed, redacted


class StoredImages:
    """Ids, paths and labels of those images of a collection that have been fetched, by row; see `ImageRecords`.

    Args:
        metadata: encoder, preprocessing, data; see `Embeddings`.
        width: F, values per vector.
    """

    def __init__(self, metadata: Mapping[str, Any], width: int) -> None:
        self.metadata = metadata
        self.width = width
        self.ids: dict[int, str] = {}
        self._paths: dict[int, str | None] = {}
        self._class_names: dict[int, str] = {}

    def add(self, rows: StoredRows) -> None:
        """Remember rows."""
        numbers = rows.numbers.tolist()
        self.ids.update(zip(numbers, rows.ids, strict=True))
        self._paths.update(zip(numbers, rows.paths, strict=True))
        self._class_names.update(zip(numbers, rows.class_names, strict=True))

    def file(self, row: int) -> Path | None:
        """Return the path of an image, None if it is not a file."""
        path = self._paths[row]
        if path is None:
            return None
        return Path(self.metadata.get("root") or ".") / path

    def class_of(self, row: int) -> str:
        """Return the class name of an image, empty if it has none."""
        return self._class_names[row]


class StoreIndex:
    """A collection of a store; see `SearchIndex`.

    Args:
        store: the store.
        collection: what it says of the collection.
        name: its address without a password.
    """

    def __init__(self, store: Store, collection: Collection, name: str) -> None:
        self.store = store
        self.collection = collection
        self.name = name
        self.embeddings = StoredImages(collection.metadata, collection.width)

    @classmethod
    def open(cls, address: str) -> "StoreIndex":
        """Connect to the collection at an address.

        Raises:
            DataError: there is no such collection, or it is none of reptk's.
            UsageError: there is no such store.
            EnvironmentProblem: it cannot be reached, or a package is missing.
        """
        store = open_store(address)
        try:
            return cls(store, store.read_collection(), redacted(address))
        except BaseException:
            store.close()
            raise

    def __len__(self) -> int:
        return self.collection.count

    def describe_kind(self) -> str:
        """Return how it is searched, e.g. `HNSW`."""
        kind = self.store.index_kind()
        if kind == "exact":
            return kind
        return f"{kind} (its recall: reptk index --verify ADDRESS)"

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """Return the row of the first image with each of these ids; a number that is no id is the row itself.

        Raises:
            UsageError: there is no such image.
        """
        rows = []
        for image_id in ids:
            row = self.store.find(image_id)
            if row is None and image_id.isascii() and image_id.isdigit() and int(image_id) < len(self):
                row = int(image_id)
            if row is None:
                raise UsageError(f"no image with the id {image_id!r} among the {len(self):,} of {self.name}")
            rows.append(row)
        return rows

    def vectors_of(self, rows: Sequence[int]) -> Tensor:
        """Return the vectors (r, F) float32 of rows."""
        stored = self._fetch(rows)
        return torch.from_numpy(stored.vectors.astype(np.float32)).view(len(rows), self.collection.width)

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return similarities and rows (q, k) of the most similar images; see `SearchIndex.search`."""
        check_queries(self, self.name, queries, k, exclude)
        requested_k = k
        if exclude is not None:
            requested_k = k + 1  # the query itself may be among them
        similarities, numbers = self.store.search(queries.float().numpy(), requested_k)
        if exclude is not None:
            similarities, numbers = _without(similarities, numbers, exclude.numpy(), k)
        # What the page and the list show of them is fetched at once.
        self._fetch(np.unique(numbers[numbers >= 0]).tolist())
        return torch.from_numpy(similarities), torch.from_numpy(numbers)

    def vector_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all rows as numbers (b,) and vectors (b, F), block by block, in any order.

        Raises:
            DataError: the store returns vectors of another width, or that have not unit length.
        """
        for numbers, vectors in self.store.vectors():
            block = torch.from_numpy(np.array(vectors))  # a copy: Arrow's memory is read-only
            norms = block.float().norm(dim=1)
            if block.shape[1:] != (self.collection.width,) or not bool(((norms - 1).abs() <= 2 * TOLERANCE).all()):
                raise_changed(self.name, "it holds vectors that have not unit length")
            yield torch.from_numpy(np.array(numbers)), block

    def close(self) -> None:
        """End the connection."""
        self.store.close()

    def _fetch(self, rows: Sequence[int]) -> StoredRows:
        stored = self.store.fetch(np.array(rows, np.int64))
        self.embeddings.add(stored)
        return stored


def _without(
    similarities: np.ndarray, numbers: np.ndarray, exclude: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k results (q, k) of each query that are not the query itself."""
    is_self = (numbers == exclude[:, None]) & (numbers >= 0)
    # A stable sort moves the query itself behind all others, and changes nothing else.
    order = np.argsort(is_self, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(numbers, order, 1)
