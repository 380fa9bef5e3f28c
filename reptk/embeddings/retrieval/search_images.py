"""search(): the images of an index that are most similar to a query: an image file, an image of the index, or a vector."""

import warnings
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import distributed
from reptk.core.errors import DataError
from reptk.core.files import sha256_of
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.embedder import Embedder
from reptk.embeddings.retrieval.search_index import ImageRecords, SearchIndex
from reptk.embeddings.retrieval.sharded_search import search_over_ranks
from reptk.embeddings.retrieval.similarity_index import Index
from reptk.embeddings.retrieval.store_index import StoreIndex
from reptk.embeddings.unit_length import with_unit_length
from reptk.models.encoder import Encoder
from reptk.stores import is_address

NO_ROW = -1

SAME_FILE_SIMILARITY = 0.999
"""Neighbors above this similarity are compared with the query's file byte by byte, which reads both files."""

SAME_FILE = "the same file"
SAME_BYTES = "the same bytes"


class Neighbor(NamedTuple):
    """One image that a search returned.

    Args:
        rank: from 1.
        row: in the index.
        id: of the image.
        similarity: cosine similarity to the query.
        label: class name, empty if the image has none.
        path: of its file, None if it is not a file.
        note: `SAME_FILE` or `SAME_BYTES` if it is the query, else empty.
    """

    rank: int
    row: int
    id: str
    similarity: float
    label: str
    path: Path | None
    note: str = ""


class SearchResult(NamedTuple):
    """The neighbors of one query.

    Args:
        query: what to call it: its path, its id, or its number.
        path: of its file, None if it is not a file.
        row: in the index, None if it is not an image of the index.
        neighbors: best first.
    """

    query: str
    path: Path | None
    row: int | None
    neighbors: list[Neighbor]


def search(
    index: str | Path | Index | StoreIndex | Embeddings,
    queries: str | Path | Sequence[str | Path] | Tensor | NDArray = (),
    *,
    ids: Sequence[str] = (),
    k: int = 10,
    encoder: str | Path | Encoder | None = None,
    device: str = "auto",
) -> list[SearchResult]:
    """Return the k most similar images of each query, by cosine similarity.

    On several ranks of a process group each compares its share of an index or file, and all ranks return the same.

    Args:
        index: an index, or embeddings, which are searched exactly; or the path of either, or the address of a store.
        queries: one or several image files, which are encoded as the index was; or vectors (q, F).
        ids: images of the index that are queries, too; they are not among their own neighbors.
        k: how many neighbors; lowered, with a warning, to how many images there are.
        encoder: the encoder itself, or its path if it has moved.
        device: where to encode: auto, cpu, cuda, cuda:N or mps.

    Raises:
        DataError: a query that is no image, an index that is damaged, an encoder that has moved or changed.
        UsageError: an unknown id, or a k below 1.
        EnvironmentProblem: a store that cannot be reached.
    """
    if isinstance(index, str) and is_address(index):
        with closing(StoreIndex.open(index)) as opened:
            return search(opened, queries, ids=ids, k=k, encoder=encoder, device=device)
    index = _open(index)
    rows_of_ids = index.rows_of(ids)
    if isinstance(queries, np.ndarray):
        queries = torch.from_numpy(queries)
    if isinstance(queries, Tensor):
        vectors = _normalize_queries(queries)
        names = [f"query {number}" for number in range(len(queries))]
        paths: list[Path | None] = [None] * len(queries)
    else:
        paths = _existing_images(queries)
        # By one process, since others may have another device, which rounds otherwise.
        vectors = distributed.run_on_main(partial(_embed_files, index, paths, encoder, device))
        names = [str(path) for path in paths]
    if rows_of_ids:
        vectors = torch.cat([vectors, index.vectors_of(rows_of_ids)])
    if not len(vectors):
        return []

    query_rows = [None] * len(names) + rows_of_ids
    names += ids
    paths += [None] * len(ids)
    max_k = len(index)
    # Without ids nothing is excluded, so that k may be as large as the index.
    exclude = None
    if rows_of_ids:
        max_k -= 1
        exclude = torch.tensor([NO_ROW if row is None else row for row in query_rows])
    if k > max_k >= 1:
        warnings.warn(f"k = {k} is more than there is; {max_k} is used instead", stacklevel=2)
        k = max_k
    if isinstance(index, Index):
        similarities, rows = search_over_ranks(index, vectors, k, exclude)
    else:
        similarities, rows = index.search(vectors, k, exclude)
    results = []
    for query, name in enumerate(names):
        neighbors = _neighbors(index.embeddings, paths[query], similarities[query].tolist(), rows[query].tolist())
        results.append(SearchResult(name, paths[query], query_rows[query], neighbors))
    return results


def _open(index: str | Path | Index | StoreIndex | Embeddings) -> SearchIndex:
    if isinstance(index, Index | StoreIndex):
        return index
    if isinstance(index, Embeddings):
        return Index(with_unit_length(index, "these embeddings"))
    return Index.open(index)


def _normalize_queries(vectors: Tensor) -> Tensor:
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise DataError(f"query vectors must be (q, F) floating point, got {vectors.dtype} {tuple(vectors.shape)}")
    # Also false for NaN.
    if not (vectors.norm(dim=1) > 0).all():
        raise DataError("queries hold NaN, or are zero")
    return torch.nn.functional.normalize(vectors.float(), dim=1)


def _existing_images(queries: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the paths of image files.

    Checked before the encoder is opened, which takes a while.

    Raises:
        DataError: one is missing.
    """
    if isinstance(queries, str | Path):
        queries = [queries]
    if not isinstance(queries, Sequence) or not all(isinstance(query, str | Path) for query in queries):
        raise DataError(
            "queries must be files or vectors (q, F); for other images: search(index, encoder.embed(images))"
        )
    paths = [Path(query) for query in queries]
    for path in paths:
        if not path.is_file():
            hint = ""
            if path.is_dir():
                hint = ": it is a folder"
            raise DataError(f"no image {path}{hint}")
    return paths


def _embed_files(
    index: SearchIndex, paths: Sequence[Path], encoder: str | Path | Encoder | None, device: str
) -> Tensor:
    """Return the vectors (q, F) of image files, by the encoder of the index, which may have moved to `encoder`."""
    if not paths:
        return torch.empty(0, index.embeddings.width)
    embedder = Embedder.reopen(index.embeddings.metadata, encoder, device=device)
    return torch.stack([embedder.embed_file(path) for path in paths])


def _neighbors(
    embeddings: ImageRecords, query_path: Path | None, similarities: list[float], rows: list[int]
) -> list[Neighbor]:
    """Return the neighbors of one query, given its results (k,); rows of -1, where an index returned fewer, are left out."""
    neighbors = []
    for rank, (similarity, row) in enumerate(zip(similarities, rows, strict=True), 1):
        if row == NO_ROW:
            continue
        path = embeddings.file(row)
        note = ""
        if query_path is not None and path is not None and similarity > SAME_FILE_SIMILARITY:
            note = _compare_files(query_path, path)
        neighbors.append(Neighbor(rank, row, embeddings.ids[row], similarity, embeddings.class_of(row), path, note))
    return neighbors


def _compare_files(query: Path, other: Path) -> str:
    """Return a note if two files are the same, or hold the same bytes."""
    try:
        if query.samefile(other):
            return SAME_FILE
        # Files of different sizes need not be read.
        same_size = query.stat().st_size == other.stat().st_size
        if same_size and sha256_of(query) == sha256_of(other):
            return SAME_BYTES
    except OSError:  # a file that is gone is not the same
        pass
    return ""
