"""What stands behind the numbers: each query's neighbours, answer and features, kept beside results.json.

`evaluation.safetensors` in a run's folder, or in the folder that `reptk evaluate --out` writes. Images are not kept:
their numbers in the data set's splits are, and results.json says which data set it was (`protocol.data`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError
from reptk.core.files import write_bytes

FILE = "evaluation.safetensors"
MOST_QUERIES = 10_000
NEIGHBOURS = 10


@dataclass(frozen=True)
class Evidence:
    """One encoder's answers to at most `MOST_QUERIES` queries, drawn once for all where there are more.

    Args:
        row: the row of `results["metrics"]` that it belongs to ("trained", "encoder").
        vote: the metric that `predicted` decides, e.g. "knn@20"; empty where there are no labels.
        query_split, bank_split: the attributes of `Data` that the numbers count in ("query", "bank", "train").
        classes: class names, by label.
        numbers: (q,) of the queries in their split.
        labels: (q,) the queries' classes, -1 without one.
        predicted: (q,) the class that the neighbours vote for, -1 without labels.
        confidence: (q,) its share of the votes' weight, 0..1.
        neighbours: (q, n) numbers of the nearest images in the bank's split, best first; n is at most `NEIGHBOURS`.
        similarities: (q, n) their cosine similarities.
        neighbour_labels: (q, n) their classes, -1 without one.
        features: (q, F) the queries' features, float16, unit length.
    """

    row: str
    vote: str
    query_split: str
    bank_split: str
    classes: tuple[str, ...]
    numbers: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    neighbours: Tensor
    similarities: Tensor
    neighbour_labels: Tensor
    features: Tensor

    def save(self, folder: Path) -> Path:
        """Write it into a run's folder."""
        tensors = {name: getattr(self, name).cpu().contiguous().clone() for name in _TENSORS}
        words = {name: getattr(self, name) for name in _WORDS} | {"classes": json.dumps(self.classes)}
        write_bytes(folder / FILE, save(tensors, metadata=words))
        return folder / FILE

    @classmethod
    def load(cls, folder: str | Path) -> "Evidence | None":
        """What lies in a run's folder; None if nothing does.

        Raises:
            DataError: the file is damaged, or its parts do not fit together.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
                words = file.metadata() or {}
            made = cls(classes=tuple(json.loads(words["classes"])), **{name: words[name] for name in _WORDS}, **tensors)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as cause:
            raise DataError(f"{path} is damaged ({cause}); evaluate the run again: reptk evaluate {folder}") from cause
        count, shape = len(made.numbers), made.neighbours.shape
        fits = made.neighbours.ndim == 2 and made.similarities.shape == shape and made.neighbour_labels.shape == shape
        if not fits or any(len(tensors[name]) != count for name in _TENSORS):
            raise DataError(f"{path} is damaged: its tensors differ in length; evaluate the run again")
        return made


_WORDS = ("row", "vote", "query_split", "bank_split")
_TENSORS = (
    "numbers",
    "labels",
    "predicted",
    "confidence",
    "neighbours",
    "similarities",
    "neighbour_labels",
    "features",
)


def sample(count: int, most: int = MOST_QUERIES) -> Tensor:
    """Numbers below `count`, sorted: all of them, or `most` drawn once for all."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=rng.generator("evidence", count))[:most].sort().values
