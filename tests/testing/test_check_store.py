"""check_store: every requirement is violated by a store written for it; tests/stores checks the shipped ones."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.stores import Collection, StoredRows, ranked, require_collection, require_new_collection
from reptk.testing import STORE_REQUIREMENTS, check_store
from violations import assert_each_is_violated, assert_rng_untouched, assert_violates


class MemoryStore:
    """A store in this process. Subclasses violate a requirement."""

    collections: dict[str, tuple[Collection, StoredRows]]

    def __init__(self, address: str) -> None:
        self.name = address

    def __init_subclass__(cls) -> None:
        cls.collections = {}

    @property
    def rows(self) -> StoredRows:
        return self.collections[self.name][1]

    def write(self, collection: Collection, blocks: Iterator[StoredRows], *, replace: bool) -> None:
        existing, _ = self.collections.get(self.name, (None, None))
        require_new_collection(self.name, existing, collection, replace=replace, is_taken=existing is not None)
        columns = [np.concatenate(column) for column in zip(*blocks, strict=True)]
        numbers, vectors, ids, paths, labels, class_names = columns
        rows = StoredRows(numbers, vectors, ids.tolist(), paths.tolist(), labels, class_names.tolist())
        self.collections[self.name] = (collection, rows)

    def read_collection(self) -> Collection:
        collection, _ = self.collections.get(self.name, (None, None))
        return require_collection(self.name, collection, exists=collection is not None)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return ranked(((self.rows.vectors @ query, self.rows.numbers) for query in queries), k)

    def fetch(self, numbers: np.ndarray) -> StoredRows:
        return self.rows.in_order(numbers, self.name)

    def find(self, image_id: str) -> int | None:
        if image_id not in self.rows.ids:
            return None
        return self.rows.ids.index(image_id)

    def vectors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield self.rows.numbers, self.rows.vectors


class Good(MemoryStore):
    pass


class AlwaysThere(MemoryStore):
    def read_collection(self) -> Collection:
        return self.collections[self.name][0]


class KeepsAPart(MemoryStore):
    def write(self, collection: Collection, blocks: Iterator[StoredRows], *, replace: bool) -> None:
        first = next(blocks)
        super().write(collection, iter([first]), replace=replace)
        super().write(collection, iter([first, *blocks]), replace=True)


class HidesErrors(MemoryStore):
    def write(self, collection: Collection, blocks: Iterator[StoredRows], *, replace: bool) -> None:
        try:
            super().write(collection, blocks, replace=replace)
        except UsageError:
            raise
        except Exception:
            pass


class WithoutMetadata(MemoryStore):
    def read_collection(self) -> Collection:
        return super().read_collection()._replace(metadata={})


class AlwaysReplaces(MemoryStore):
    def write(self, collection: Collection, blocks: Iterator[StoredRows], *, replace: bool) -> None:
        super().write(collection, blocks, replace=True)


class NeverReplaces(MemoryStore):
    def write(self, collection: Collection, blocks: Iterator[StoredRows], *, replace: bool) -> None:
        blocks = list(blocks)
        if self.name not in self.collections:
            super().write(collection, blocks, replace=False)
        elif not replace:
            raise UsageError("exists")


class SortsRows(MemoryStore):
    def fetch(self, numbers: np.ndarray) -> StoredRows:
        return super().fetch(np.sort(numbers))


class LeavesOutMissingRows(MemoryStore):
    def fetch(self, numbers: np.ndarray) -> StoredRows:
        return super().fetch(numbers[numbers < len(self.rows.ids)])


class FindsTheLastRow(MemoryStore):
    def find(self, image_id: str) -> int | None:
        rows = [row for row, row_id in enumerate(self.rows.ids) if row_id == image_id]
        return max(rows, default=None)


class GivesDistances(MemoryStore):
    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        similarities, numbers = super().search(queries, k)
        return 1 - similarities, numbers


class YieldsRowsTwice(MemoryStore):
    def vectors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from super().vectors()
        yield from super().vectors()


class RoundsVectors(MemoryStore):
    def fetch(self, numbers: np.ndarray) -> StoredRows:
        rows = super().fetch(numbers)
        return rows._replace(vectors=(rows.vectors * 100).round() / 100)


class RefusesHalfPrecision(MemoryStore):
    def write(self, collection: Collection, blocks: Iterator[StoredRows], *, replace: bool) -> None:
        if collection.dtype == "float16":
            raise UsageError("no float16")
        super().write(collection, blocks, replace=replace)


BROKEN_STORES = {
    "always there": (AlwaysThere, ["read_collection raises a DataError", "write passes on an error"]),
    "keeps a part": (KeepsAPart, ["write passes on an error", ...]),
    "hides errors": (HidesErrors, ["write passes on an error"]),
    "without metadata": (WithoutMetadata, ["read_collection returns the metadata", ...]),
    "always replaces": (AlwaysReplaces, ["write without replace"]),
    "never replaces": (NeverReplaces, ["write with replace", ...]),
    "sorts rows": (SortsRows, ["fetch returns the rows"]),
    "leaves out missing rows": (LeavesOutMissingRows, ["fetch raises a DataError"]),
    "finds the last row": (FindsTheLastRow, ["find returns the first row"]),
    "gives distances": (GivesDistances, ["search returns similarities"]),
    "yields rows twice": (YieldsRowsTwice, ["vectors yields every row once", ...]),
    "rounds vectors": (RoundsVectors, ["fetch returns the rows", "vectors of float16"]),
    "refuses half precision": (RefusesHalfPrecision, ["vectors of float16"]),
}


def test_a_good_store_meets_the_requirements() -> None:
    check_store(Good, "memory:good")
    with pytest.raises(UsageError, match="would replace 60 embeddings"):
        check_store(Good, "memory:good")


@pytest.mark.parametrize("name", BROKEN_STORES)
def test_violations_are_observed(name: str) -> None:
    store, expected = BROKEN_STORES[name]
    assert_violates(expected, STORE_REQUIREMENTS, check_store, store, "memory:broken")


def test_the_random_state_is_untouched() -> None:
    assert_rng_untouched(check_store, SortsRows, "memory:sorted")


def test_every_requirement_is_violated_by_some_store() -> None:
    assert_each_is_violated(STORE_REQUIREMENTS, BROKEN_STORES)


def test_a_store_that_cannot_be_reached_is_not_checked() -> None:
    def unreachable(address: str) -> Callable[[], None]:
        raise EnvironmentProblem("no server")

    with pytest.raises(EnvironmentProblem, match="no server"):
        check_store(unreachable, "memory:unreachable")
