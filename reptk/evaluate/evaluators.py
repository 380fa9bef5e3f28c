"""The registered evaluators: evaluator(encode, data) -> (name, value) pairs."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, MinLen

from reptk.data import Data, InMemory, Split
from reptk.evaluate.features import Features
from reptk.evaluate.knn import Votes
from reptk.evaluate.retrieval import Ranks
from reptk.evaluate.tally import labelled, tally
from reptk.keyed import generator
from reptk.neighbours import search
from reptk.registry import EVALUATORS

Ks = Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]


@EVALUATORS.register("knn")
class Knn:
    """kNN accuracy, Recall@k, mAP@R and R-precision of the queries in the bank, from one search.

    Args:
        k: neighbours that vote; those beyond the bank's size are lowered to it, with a warning.
        temperature: of the weighted vote.
        recall: Recall@k for these k.
        retrieval: whether Recall@k, mAP@R and R-precision are wanted; mAP@R ranks as deep as the largest class.
    """

    needs_labels = True

    def __init__(
        self,
        k: Ks = (1, 10, 20, 100, 200),
        temperature: Annotated[float, Gt(0)] = 0.07,
        recall: Ks = (1, 5, 10),
        retrieval: bool = True,
    ) -> None:
        self.k, self.temperature, self.recall, self.retrieval = list(k), temperature, list(recall), retrieval

    def __call__(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        yield from self.measure(encode, data, retrieval=self.retrieval)

    def during_training(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        """The votes alone, which need no deep ranking."""
        yield from self.measure(encode, data, retrieval=False)

    def measure(self, encode: Features, data: Data, *, retrieval: bool) -> Iterator[tuple[str, float]]:
        same = data.bank is data.query
        own = torch.arange(len(data.query)) if same else None
        given = labelled(encode(data.bank), data.bank.labels, encode(data.query), data.query.labels, own)
        measures: list[Votes | Ranks] = [
            Votes(given.bank_labels, _within(self.k, given.neighbours()), self.temperature)
        ]
        if retrieval:
            measures.append(Ranks(given.bank_labels, given.relevant(), _within(self.recall, given.neighbours())))
        yield from tally(given, *measures).items()


@EVALUATORS.register("view_retrieval")
class ViewRetrieval:
    """Without any labels: does one random view of an image find its other view among those of all images?

    Args:
        recall: `view_recall@k` for these k: the share of images whose other view is among the first k.
        limit: at most so many images, drawn once for all.
    """

    needs_labels = False

    def __init__(self, recall: Ks = (1, 5), limit: Annotated[int, Ge(2)] = 10_000) -> None:
        self.recall, self.limit = sorted(set(recall)), limit

    def __call__(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        split = _sample(data.train, self.limit)
        k = _within(self.recall, len(split))
        bank, queries = encode.view(split, 0), encode.view(split, 1)
        own = torch.arange(len(split))
        found = torch.cat([rows for _, rows in search(bank, queries, max(k))])
        hits = found == own[:, None]
        for value in k:
            yield f"view_recall@{value}", hits[:, :value].any(1).double().mean().item()


def _within(k: Sequence[int], limit: int) -> list[int]:
    if max(k) > limit:
        warnings.warn(f"k = {max(k)} is more than the bank offers; {limit} is used instead", stacklevel=2)
    return sorted({min(value, limit) for value in k})


def _sample(split: Split, limit: int) -> Split:
    if len(split) <= limit:
        return split
    chosen = torch.randperm(len(split), generator=generator("view_retrieval"))[:limit].sort().values
    return Split(_Subset(split, chosen), split.labels[chosen])


class _Subset:
    def __init__(self, split: Split, chosen: torch.Tensor) -> None:
        self.split, self.chosen = split, chosen
        self.is_grey = isinstance(split.images, InMemory) and split.images.is_grey

    def __len__(self) -> int:
        return len(self.chosen)

    def fetch(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.split.images.fetch(self.chosen[numbers])
