"""What a store is: an adapter of one collection of vectors in a database, or in a folder in the format of one."""

import importlib.util
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from reptk.core.counts import format_count
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.files import json_text, parse_json

FORMAT = "reptk collection"
VERSION = 1


Dtype = Literal["float16", "float32"]
"""Types of the values of vectors."""

_STORED_TYPES = {"count": int, "width": int, "half": bool, "about": dict}
"""Keys of the JSON that a store holds, as the first version wrote them."""


class Collection(NamedTuple):
    """Metadata of a collection. A store writes it as JSON next to the rows.

    count: how many rows there are.
    width: F, values per vector.
    dtype: of the vectors in the file that they come from; a store may hold them in another one.
    metadata: encoder, preprocessing, data; see `reptk.Embeddings`.
    """

    count: int
    width: int
    dtype: Dtype
    metadata: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the text that a store holds."""
        is_half = self.dtype == "float16"
        values = {"count": self.count, "width": self.width, "half": is_half, "about": self.metadata}
        return json_text({"format": FORMAT, "version": VERSION, **values})

    @classmethod
    def from_json(cls, text: str | bytes | None, name: str) -> "Collection | None":
        """Return what `to_json` wrote; None if this is no such text.

        Args:
            text: what the store holds in the place of the record; None if there is nothing.
            name: of the collection, for messages.

        Raises:
            DataError: it is of a newer reptk, or damaged.
        """
        try:
            record = parse_json(text or "null")
        except ValueError:
            return None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            return None
        if not isinstance(record.get("version"), int) or record["version"] > VERSION:
            raise DataError(f"{name} was written by a newer reptk; update reptk to read it")
        for key, required_type in _STORED_TYPES.items():
            if not isinstance(record.get(key), required_type):
                raise DataError(
                    f"{name} is damaged: its record has no valid {key!r}. Export the embeddings again: --force"
                )
        dtype: Dtype = "float32"
        if record["half"]:
            dtype = "float16"
        return cls(record["count"], record["width"], dtype, record["about"])

    def vector_bytes(self) -> int:
        """Return the size of all vectors in bytes."""
        return self.count * self.width * np.dtype(self.dtype).itemsize

    def describe(self) -> str:
        """Return e.g. `1,000 embeddings of 384 values by vit_small_patch16_224`."""
        text = f"{format_count(self.count, 'embedding')} of {self.width} values"
        encoder = self.metadata.get("encoder")
        if isinstance(encoder, dict) and "backbone" in encoder:
            text += f" by {encoder['backbone']}"
        return text


class StoredRows(NamedTuple):
    """Rows of a collection, column by column.

    numbers: (b,) int64, their numbers in the collection, from 0, each of them once.
    vectors: (b, F) float32 or float16, of unit length.
    ids: one per image; several images may have the same.
    paths: of the images' files, None for an image that is no file.
    labels: (b,) int64, -1 for none.
    class_names: by label; empty for none.
    """

    numbers: NDArray[np.int64]
    vectors: NDArray[Any]
    ids: list[str]
    paths: list[str | None]
    labels: NDArray[np.int64]
    class_names: list[str]

    def in_order(self, numbers: NDArray[np.int64], name: str) -> "StoredRows":
        """Return the rows of these numbers in their order, for stores whose database returns them in any.

        Args:
            numbers: (r,), each of which may occur several times.
            name: of the collection, for the message.

        Raises:
            DataError: one of the numbers is missing.
        """
        position_of = {number: position for position, number in enumerate(self.numbers.tolist())}
        missing = [number for number in numbers.tolist() if number not in position_of]
        if missing:
            raise DataError(f"{name} has no row {missing[0]}")
        positions = [position_of[number] for number in numbers.tolist()]
        return StoredRows(
            numbers,
            self.vectors[positions],
            [self.ids[position] for position in positions],
            [self.paths[position] for position in positions],
            self.labels[positions],
            [self.class_names[position] for position in positions],
        )


class Store(Protocol):
    """An adapter of one collection. Its factory takes the address as the user has written it, and connects to nothing yet.

    Addresses begin with the name of the store and a colon. What is raised is a `ReptkError`, whose message holds no password
    (see `reptk.stores.without_secrets`).
    """

    @abstractmethod
    def write(self, collection: Collection, blocks: Iterable[StoredRows], *, replace: bool) -> None:
        """Create the collection with its rows, and an index if there are enough of them. After an error nothing has changed.

        Args:
            collection: what holds for all rows.
            blocks: the rows. An error may be raised while they are read.
            replace: replace a collection that exists; see `require_new_collection`.

        Raises:
            UsageError: there is a collection of that name, and `replace` is not set, or reptk did not write it.
            EnvironmentProblem: the database cannot be reached, is full, or does not allow it; or a package is missing.
        """

    @abstractmethod
    def read_collection(self) -> Collection:
        """Return what holds for all rows.

        Raises:
            DataError: there is no such collection, or reptk did not write it.
            EnvironmentProblem: the database cannot be reached, or a package is missing.
        """

    @abstractmethod
    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k most similar rows of each query, best first.

        Args:
            queries: (q, F) of unit length.
            k: at most as many as there are rows.

        Returns:
            cosine similarities (q, k), computed from the stored vectors, and numbers of rows (q, k); -inf and -1 at the end
            where the index found fewer.
        """

    @abstractmethod
    def fetch(self, numbers: NDArray[np.int64]) -> StoredRows:
        """Return the rows of these numbers, in their order. Raises DataError if one does not exist."""

    @abstractmethod
    def find(self, image_id: str) -> int | None:
        """Return the first row with this id, None if there is none."""

    @abstractmethod
    def vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield all rows as numbers (b,) and vectors (b, F), block by block, in any order."""

    def index_kind(self) -> str:
        """Return how the collection is searched, e.g. "HNSW", or "exact" if all rows are compared."""
        return "approximate"

    def close(self) -> None:
        """End the connection, if there is one."""


def require_store_package(store: str, module: str, extra: str) -> None:
    """Check that the package of a store is installed, without importing it.

    Args:
        store: what to call it.
        module: of the package.
        extra: of reptk, which installs it.

    Raises:
        EnvironmentProblem: it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise EnvironmentProblem(
            f'{store} needs the package {module}, which is not installed: pip install "reptk[{extra}]"'
        )


def ranked(
    matches: Iterable[tuple[NDArray[np.floating], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the matches of all queries as `Store.search` does, for stores.

    Args:
        matches: of each query the similarities and numbers (m,) of rows, in any order.
        k: the best of these are returned. Equal similarities are in the order of their rows.

    Returns:
        similarities (q, k) and numbers (q, k), with -inf and -1 at the end of a query with fewer matches.
    """
    similarities = [np.empty((0, k), np.float32)]
    numbers = [np.empty((0, k), np.int64)]
    for query_similarities, query_numbers in matches:
        order = np.lexsort((query_numbers, -query_similarities))[:k]
        padding = (0, k - len(order))
        best = query_similarities[order].astype(np.float32)
        similarities.append(np.pad(best, padding, constant_values=-np.inf)[None])
        numbers.append(np.pad(query_numbers[order].astype(np.int64), padding, constant_values=-1)[None])
    return np.concatenate(similarities), np.concatenate(numbers)


def require_collection(name: str, collection: Collection | None, *, exists: bool) -> Collection:
    """Return the metadata of a collection, for stores.

    Args:
        name: of the collection, without a password.
        collection: its metadata; None if it has none of reptk's.
        exists: whether there is anything of that name.

    Raises:
        DataError: there is no such collection, or it has no metadata.
    """
    if not exists:
        raise DataError(f"{name}: there is no such collection. Write it: reptk export EMBEDDINGS --to ADDRESS")
    if collection is None:
        raise DataError(f"{name} was not written by reptk, which does not know what its columns hold")
    return collection


def raise_changed(name: str, difference: str = "") -> NoReturn:
    """Raise the error of a collection that another program has changed.

    Args:
        name: of the collection, without a password.
        difference: what has changed, if that is known, as the end of a sentence.

    Raises:
        DataError: always.
    """
    if difference:
        difference = f": {difference}"
    raise DataError(f"{name} has changed since it was written{difference}. Export the embeddings again: --force")


def require_unchanged(name: str, collection: Collection, count: int, width: int) -> None:
    """Check that a database holds as many vectors, and as wide ones, as its metadata says, for stores.

    Args:
        name: of the collection, without a password.
        collection: what was written.
        count, width: what is there.

    Raises:
        DataError: it does not.
    """
    if (count, width) != (collection.count, collection.width):
        raise_changed(name, f"it holds {count:,} vectors of {width} values, then {collection.describe()}")


def require_new_collection(
    name: str, existing: Collection | None, new: Collection, *, replace: bool, is_taken: bool
) -> None:
    """Check that a collection may be written, for stores.

    Args:
        name: of the collection, without a password.
        existing: the collection of that name; None if there is none, or none of reptk's.
        new: the one to be written.
        replace: whether it may replace one of reptk's.
        is_taken: whether there is anything of that name.

    Raises:
        UsageError: it may not.
    """
    if is_taken and existing is None:
        raise UsageError(f"{name} exists and was not written by reptk, which does not replace it. Choose another name")
    if existing is None or replace:
        return
    width = ""
    if existing.width != new.width:
        width = f"; the new ones have {new.width} values"
    raise UsageError(
        f"{name} exists and holds {existing.describe()}{width}. Choose another name, or replace them by the new ones: --force"
    )
