"""What can be searched, and which queries can be: an index of a folder, or a collection of a database."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from reptk.core.errors import DataError, UsageError


class RowTexts(Protocol):
    """A text for each row."""

    def __getitem__(self, row: int, /) -> str: ...


class ImageRecords(Protocol):
    """The images of an index by row, with what is shown of each: `Embeddings`, or those fetched from a database."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Encoder, preprocessing, data; see `Embeddings`."""
        ...

    @property
    def ids(self) -> RowTexts:
        """The id of each image."""
        ...

    @property
    def width(self) -> int:
        """F, values per vector."""
        ...

    def file(self, row: int) -> Path | None:
        """Return the path of an image, None if it is not a file."""
        ...

    def class_of(self, row: int) -> str:
        """Return the class name of an image, empty if it has none."""
        ...


class SearchIndex(Protocol):
    """Images that can be searched by cosine similarity: `Index`, or `StoreIndex`."""

    @property
    def embeddings(self) -> ImageRecords:
        """The images, at least those of the last search."""
        ...

    def __len__(self) -> int: ...

    def describe_kind(self) -> str:
        """Return how it is searched, e.g. `Flat (exact)`."""
        ...

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """Return the row of the first image with each of these ids; a number that is no id is the row itself.

        Raises:
            UsageError: there is no such image.
        """
        ...

    def vectors_of(self, rows: Sequence[int]) -> Tensor:
        """Return the vectors (r, F) float32 of rows."""
        ...

    def vector_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all rows as numbers (b,) and vectors (b, F), block by block, in any order."""
        ...

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the k most similar images of each query, best first.

        Args:
            queries: (q, F) of unit length.
            k: how many neighbors.
            exclude: (q,) the row of each query itself, which is not returned; -1 for a query that is no row.

        Returns:
            similarities (q, k) and rows (q, k); the row is -1 where an approximate index returned fewer.

        Raises:
            DataError: queries of another width, or not finite.
            UsageError: k is below 1, or more than there are images.
        """
        ...

    def close(self) -> None:
        """End the connection, if there is one."""
        ...


def check_queries(index: SearchIndex, name: str, queries: Tensor, k: int, exclude: Tensor | None) -> None:
    """Check that queries can be searched in an index; see `SearchIndex.search`.

    Args:
        index: what is searched.
        name: what to call it in messages.
        queries, k, exclude: as `SearchIndex.search` takes them.

    Raises:
        DataError: queries of another width, or not finite.
        UsageError: k is below 1, or more than there are images.
    """
    width = index.embeddings.width
    if queries.ndim != 2 or queries.shape[1] != width:
        raise DataError(
            f"{name} holds embeddings of {width} values, the queries are {tuple(queries.shape)}; they must come from the same "
            "encoder"
        )
    if not queries.isfinite().all():
        raise DataError("queries hold NaN or infinity")
    max_k = len(index)
    if exclude is not None:
        max_k -= 1
    if not 1 <= k <= max_k:
        raise UsageError(f"k must be 1 to {max_k}, which is how many images there are, got {k}")
