"""Answers noted during the very search that gives the numbers."""

from collections import defaultdict

import torch
from torch import Tensor

from reptk.evaluate.answers import Answers
from reptk.evaluate.knn import weights, with_none
from reptk.evaluate.mean import Mean
from reptk.evaluate.tally import Labelled


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
