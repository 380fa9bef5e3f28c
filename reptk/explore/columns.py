"""Columns by which points are colored: class, prediction, error, folder, and what a Parquet file holds besides."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.embeddings import Embeddings
from reptk.evaluate.voting import predict, vote_weights
from reptk.neighbors import search

MAX_CATEGORIES = 1000
"""A column of text with more values is not offered: it is one of names, not of kinds."""

PREDICTION_K = 10
TEMPERATURE = 0.07
"""Of the weights of the votes, as in evaluation."""

MISSING = -1
RIGHT_OR_WRONG = ("right", "wrong")
OTHER_COLUMNS = frozenset(
    {"id", "path", "label", "class", "vector", "file_bytes", "file_mtime_ns", "image", "neighbors"}
    | {"projection_x", "projection_y"}
)
"""Columns of Parquet files that are shown in another way."""


@dataclass
class ColorColumn:
    """A value for each image.

    Args:
        name: what the page calls it.
        kind: "category", whose values are numbers of `categories` or -1, or "number", whose missing values are NaN.
        compute: returns the values (n,), int32 or float32; it is called once, when they are needed.
        categories: names, in order.
        note: what a reader has to know about it.
        is_slow: whether the values take long to compute.
    """

    name: str
    kind: Literal["category", "number"]
    compute: Callable[[], NDArray[Any]]
    categories: Sequence[str] = field(default_factory=list)
    note: str = ""
    is_slow: bool = False

    @cached_property
    def values(self) -> NDArray[Any]:
        """(n,) int32 of a category, float32 of a number."""
        dtype = np.float32
        if self.kind == "category":
            dtype = np.int32
        return np.ascontiguousarray(self.compute(), dtype=dtype)

    @property
    def is_computed(self) -> bool:
        """Whether the values are there already."""
        return "values" in vars(self)

    def text(self, row: int) -> str:
        """Return the value of a row in words; empty if it is missing."""
        value = self.values[row]
        if self.kind == "category":
            if value < 0:
                return ""
            return self.categories[value]
        if np.isnan(value):
            return ""
        return f"{value:g}"


class NeighborVotes:
    """The nearest neighbors of all images, each without itself, and the class for which they vote.

    They are computed when the first of the columns that need them is shown.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings

    @cached_property
    def _neighbors(self) -> tuple[Tensor, Tensor]:
        """Similarities and rows (n, k)."""
        vectors = self._embeddings.vectors
        count = len(vectors)
        itself = torch.arange(count)
        blocks = list(search(vectors, vectors, min(PREDICTION_K, count - 1), itself))
        return torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks])

    def similarity(self) -> NDArray[Any]:
        """Return the similarity (n,) to the nearest image."""
        return self._neighbors[0][:, 0].numpy()

    def prediction(self) -> NDArray[Any]:
        """Return the class (n,) with the most weight among the neighbors that have one; -1 if none has."""
        similarities, rows = self._neighbors
        labels = self._embeddings.labels
        num_classes = int(labels.max()) + 1
        neighbor_labels = labels[rows]
        is_labeled = neighbor_labels >= 0
        weights = vote_weights(similarities, TEMPERATURE) * is_labeled
        votes = predict(neighbor_labels.where(is_labeled, num_classes), weights, [weights.shape[1]], num_classes)
        return votes[0].weighted.where(is_labeled.any(1), MISSING).numpy()

    def error(self) -> NDArray[Any]:
        """Return 1 where the prediction is not the class, 0 where it is, -1 without a class or a prediction."""
        return errors(self._embeddings.labels.numpy(), self.prediction())


def errors(labels: NDArray[Any], predicted: NDArray[Any]) -> NDArray[Any]:
    """Return 1 for each wrong prediction, 0 for a right one, -1 where there is nothing to compare."""
    is_known = (labels >= 0) & (predicted >= 0)
    return np.where(is_known, labels != predicted, MISSING)


def embedding_columns(embeddings: Embeddings) -> list[ColorColumn]:
    """Return the columns of embeddings: of their labels, nearest neighbors, folders and files."""
    columns = []
    votes = NeighborVotes(embeddings)
    can_compare = len(embeddings) > 1
    if is_labeled(embeddings):
        names = class_names(embeddings)
        columns.append(ColorColumn("class", "category", embeddings.labels.numpy, names))
        if can_compare:
            note = f"of the {PREDICTION_K} nearest images, each without itself"
            columns.append(ColorColumn("prediction", "category", votes.prediction, names, note, is_slow=True))
            note = f"the prediction {note}"
            columns.append(ColorColumn("error", "category", votes.error, RIGHT_OR_WRONG, note, is_slow=True))
    columns += _folder_column(embeddings)
    if can_compare:
        columns.append(ColorColumn("similarity to the nearest", "number", votes.similarity, is_slow=True))
    if embeddings.file_stats is not None:
        columns.append(
            ColorColumn("file size (KB)", "number", lambda: embeddings.file_stats[:, 0].double().numpy() / 1000)
        )
    return columns


def is_labeled(embeddings: Embeddings) -> bool:
    """Return whether an image has a class."""
    return bool((embeddings.labels >= 0).any())


def class_names(embeddings: Embeddings) -> list[str]:
    """Return the names of all classes, also of those that have none in the file."""
    num_classes = max(len(embeddings.classes), int(embeddings.labels.max()) + 1)
    return [embeddings.class_name(label) for label in range(num_classes)]


def text_column(name: str, texts: Sequence[str | None]) -> list[ColorColumn]:
    """Return a column of text, with its most frequent value first; none if the texts are names rather than kinds."""
    counts = Counter(text for text in texts if text)
    if not 1 < len(counts) <= MAX_CATEGORIES:
        return []
    categories = [text for text, _ in counts.most_common()]
    number_of = {text: number for number, text in enumerate(categories)}
    codes = np.array([number_of.get(text, MISSING) for text in texts], np.int32)
    return [ColorColumn(name, "category", lambda: codes, categories)]


def _folder_column(embeddings: Embeddings) -> list[ColorColumn]:
    """Return the column of the folders that files are in, unless they are the classes."""
    if embeddings.paths is None:
        return []
    folders = [path.rpartition("/")[0] for path in embeddings.paths]
    if is_labeled(embeddings) and folders == [embeddings.class_of(row) for row in range(len(embeddings))]:
        return []
    return text_column("folder", folders)


def parquet_columns(path: Path) -> tuple[list[ColorColumn], Tensor | None]:
    """Return the further columns of a Parquet file of embeddings, and the positions (n, 2) that it holds, if any."""
    import pyarrow.parquet
    import pyarrow.types as types

    schema = pyarrow.parquet.read_schema(path)
    columns = []
    for field_ in schema:
        if field_.name in OTHER_COLUMNS:
            continue
        is_number = types.is_integer(field_.type) or types.is_floating(field_.type)
        is_text = types.is_string(field_.type) or types.is_large_string(field_.type) or types.is_dictionary(field_.type)
        if not (is_number or is_text or types.is_boolean(field_.type)):
            continue
        if is_number:
            columns.append(ColorColumn(field_.name, "number", partial(_read_numbers, path, field_.name)))
        else:
            columns += text_column(field_.name, _read_texts(path, field_.name))
    return columns, _stored_positions(path, schema.names)


def _read_numbers(path: Path, name: str) -> NDArray[Any]:
    """Return a column (n,) of numbers of a Parquet file; NaN where there is none."""
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(path, columns=[name]).column(0)
    return column.cast(pyarrow.float32(), safe=False).to_numpy()


def _read_texts(path: Path, name: str) -> list[str | None]:
    """Return a column of a Parquet file as texts; None where there is no value."""
    import pyarrow.parquet

    texts: list[str | None] = []
    for value in pyarrow.parquet.read_table(path, columns=[name]).column(0).to_pylist():
        if value is not None:
            value = str(value)
        texts.append(value)
    return texts


def _stored_positions(path: Path, names: Sequence[str]) -> Tensor | None:
    if not {"projection_x", "projection_y"} <= set(names):
        return None
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=["projection_x", "projection_y"])
    axes = [torch.tensor(table.column(f"projection_{axis}").to_pylist(), dtype=torch.float32) for axis in "xy"]
    positions = torch.stack(axes, dim=1)
    if not positions.isfinite().all():
        return None
    return positions
