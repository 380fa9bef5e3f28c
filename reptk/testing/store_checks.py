"""The check of stores."""

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from reptk.config.registry import with_defaults
from reptk.core import rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.stores import Collection, Store, StoredRows
from reptk.testing.requirements import Outcome, Requirement, qualified_name, raise_violations, try_requirements

COUNT, WIDTH = 60, 8
OTHER_WIDTH = 5
BLOCK_ROWS = 25
REPEATED_ID = "twice.png"
REPEATED_ROWS = (7, 3)
K = 5

TOLERANCE = 1e-4
"""Some databases scale vectors of unit length again."""
HALF_TOLERANCE = 2e-3

OpenStore = Callable[[], Store]


class _InterruptedError(Exception):
    """What is raised while rows are read."""


def check_store(factory: Callable[[str], Store], address: str) -> None:
    """Check a store against `STORE_REQUIREMENTS`. It leaves a collection at the address.

    Args:
        factory: the registered class.
        address: of a collection that does not exist yet, e.g. `my_store:folder/check`.

    Raises:
        AssertionError: one line for each violated requirement.
        UsageError: there is a collection at the address, or it is not valid.
        EnvironmentProblem: the store cannot be reached, or a package is missing.

    Example:
        >>> import tempfile
        >>> from reptk.stores import LanceStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_store(LanceStore, f"lance:{folder}/check.lance")
    """
    raise_violations(try_store(factory, address), "a store", qualified_name(factory))


def try_store(factory: Callable[[str], Store], address: str) -> list[Outcome]:
    """Try `STORE_REQUIREMENTS`, and return what came of each; see `check_store`."""

    def open_store() -> Store:
        return with_defaults(factory(address), Store)

    _require_no_collection(open_store)
    with rng.seeded("check_store"):
        return try_requirements(open_store, STORE_REQUIREMENTS)


def _require_no_collection(open_store: OpenStore) -> None:
    try:
        collection = _read_collection(open_store)
    except EnvironmentProblem:
        raise
    except Exception:  # what it raises is the first requirement
        return
    raise UsageError(f"the check would replace {collection.describe()}; choose an address at which nothing is")


def _collection(width: int = WIDTH) -> Collection:
    return Collection(COUNT, width, "float32", {"root": "/photos", "encoder": {"backbone": "vit"}, "größe": [1, 2.5]})


def _rows(width: int = WIDTH, dtype: str = "float32") -> StoredRows:
    """Return rows whose numbers, ids, paths and labels can all be told apart."""
    vectors = np.random.default_rng(width).normal(size=(COUNT, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f'cät/{number}\'s "photo".png' for number in range(COUNT)]
    for row in REPEATED_ROWS:
        ids[row] = REPEATED_ID
    paths: list[str | None] = list(ids)
    labels = np.arange(COUNT) % 3
    class_names = [f"class {label}" for label in labels]
    paths[1], labels[1], class_names[1] = None, -1, ""
    return StoredRows(np.arange(COUNT), vectors.astype(dtype), ids, paths, labels, class_names)


def _blocks(rows: StoredRows) -> Iterator[StoredRows]:
    for first in range(0, COUNT, BLOCK_ROWS):
        yield rows.in_order(rows.numbers[first : first + BLOCK_ROWS], "the check")


def _interrupted_blocks(rows: StoredRows) -> Iterator[StoredRows]:
    yield rows.in_order(rows.numbers[:BLOCK_ROWS], "the check")
    raise _InterruptedError


def _write(open_store: OpenStore, width: int = WIDTH) -> StoredRows:
    """Write the collection of the check in place of an earlier one, and return its rows."""
    rows = _rows(width)
    with closing(open_store()) as store:
        store.write(_collection(width), _blocks(rows), replace=True)
    return rows


def _read_collection(open_store: OpenStore) -> Collection:
    with closing(open_store()) as store:
        return store.read_collection()


def _reads_what_does_not_exist(open_store: OpenStore) -> str | None:
    try:
        collection = _read_collection(open_store)
    except DataError:
        return None
    return f"it gave {collection!r}"


def _leaves_a_part(open_store: OpenStore) -> str | None:
    problem = _hides_an_error(open_store)
    if problem is not None:
        return problem
    problem = _reads_what_does_not_exist(open_store)
    if problem is not None:
        return problem
    _write(open_store)
    problem = _hides_an_error(open_store)
    if problem is not None:
        return problem
    if _read_collection(open_store).width != WIDTH:
        return "the earlier collection is gone"
    with closing(open_store()) as store:
        num_rows = sum(len(numbers) for numbers, _ in store.vectors())
    if num_rows != COUNT:
        return f"the earlier collection has {num_rows} instead of {COUNT} rows"
    return None


def _hides_an_error(open_store: OpenStore) -> str | None:
    with closing(open_store()) as store:
        try:
            store.write(_collection(OTHER_WIDTH), _interrupted_blocks(_rows(OTHER_WIDTH)), replace=True)
        except _InterruptedError:
            return None
    return "write returned, although reading the rows raised an error"


def _forgets_metadata(open_store: OpenStore) -> str | None:
    _write(open_store)
    collection = _read_collection(open_store)
    if collection != _collection():
        return f"it gave {collection!r} instead of {_collection()!r}"
    return None


def _replaces_unasked(open_store: OpenStore) -> str | None:
    _write(open_store)
    with closing(open_store()) as store:
        try:
            store.write(_collection(OTHER_WIDTH), _blocks(_rows(OTHER_WIDTH)), replace=False)
        except UsageError:
            pass
        else:
            return "write returned"
    if _read_collection(open_store) != _collection():
        return "the collection has changed"
    return None


def _does_not_replace(open_store: OpenStore) -> str | None:
    _write(open_store)
    _write(open_store, OTHER_WIDTH)
    width = _read_collection(open_store).width
    if width != OTHER_WIDTH:
        return f"vectors have {width} instead of {OTHER_WIDTH} values"
    return None


def _fetches_other_rows(open_store: OpenStore) -> str | None:
    rows = _write(open_store)
    numbers = np.array([COUNT - 1, 1, 40, REPEATED_ROWS[0], 1])
    expected = rows.in_order(numbers, "the check")
    with closing(open_store()) as store:
        fetched = store.fetch(numbers)
    for name in ("numbers", "ids", "paths", "labels", "class_names"):
        values, expected_values = list(fetched._asdict()[name]), list(expected._asdict()[name])
        if values != expected_values:
            return f"{name} are {values} instead of {expected_values}"
    return _other_vectors(fetched.vectors, expected.vectors, TOLERANCE)


def _other_vectors(vectors: np.ndarray, expected: np.ndarray, tolerance: float) -> str | None:
    if vectors.shape != expected.shape:
        return f"vectors are {vectors.shape} instead of {expected.shape}"
    difference = float(np.abs(vectors.astype(np.float64) - expected.astype(np.float64)).max())
    if difference > tolerance:
        return f"vectors differ by {difference:.3g}"
    return None


def _fetches_missing_rows(open_store: OpenStore) -> str | None:
    _write(open_store)
    with closing(open_store()) as store:
        try:
            store.fetch(np.array([0, COUNT]))
        except DataError:
            return None
    return "fetch returned"


def _finds_other_rows(open_store: OpenStore) -> str | None:
    rows = _write(open_store)
    expected = {rows.ids[0]: 0, rows.ids[40]: 40, REPEATED_ID: min(REPEATED_ROWS), "nobody.png": None, "40": None}
    with closing(open_store()) as store:
        for image_id, number in expected.items():
            row = store.find(image_id)
            if row != number:
                return f"find({image_id!r}) gave {row} instead of {number}"
    return None


def _searches_wrongly(open_store: OpenStore) -> str | None:
    rows = _write(open_store)
    query_numbers = np.array([50, 2, 11])
    with closing(open_store()) as store:
        similarities, numbers = store.search(rows.vectors[query_numbers], K)
    if similarities.shape != (3, K) or numbers.shape != (3, K):
        return f"the shapes are {similarities.shape} and {numbers.shape} instead of (3, {K})"
    if similarities.dtype != np.float32 or numbers.dtype != np.int64:
        return f"the types are {similarities.dtype} and {numbers.dtype} instead of float32 and int64"
    if numbers[:, 0].tolist() != query_numbers.tolist():
        return f"the first rows of {query_numbers.tolist()} are {numbers[:, 0].tolist()} instead of these themselves"
    if (np.diff(similarities, axis=1) > 0).any():
        return "similarities are not in descending order"
    for query, number in enumerate(query_numbers.tolist()):
        is_row = numbers[query] >= 0
        if not np.isneginf(similarities[query][~is_row]).all():
            return "the similarity of -1, which is no row, is not -inf"
        cosines = rows.vectors[numbers[query][is_row]] @ rows.vectors[number]
        if np.abs(similarities[query][is_row] - cosines).max() > TOLERANCE:
            return f"it gave {similarities[query].tolist()} for cosine similarities of {cosines.tolist()}"
    return None


def _yields_other_vectors(open_store: OpenStore) -> str | None:
    rows = _write(open_store)
    numbers, vectors = [], []
    with closing(open_store()) as store:
        for block_numbers, block_vectors in store.vectors():
            numbers.append(block_numbers)
            vectors.append(block_vectors)
    all_numbers = np.concatenate(numbers)
    if sorted(all_numbers.tolist()) != list(range(COUNT)):
        return f"the numbers are {sorted(all_numbers.tolist())}"
    return _other_vectors(np.concatenate(vectors), rows.vectors[all_numbers], TOLERANCE)


def _loses_half_precision(open_store: OpenStore) -> str | None:
    rows = _rows(dtype="float16")
    collection = _collection()._replace(dtype="float16")
    with closing(open_store()) as store:
        store.write(collection, _blocks(rows), replace=True)
    if _read_collection(open_store).dtype != "float16":
        return "read_collection says float32"
    with closing(open_store()) as store:
        fetched = store.fetch(rows.numbers)
    return _other_vectors(fetched.vectors, rows.vectors, HALF_TOLERANCE)


STORE_REQUIREMENTS = (
    Requirement(
        "read_collection raises a DataError where there is no collection",
        _reads_what_does_not_exist,
        "A search at a wrong address ends in a traceback.",
    ),
    Requirement(
        "write passes on an error that is raised while rows are read, and changes nothing then",
        _leaves_a_part,
        "A part of the images is taken for all of them, or an interrupted export has destroyed the collection before it.",
    ),
    Requirement(
        "read_collection returns the metadata that were written",
        _forgets_metadata,
        "Images cannot be queries, since the encoder is not known.",
    ),
    Requirement(
        "write without replace raises a UsageError where there is a collection",
        _replaces_unasked,
        "A collection is lost by a wrong address.",
    ),
    Requirement(
        "write with replace replaces a collection, also by one of another width",
        _does_not_replace,
        "After an export with --force the old images are searched.",
    ),
    Requirement(
        "fetch returns the rows of these numbers, in their order, with all columns",
        _fetches_other_rows,
        "A result shows the name, the file or the class of another image.",
    ),
    Requirement(
        "fetch raises a DataError if a row does not exist",
        _fetches_missing_rows,
        "A collection that has changed gives wrong results instead of a message.",
    ),
    Requirement(
        "find returns the first row with an id, and None if there is none",
        _finds_other_rows,
        "A search by --id compares with another image.",
    ),
    Requirement(
        "search returns similarities (q, k) float32, best first, and numbers (q, k) int64 of the most similar rows",
        _searches_wrongly,
        "Neighbors are shown in a wrong order, or with wrong similarities.",
    ),
    Requirement(
        "vectors yields every row once",
        _yields_other_vectors,
        "The recall that `reptk index --verify` measures is wrong.",
    ),
    Requirement(
        "vectors of float16 are stored, within rounding",
        _loses_half_precision,
        "Embeddings that were written with --half cannot be exported.",
    ),
)
"""What a store must do."""
