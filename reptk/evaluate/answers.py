"""Who was answered with what: noted during the search that gives the numbers, kept as evidence beside them."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from reptk.evaluate.evidence import Evidence, sample
from reptk.evaluate.knn import weights, with_none
from reptk.evaluate.mean import Mean
from reptk.evaluate.tally import Labelled
from reptk.neighbours import search


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


class Recorder:
    """Notes answers while neighbours stream by.

    Args:
        bank_labels: (n,) classes of the bank.
        bank_numbers: (n,) what its rows are called in the answers.
        k: neighbours that vote, weighted.
        temperature: of the weights.
        nearest: how many neighbours are kept.
    """

    def __init__(self, bank_labels: Tensor, bank_numbers: Tensor, k: int, temperature: float, nearest: int) -> None:
        self.k, self.temperature = k, temperature
        self._classes = int(bank_labels.max()) + 1
        self.labels, self.numbers = with_none(bank_labels, -1), with_none(bank_numbers, -1)
        self.nearest, self.depth = nearest, max(k, nearest)
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """A block: the queries' classes (b,), their neighbours' similarities and rows (b, depth or more)."""
        given = weights(similarities[:, : self.k], self.temperature)
        scores = torch.zeros(len(labels), self._classes, dtype=given.dtype)
        scores.scatter_add_(1, self.labels[rows[:, : self.k]].clamp_min(0), given)
        best, predicted = scores.max(1)
        self._parts["predicted"].append(predicted)
        self._parts["confidence"].append((best / given.sum(1)).float())
        self._parts["labels"].append(labels)
        self._parts["neighbours"].append(self.numbers[rows[:, : self.nearest]])
        self._parts["similarities"].append(similarities[:, : self.nearest].float())
        self._parts["neighbour_labels"].append(self.labels[rows[:, : self.nearest]])

    def results(self) -> dict[str, Mean]:
        """No numbers: see `answers`."""
        return {}

    def answers(self, given: Labelled, query_split: str, bank_split: str) -> Answers:
        """All that was noted, by all ranks."""
        parts = {name: given.together(torch.cat(blocks)) for name, blocks in self._parts.items()}
        numbers, features = given.together(given.query_numbers), given.together(given.queries)
        return Answers(self.k, query_split, bank_split, numbers, features=features, **parts)
