"""What the page shows: embeddings with an index, pictures and columns, and searches in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from reptk.core.errors import DataError, NumericalError
from reptk.embeddings import Duplicates, Embedder, Embeddings, Index, near_duplicates
from reptk.explore.columns import ColorColumn
from reptk.explore.pictures import Pictures


@dataclass
class ImageCollection:
    """Embeddings that are looked at.

    Args:
        title: what was named on the command line.
        index: their index; it may be approximate.
        pictures: of the images.
        columns: by which points are colored.
        open_embedder: opens the encoder of the embeddings, which raises `ReptkError` if it is gone.
        notes: lines that say what the page shows.
        stored_positions: (n, 2) positions that the file of embeddings holds; None if it holds none.
        device: where the encoder runs.
    """

    title: str
    index: Index
    pictures: Pictures
    columns: list[ColorColumn]
    open_embedder: Callable[[], Embedder]
    notes: list[str] = field(default_factory=list)
    stored_positions: Tensor | None = None
    device: str = "auto"

    def __len__(self) -> int:
        return len(self.index)

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings, with vectors of unit length."""
        return self.index.embeddings

    @cached_property
    def embedder(self) -> Embedder:
        """The encoder of the embeddings, opened when a picture is searched for the first time."""
        return self.open_embedder()

    def neighbors_of_row(self, row: int, k: int) -> tuple[list[int], list[float]]:
        """Return rows and similarities of the k nearest images of one of them, without itself."""
        k = min(k, len(self) - 1)
        if k < 1:
            return [], []
        return self._search(self.index.vectors_of([row]), k, torch.tensor([row]))

    def neighbors_of_picture(self, content: bytes, k: int) -> tuple[list[int], list[float]]:
        """Return rows and similarities of the k images nearest to an image file's content.

        Raises:
            DataError: it is no image, or the encoder has moved or changed.
            NumericalError: its embedding is not finite.
        """
        image = self.embedder.decode_image(content)
        vectors = self.embedder.embed_images(image[None])
        if not vectors.isfinite().all():
            raise NumericalError("the embedding of this picture is not finite")
        if vectors.shape[1] != self.embeddings.width:
            raise DataError("the encoder gives vectors of another width than the embeddings have")
        return self._search(vectors, min(k, len(self)), None)

    def duplicates(self, threshold: float | None) -> Duplicates:
        """Return the near duplicates; of the files, those of near duplicates alone are read."""
        return near_duplicates(self.embeddings, threshold=threshold, device=self.device, read_images=False)

    def _search(self, vectors: Tensor, k: int, exclude: Tensor | None) -> tuple[list[int], list[float]]:
        similarities, rows = self.index.search(vectors, k, exclude)
        is_found = rows[0] >= 0  # an approximate index may find fewer
        return rows[0][is_found].tolist(), similarities[0][is_found].tolist()
