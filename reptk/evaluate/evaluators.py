"""The registered evaluators: evaluator(encode, data) -> (name, value) pairs.

A value is a float; a `Mean` of one number per labelled query gets an interval, a gain and a column in the table of classes.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, MinLen

from reptk.config.registry import EVALUATORS
from reptk.core import rng
from reptk.data import Data, Split
from reptk.data.protocol import subset
from reptk.evaluate.answers import Answers
from reptk.evaluate.evidence import NEIGHBOURS
from reptk.evaluate.features import Features
from reptk.evaluate.few_shot import few_shot
from reptk.evaluate.knn import Votes
from reptk.evaluate.linear import DECAYS, fit, right
from reptk.evaluate.mean import Mean
from reptk.evaluate.near import EXACT, kind_of, searcher
from reptk.evaluate.recorder import Recorder
from reptk.evaluate.retrieval import Ranks
from reptk.evaluate.tally import Labelled, labelled, shared_out, tally
from reptk.neighbors import search

Ks = Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
Temperature = Annotated[float, Gt(0)]
Temperatures = Temperature | Annotated[tuple[Temperature, ...], MinLen(1)]
Decays = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]


@EVALUATORS.register("knn")
class Knn:
    """kNN accuracy, Recall@k, precision@k, MRR, mAP@R and R-precision of the queries in the bank, from one search.

    Args:
        k: neighbours that vote; those beyond the bank's size are lowered to it, with a warning.
        temperature: of the weighted vote, or several; the numbers of all but the first are called `knn@K,t=T`.
        recall: Recall@k for these k.
        precision: precision@k for these k.
        retrieval: whether Recall@k, precision@k, MRR, mAP@R and R-precision are wanted; mAP@R ranks as deep as the
            largest class.
        index: "Flat": exact; a FAISS factory string ("IVF1024,Flat", "HNSW32", "IVF1024,PQ32") for banks beyond memory or
            patience, or "auto" for the one advised for so many rows. The recall of its neighbours, measured against exact
            search on a sample, stands beside the numbers.
    """

    needs_labels = True

    def __init__(
        self,
        k: Ks = (1, 10, 20, 100, 200),
        temperature: Temperatures = 0.07,
        recall: Ks = (1, 5, 10),
        precision: Ks = (5, 10),
        retrieval: bool = True,
        index: str = EXACT,
    ) -> None:
        self.k, self.recall, self.precision, self.retrieval = list(k), list(recall), list(precision), retrieval
        self.index = index
        self.temperatures = [temperature] if isinstance(temperature, int | float) else list(temperature)

    def __call__(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        yield from self.measure(encode, data, retrieval=self.retrieval, keep=True)

    def during_training(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        """The votes alone, which need no deep ranking; no answers are kept."""
        yield from self.measure(encode, data, retrieval=False, keep=False)

    def measure(self, encode: Features, data: Data, *, retrieval: bool, keep: bool) -> Iterator[tuple[str, float]]:
        given = self._given(encode, data)
        available = given.neighbours()
        k = _within(self.k, available)
        noted = Recorder(
            given.bank_labels, given.bank_numbers, headline_k(k), self.temperatures[0], min(NEIGHBOURS, available)
        )
        measures: list[Votes | Ranks | Recorder] = [noted, Votes(given.bank_labels, k, self.temperatures)]
        if retrieval:
            recall, precision = _within(self.recall, available), _within(self.precision, available)
            relevant = given.relevant()
            largest = int(given.together(relevant).max())
            measures.append(Ranks(given.bank_labels, relevant, recall, precision, largest))
        kind = kind_of(self.index, given.bank)
        find, encode.notes["knn"] = searcher(kind, given.bank, given.queries, noted.k)
        yield from tally(given, *measures, find=find).items()
        if keep:
            encode.answers = noted.answers(given, "query", "bank")

    def _given(self, encode: Features, data: Data) -> Labelled:
        """On several ranks each holds a part of the bank, unless all of it has to go into one index."""
        if self.index == EXACT:
            return shared_out(encode, data, own_rows(data))
        return labelled(encode(data.bank), data.bank.labels, encode(data.query), data.query.labels, own_rows(data))


@EVALUATORS.register("linear")
class LinearProbe:
    """Accuracy of logistic regression on the features, fitted to its optimum; see `reptk.evaluate.linear`.

    Args:
        decays: weights of the regularisation to choose from, by a fifth of the bank that is kept back.
    """

    needs_labels = True

    def __init__(self, decays: Decays = DECAYS) -> None:
        self.decays = decays

    def __call__(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        known, asked = data.bank.labels >= 0, data.query.labels >= 0
        if data.bank is data.query:
            known, asked = _alternate(known)
        probe = fit(encode(data.bank)[known], data.bank.labels[known], decays=self.decays, device=encode.device)
        encode.notes["linear"] = {"decay": probe.decay, "held_out_accuracy": probe.held_out}
        yield "linear", right(probe, encode(data.query)[asked], data.query.labels[asked])


@EVALUATORS.register("few_shot")
class FewShot:
    """Accuracy with a few labelled images a class; see `reptk.evaluate.few_shot`.

    Args:
        shots: images a class.
        draws: how many times they are drawn.
    """

    needs_labels = True

    def __init__(self, shots: Ks = (1, 5, 10), draws: Annotated[int, Ge(1)] = 5) -> None:
        self.shots, self.draws = shots, draws

    def __call__(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        given = (encode(data.bank), data.bank.labels, encode(data.query), data.query.labels)
        yield from few_shot(*given, shots=self.shots, draws=self.draws, exclude=own_rows(data)).items()


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
        yield from self.during_training(encode, data)
        chosen, split = _sample(data.train, self.limit)
        encode.answers = Answers.without_labels(encode(split), chosen, "train", min(NEIGHBOURS, len(split) - 1))

    def during_training(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        """The numbers alone, without the neighbours of the images as they are."""
        _, split = _sample(data.train, self.limit)
        k = _within(self.recall, len(split))
        bank, queries = encode.view(split, 0), encode.view(split, 1)
        own = torch.arange(len(split))
        found = torch.cat([rows for _, rows in search(bank, queries, max(k))])
        hits = found == own[:, None]
        for value in k:
            yield f"view_recall@{value}", Mean(hits[:, :value].any(1).float())


def own_rows(data: Data) -> torch.Tensor | None:
    """(q,) which row of the bank each query is, where the two are the same images; None where they are not."""
    return torch.arange(len(data.query)) if data.bank is data.query else None


def headline_k(k: Sequence[int]) -> int:
    """The number of neighbours whose vote stands for all: 20, or the nearest to it."""
    return min(k, key=lambda value: (abs(value - 20), value))


def _alternate(known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two halves of the labelled rows, every second one: where bank and queries are the same, one half fits, one asks."""
    numbers = known.nonzero()[:, 0]
    fitted, asked = torch.zeros_like(known), torch.zeros_like(known)
    fitted[numbers[::2]], asked[numbers[1::2]] = True, True
    return fitted, asked


def _within(k: Sequence[int], limit: int) -> list[int]:
    if max(k) > limit:
        warnings.warn(f"k = {max(k)} is more than the bank offers; {limit} is used instead", stacklevel=2)
    return sorted({min(value, limit) for value in k})


def _sample(split: Split, limit: int) -> tuple[torch.Tensor, Split]:
    """At most `limit` images, drawn once for all: their numbers, and the split of them."""
    if len(split) <= limit:
        return torch.arange(len(split)), split
    chosen = torch.randperm(len(split), generator=rng.generator("view_retrieval"))[:limit].sort().values
    return chosen, subset(split, chosen)
