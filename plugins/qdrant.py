"""Qdrant, as an example of a store: https://qdrant.tech.

reptk export photos.safetensors --to qdrant:http://localhost:6333/photos --plugin reptk.plugins.qdrant
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from reptk import STORES
from reptk.core.errors import EnvironmentProblem, UsageError, first_line
from reptk.stores import (
    Collection,
    StoredRows,
    ranked,
    redacted,
    require_collection,
    require_new_collection,
    require_store_package,
    require_unchanged,
    without_secrets,
)

BATCH_ROWS = 1000
"""Points of a request, at most."""

MAX_REQUEST_BYTES = 1 << 24
"""A server takes requests of at most 32 MB."""

BYTES_PER_VALUE = 24
"""Of a float32 as text, with the digits that Python writes, e.g. -0.0012345678901234567, and a comma."""

PAYLOAD_BYTES = 2000
"""Of id, path and class; longer ones have the other half of the 32 MB."""


@STORES.register("qdrant")
class QdrantStore:
    """qdrant:http://HOST:6333/NAME, a collection of a Qdrant server; qdrant:FOLDER/NAME, one in this process, to try it.

    NAME is an alias: a new collection is filled under another name, and the alias is moved when it is complete. A key is taken
    from QDRANT_API_KEY. Points have the payload id, path, label and class.

    Args:
        address: as above; with `:memory:` in place of the folder nothing is written.

    Raises:
        UsageError: there is no name in the address.
        EnvironmentProblem: the package qdrant-client is missing.
    """

    def __init__(self, address: str) -> None:
        self.name = redacted(address)
        self._address = address
        self._location, _, self._alias = address.partition(":")[2].rpartition("/")
        if not self._location or not self._alias:
            raise UsageError(f"{self.name}: needs a server and a name, e.g. qdrant:http://localhost:6333/photos")
        require_store_package("qdrant:", "qdrant_client", "qdrant")
        self._client: Any = None

    def write(self, collection: Collection, blocks: Iterable[StoredRows], *, replace: bool) -> None:
        from qdrant_client import models

        with self._errors("write"):
            old, existing = self._existing_collection()
            is_taken = old is not None or self._connect().collection_exists(self._alias)
            require_new_collection(self.name, existing, collection, replace=replace, is_taken=is_taken)
            new = f"{self._alias}_{secrets.token_hex(8)}"
            datatype = models.Datatype(collection.dtype)
            vectors = models.VectorParams(size=collection.width, distance=models.Distance.COSINE, datatype=datatype)
            client = self._connect()
            client.create_collection(new, vectors_config=vectors, metadata={"reptk": collection.to_json()})
            try:
                for block in blocks:
                    self._upload(new, block)
                changes: list[Any] = []
                if old is not None:
                    changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self._alias)))
                create = models.CreateAlias(collection_name=new, alias_name=self._alias)
                changes.append(models.CreateAliasOperation(create_alias=create))
                client.update_collection_aliases(changes)
            except BaseException:
                client.delete_collection(new)
                raise
            if old is not None:
                client.delete_collection(old)

    def read_collection(self) -> Collection:
        with self._errors("read"):
            name, collection = self._existing_collection()
            collection = require_collection(self.name, collection, exists=name is not None)
            count = self._connect().count(name).count
            width = self._connect().get_collection(name).config.params.vectors.size
        require_unchanged(self.name, collection, count, width)
        return collection

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return ranked((self._matches(query, k) for query in queries), k)

    def fetch(self, numbers: np.ndarray) -> StoredRows:
        ids = numbers.tolist()
        with self._errors("read"):
            points = self._connect().retrieve(self._alias, ids=ids, with_payload=True, with_vectors=True)
        rows = StoredRows(
            np.array([point.id for point in points], np.int64),
            np.array([point.vector for point in points], np.float32),
            [point.payload["id"] for point in points],
            [point.payload["path"] for point in points],
            np.array([point.payload["label"] for point in points], np.int64),
            [point.payload["class"] for point in points],
        )
        return rows.in_order(numbers, self.name)

    def find(self, image_id: str) -> int | None:
        from qdrant_client import models

        condition = models.FieldCondition(key="id", match=models.MatchValue(value=image_id))
        with self._errors("read"):
            # In the order of their numbers.
            points, _ = self._connect().scroll(self._alias, models.Filter(must=[condition]), limit=1)
        if not points:
            return None
        return points[0].id

    def vectors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        offset = None
        while True:
            with self._errors("read"):
                points, offset = self._connect().scroll(
                    self._alias, limit=BATCH_ROWS, offset=offset, with_payload=False, with_vectors=True
                )
            if points:
                vectors = np.array([point.vector for point in points], np.float32)
                yield np.array([point.id for point in points]), vectors
            if offset is None:
                return

    def index_kind(self) -> str:
        if self._is_server:
            return "HNSW"
        return "exact"

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def _is_server(self) -> bool:
        return "://" in self._location

    def _connect(self) -> Any:
        from qdrant_client import QdrantClient

        if self._client is not None:
            return self._client
        if self._is_server:
            self._client = QdrantClient(url=self._location, api_key=os.environ.get("QDRANT_API_KEY"))
        elif self._location == ":memory:":
            self._client = QdrantClient(":memory:")
        else:
            self._client = QdrantClient(path=self._location)
        return self._client

    def _matches(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the similarities and numbers (m,) of the points that Qdrant finds for one query."""
        with self._errors("search"):
            points = self._connect().query_points(self._alias, query=query.tolist(), limit=k).points
        similarities = np.array([point.score for point in points], np.float64)
        return similarities, np.array([point.id for point in points], np.int64)

    def _existing_collection(self) -> tuple[str | None, Collection | None]:
        """Return the name of the collection behind the alias, and what it says; None if there is no such alias."""
        for alias in self._connect().get_aliases().aliases:
            if alias.alias_name == self._alias:
                metadata = self._connect().get_collection(alias.collection_name).config.metadata or {}
                return alias.collection_name, Collection.from_json(metadata.get("reptk"), self.name)
        return None, None

    def _upload(self, name: str, block: StoredRows) -> None:
        from qdrant_client import models

        columns = zip(block.ids, block.paths, block.labels.tolist(), block.class_names, strict=True)
        payloads = [dict(zip(("id", "path", "label", "class"), values, strict=True)) for values in columns]
        width = block.vectors.shape[1]
        batch_rows = min(BATCH_ROWS, MAX_REQUEST_BYTES // (BYTES_PER_VALUE * width + PAYLOAD_BYTES))
        batch_rows = max(1, batch_rows)
        for first in range(0, len(payloads), batch_rows):
            part = slice(first, first + batch_rows)
            batch = models.Batch(
                ids=block.numbers[part].tolist(),
                vectors=block.vectors[part].astype(np.float32).tolist(),
                payloads=payloads[part],
            )
            self._connect().upsert(name, points=batch, wait=True)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn an error of the client into an EnvironmentProblem with one line."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, OSError, RuntimeError, ValueError) as cause:
            reason = without_secrets(first_line(cause), self._address)
            raise EnvironmentProblem(f"cannot {action} {self.name}: {reason}. Is the server running?") from cause
