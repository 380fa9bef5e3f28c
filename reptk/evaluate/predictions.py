"""Per-query predictions: neighbors, voted class and features of every query, saved next to results.json.

`evaluation.safetensors` is in a run's folder, or in the folder that `reptk evaluate --out` writes. It holds no images but their
indices in the splits of the data set, which results.json names (`protocol.data`).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError
from reptk.core.files import parse_json, write_bytes
from reptk.evaluate.neighbor_stream import QueryTable, RetrievalTask, append_sentinel
from reptk.evaluate.voting import predict, vote_weights

FILE = "evaluation.safetensors"

MAX_QUERIES = 10_000
"""Queries in the file; of more, a sample is drawn that is the same for all encoders."""

MAX_NEIGHBORS = 10
"""Neighbors of each query."""

TENSORS = (
    "index",
    "labels",
    "predicted",
    "confidence",
    "neighbors",
    "similarities",
    "neighbor_labels",
    "features",
)
MAX_CLASSES = 1_000_000
MAX_NAME_CHARACTERS = 1000
TEXTS = ("row", "vote", "query_split", "bank_split")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The nearest neighbors of q queries, and the class that they vote for.

    Args:
        row: the row of `results["metrics"]` that they belong to ("trained", "encoder").
        vote: the metric that counts `predicted`, e.g. "knn@20"; empty if there are no labels.
        query_split, bank_split: the attributes of `Data` that indices refer to ("query", "bank", "train").
        classes: class names, by label.
        index: (q,) of the queries in their split.
        labels: (q,) the queries' classes, -1 without one.
        predicted: (q,) the class with the most weight among the neighbors, -1 without labels.
        confidence: (q,) its share of the weight of all neighbors that vote, 0..1.
        neighbors: (q, n) indices of the nearest images in the bank's split, best first; n is at most `MAX_NEIGHBORS`.
        similarities: (q, n) their cosine similarities.
        neighbor_labels: (q, n) their classes, -1 without one.
        features: (q, F) the queries' features, of unit length; float16 in the file.
    """

    row: str = ""
    vote: str
    query_split: str
    bank_split: str
    classes: tuple[str, ...]
    index: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    neighbors: Tensor
    similarities: Tensor
    neighbor_labels: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def sampled(self, row: str, max_queries: int = MAX_QUERIES) -> "Predictions":
        """Return the predictions of at most `max_queries` queries (see `sample_queries`), with the name of their row."""
        chosen = sample_queries(len(self), max_queries)
        sampled = {name: tensor[chosen] for name, tensor in self._tensors().items()}
        return replace(self, row=row, **sampled)

    def save(self, folder: Path) -> Path:
        """Write `evaluation.safetensors` into a folder, atomically."""
        # Cloned, because safetensors refuses tensors that share memory, as `labels` and `predicted` may.
        tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in self._tensors().items()}
        # The report draws a map of them, for which half the file is precise enough.
        tensors["features"] = tensors["features"].half()
        metadata = {name: vars(self)[name] for name in TEXTS}
        metadata["classes"] = json.dumps(self.classes)
        write_bytes(folder / FILE, save(tensors, metadata=metadata))
        return folder / FILE

    @classmethod
    def load(cls, folder: str | Path) -> "Predictions | None":
        """Read `evaluation.safetensors` from a folder; None if there is no such file.

        Raises:
            DataError: the file is damaged, or its tensors do not fit together.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in TENSORS}
                metadata = file.metadata() or {}
            texts = {name: metadata[name] for name in TEXTS}
            # A page repeats each of them many times.
            classes = tuple(str(name)[:MAX_NAME_CHARACTERS] for name in parse_json(metadata["classes"]))
            predictions = cls(classes=classes, **texts, **tensors)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as cause:
            raise DataError(f"{path} is damaged ({cause}); evaluate the run again: reptk evaluate {folder}") from cause
        if not predictions._is_consistent():
            raise DataError(f"{path} is damaged: its tensors do not fit together; evaluate the run again")
        return predictions

    def _tensors(self) -> dict[str, Tensor]:
        return {name: vars(self)[name] for name in TENSORS}

    def _is_consistent(self) -> bool:
        shape = self.neighbors.shape
        if self.neighbors.ndim != 2 or self.similarities.shape != shape or self.neighbor_labels.shape != shape:
            return False
        # Shapes and not lengths, which a tensor without dimensions does not have.
        if not all(tensor.shape[:1] == self.index.shape for tensor in self._tensors().values()):
            return False
        return all(map(_are_classes, (self.labels, self.predicted, self.neighbor_labels)))


def _are_classes(labels: Tensor) -> bool:
    """Whether numbers can be the places of a table with a row for each class, or -1."""
    if labels.dtype != torch.int64:
        return False
    return labels.numel() == 0 or -1 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES


class PredictionCollector:
    """Collects predictions from a stream of neighbors, see `neighbor_stream.accumulate`.

    Args:
        task: the bank and the queries that are searched.
        k: neighbors that vote.
        temperature: of the weights of their votes.
        num_neighbors: neighbors that are stored.
    """

    def __init__(self, task: RetrievalTask, k: int, temperature: float, num_neighbors: int) -> None:
        self.task = task
        self.k = k
        self.temperature = temperature
        self.num_neighbors = num_neighbors
        self.depth = max(k, num_neighbors)
        self._num_classes = int(task.bank_labels.max()) + 1
        # Each table ends with the value of a missing neighbor, whose row is -1.
        self._bank_labels = append_sentinel(task.bank_labels, -1)
        self._vote_labels = append_sentinel(task.bank_labels, self._num_classes)
        self._bank_index = append_sentinel(task.bank_index, -1)
        self._table = QueryTable(len(task.queries))

    def update(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """Add a block: the queries' classes (b,), the similarities and rows (b, depth or more) of their neighbors."""
        weights = vote_weights(similarities[:, : self.k], self.temperature)
        (vote,) = predict(self._vote_labels[rows[:, : self.k]], weights, [self.k], self._num_classes)
        nearest = rows[:, : self.num_neighbors]
        self._table.append(
            {
                "labels": labels,
                "predicted": vote.weighted,
                "confidence": (vote.weight / weights.sum(1)).float(),
                "neighbors": self._bank_index[nearest],
                "similarities": similarities[:, : self.num_neighbors].float(),
                "neighbor_labels": self._bank_labels[nearest],
            }
        )

    def compute(self) -> dict[str, float]:
        """Return no metrics; see `predictions`."""
        return {}

    def predictions(self, query_split: str, bank_split: str, classes: tuple[str, ...]) -> Predictions:
        """Return what was collected, by all ranks."""
        tensors = {name: self.task.all_gather(column) for name, column in self._table.columns.items()}
        return Predictions(
            vote=f"knn@{self.k}",
            query_split=query_split,
            bank_split=bank_split,
            classes=classes,
            index=self.task.all_gather(self.task.query_index),
            features=self.task.all_gather(self.task.queries),
            **tensors,
        )


def sample_queries(count: int, max_queries: int = MAX_QUERIES) -> Tensor:
    """Return sorted indices below `count`: all of them, or `max_queries` of a draw that depends on `count` alone."""
    if count <= max_queries:
        return torch.arange(count)
    # The name of the random stream decides which queries are drawn; another one would make old and new runs incomparable.
    stream = rng.generator("evidence", count)
    return torch.randperm(count, generator=stream)[:max_queries].sort().values
