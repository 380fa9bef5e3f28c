"""search(): the images of an index that are most like a query, which is an image file, one of the index, or a vector."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.errors import DataError
from reptk.embeddings.embedder import Embedder
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.indexing import Index

CLOSE = 0.999
"""From this similarity on it is looked up whether a neighbour is the query's own file."""

SAME_FILE, SAME_BYTES = "the same file", "the same bytes"


class Neighbour(NamedTuple):
    """An image that was found: its rank from 1, number and id in the index, similarity, class, file, and what is odd."""

    rank: int
    number: int
    id: str
    similarity: float
    label: str
    path: Path | None
    note: str = ""


class Answer(NamedTuple):
    """What was found for one query. `path` is its file, `number` its place in the index, if it has either."""

    query: str
    path: Path | None
    number: int | None
    neighbours: list[Neighbour]


def search(
    index: str | Path | Index | Embeddings,
    queries: str | Path | Sequence[str | Path] | Tensor = (),
    *,
    ids: Sequence[str] = (),
    k: int = 10,
    encoder: str | None = None,
) -> list[Answer]:
    """The k most similar images of each query, by cosine similarity.

    Args:
        index: an index, or embeddings, which are searched exactly; or where either lies.
        queries: an image file or several, encoded as the index was; or vectors (q, F).
        ids: images of the index that are queries too; they are not found themselves.
        k: neighbours; lowered, with a warning, to what there is.
        encoder: where the encoder lies now, if it has moved since.

    Raises:
        DataError: a query that is no image, an index that is damaged, an encoder that has moved or changed.
        UsageError: an unknown id, or a k below 1.
    """
    opened = _opened(index)
    numbers = [opened.embeddings.number(name) for name in ids]
    files = [] if isinstance(queries, Tensor) else _files(queries)
    given, names = _vectors(opened, queries, files, encoder)
    vectors = torch.cat([given, *([opened.embeddings.vectors[numbers].float()] if numbers else [])])
    if not len(vectors):
        return []
    own = torch.tensor([-1] * len(names) + numbers)
    wanted = _within(k, len(opened) - bool(numbers))
    similarities, rows = opened.search(vectors, wanted, own if numbers else None)
    made = []
    for place, name in enumerate([*names, *ids]):
        path = files[place] if place < len(files) else None
        number = int(own[place])
        found = [
            neighbour(opened.embeddings, rank, row, similarity, path)
            for rank, (row, similarity) in enumerate(
                zip(rows[place].tolist(), similarities[place].tolist(), strict=True), 1
            )
            if row >= 0
        ]
        made.append(Answer(name, path, number if number >= 0 else None, found))
    return made


def neighbour(of: Embeddings, rank: int, row: int, similarity: float, query: Path | None = None) -> Neighbour:
    """An image of the index, with a note if it is the query's own file."""
    path = of.file(row)
    note = _sameness(query, path) if query is not None and path is not None and similarity > CLOSE else ""
    return Neighbour(rank, row, of.ids[row], similarity, of.class_of(row), path, note)


def _opened(index: str | Path | Index | Embeddings) -> Index:
    if isinstance(index, Embeddings):
        from reptk.embeddings.embeddings import comparable

        return Index(comparable(index, "these embeddings"))
    return index if isinstance(index, Index) else Index.open(index)


def _files(queries: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(queries)] if isinstance(queries, str | Path) else [Path(query) for query in queries]


def _vectors(
    opened: Index, queries: str | Path | Sequence[str | Path] | Tensor, files: list[Path], encoder: str | None
) -> tuple[Tensor, list[str]]:
    """The vectors of the queries that are not of the index, (q, F), and what to call them."""
    if isinstance(queries, Tensor):
        if queries.ndim != 2 or not queries.is_floating_point():
            raise DataError(f"query vectors must be (q, F) floating point, got {queries.dtype} {tuple(queries.shape)}")
        if not (queries.norm(dim=1) > 0).all():
            raise DataError("queries hold NaN, or are zero")
        return torch.nn.functional.normalize(queries.float(), dim=1), [f"query {one}" for one in range(len(queries))]
    if not files:
        return torch.empty(0, opened.embeddings.width), []
    _refuse_missing(files)
    embedder = Embedder.reopen(opened.embeddings.about, encoder)
    return torch.stack([embedder.file(path) for path in files]), [str(path) for path in files]


def _refuse_missing(files: list[Path]) -> None:
    for path in files:
        if not path.is_file():
            raise DataError(f"no image {path}" + (": it is a folder" if path.is_dir() else ""))


def _within(k: int, limit: int) -> int:
    if k > limit >= 1:
        warnings.warn(f"k = {k} is more than there is; {limit} is used instead", stacklevel=3)
        return limit
    return k


def _sameness(query: Path, found: Path) -> str:
    try:
        if query.samefile(found):
            return SAME_FILE
        same = query.stat().st_size == found.stat().st_size and sha256(query) == sha256(found)
    except OSError:
        return ""
    return SAME_BYTES if same else ""


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
