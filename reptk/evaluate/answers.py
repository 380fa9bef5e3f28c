"""Who was answered with what; a sample of it is kept as evidence beside the numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reptk.evaluate.evidence import Evidence, sample
from reptk.neighbors import search


@dataclass(frozen=True)
class Answers:
    """Every query's nearest neighbours and the class that the first k of them vote for.

    `features` (q, F) are the queries', and `numbers` (q,) say which images of their split they are; see `Evidence` for the
    rest. Without labels `k` is 0 and nobody votes.
    """

    k: int
    query_split: str
    bank_split: str
    numbers: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    neighbours: Tensor
    similarities: Tensor
    neighbour_labels: Tensor
    features: Tensor

    @classmethod
    def without_labels(cls, features: Tensor, numbers: Tensor, split: str, nearest: int) -> "Answers":
        """The nearest neighbours of images among themselves."""
        own = torch.arange(len(features))
        parts = list(search(features, features, nearest, own))
        similarities, rows = (torch.cat(blocks) for blocks in zip(*parts, strict=True))
        none, nowhere = torch.full_like(own, -1), torch.full_like(rows, -1)
        return cls(
            0,
            split,
            split,
            numbers,
            none,
            none,
            torch.zeros(len(own)),
            numbers[rows],
            similarities.float(),
            nowhere,
            features,
        )

    def evidence(self, row: str, classes: tuple[str, ...]) -> Evidence:
        """A sample of them for the run's folder."""
        chosen = sample(len(self.numbers))
        return Evidence(
            row=row,
            vote=f"knn@{self.k}" if self.k else "",
            query_split=self.query_split,
            bank_split=self.bank_split,
            classes=classes,
            numbers=self.numbers[chosen],
            labels=self.labels[chosen],
            predicted=self.predicted[chosen],
            confidence=self.confidence[chosen],
            neighbours=self.neighbours[chosen],
            similarities=self.similarities[chosen],
            neighbour_labels=self.neighbour_labels[chosen],
            features=self.features[chosen].half(),
        )
