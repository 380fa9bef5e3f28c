"""kNN classification: how often the neighbours' classes name the query's own."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from reptk.core.numba_jit import load_kernels
from reptk.core.threads import parallel_for
from reptk.evaluate.mean import Mean
from reptk.evaluate.tally import labelled, tally


class Votes:
    """Notes who was right for every k and temperature while neighbours stream by.

    Args:
        bank_labels: (n,) classes of the bank.
        k: numbers of neighbours that vote.
        temperatures: of the weights exp(similarity / temperature) in the weighted vote; the first is the main one.
    """

    def __init__(self, bank_labels: Tensor, k: Sequence[int], temperatures: Sequence[float]) -> None:
        if not k or min(k) < 1:
            raise ValueError(f"k must be at least 1, got {list(k)}")
        if not temperatures or not min(temperatures) > 0:
            raise ValueError(f"temperature must be above 0, got {', '.join(map(str, temperatures)) or 'none'}")
        self.k = sorted(set(k))
        self.temperatures = list(dict.fromkeys(temperatures))
        self.depth = self.k[-1]
        self._classes = int(bank_labels.max()) + 1
        self.labels = with_none(bank_labels, self._classes)
        self._right: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, labels: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """A block: the queries' classes (b,), their neighbours' similarities and rows (b, depth or more)."""
        votes = self.labels[rows[:, : self.depth]]
        for temperature in self.temperatures:
            main = temperature == self.temperatures[0]
            given = weights(similarities[:, : self.depth], temperature)
            for k, winners, by_majority in winners_of(votes, given, self.k, self._classes):
                self._right[f"knn@{k}" if main else f"knn@{k},t={temperature:g}"].append(winners == labels)
                if main:
                    self._right[f"knn_majority@{k}"].append(by_majority == labels)

    def results(self) -> dict[str, Mean]:
        """Shares of right answers: `knn@K` (weighted), `knn_majority@K`; `knn@K,t=T` for further temperatures."""
        made = {name: Mean(torch.cat(right).float()) for name, right in self._right.items()}
        return dict(sorted(made.items(), key=lambda item: _by_vote_then_k(item[0])))


def winners_of(votes: Tensor, given: Tensor, ks: Sequence[int], classes: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For rising k: k, the class (b,) with the most weight among k neighbours, and the one with the most votes.

    Args:
        votes: (b, depth) each neighbour's class; `classes` for none.
        given: (b, depth) float64, the weights.
        ks: numbers of neighbours.
        classes: how many there are. Equal numbers of votes are decided by weight; of equals the first class wins.
    """
    native = load_kernels("reptk.evaluate.kernels")
    if native is None:
        yield from _in_a_table(votes, given, ks, classes)
        return
    made = np.empty((2, len(ks), len(votes)), np.int64)
    numbers = votes.numpy(), given.contiguous().numpy(), np.array(ks)
    parallel_for(lambda *ends: native.winners(*numbers, classes, *made, *ends), len(votes))
    yield from zip(ks, *torch.from_numpy(made), strict=True)


def _in_a_table(votes: Tensor, given: Tensor, ks: Sequence[int], classes: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """By torch, in a table of all classes."""
    weighted = torch.zeros(len(given), classes + 1, dtype=torch.float64)
    counts = torch.zeros_like(weighted)
    done = 0
    for k in ks:
        weighted.scatter_add_(1, votes[:, done:k], given[:, done:k])
        counts.scatter_add_(1, votes[:, done:k], torch.ones_like(given[:, done:k]))
        decided = counts + weighted / (weighted.sum(1, keepdim=True) + 1)  # scaled to stay below one vote
        yield k, weighted[:, :classes].argmax(1), decided[:, :classes].argmax(1)
        done = k


def with_none(labels: Tensor, label: int) -> Tensor:
    """Labels of rows, with one more at the end: that of row -1, which is no neighbour."""
    return torch.cat([labels, labels.new_tensor([label])])


def weights(similarities: Tensor, temperature: float) -> Tensor:
    """exp(similarity / temperature) of (b, k) neighbours, float64, scaled so that the nearest one's is 1; of none, 0."""
    return ((similarities - similarities[:, :1]) / temperature).double().exp().nan_to_num_(nan=0.0)


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: Sequence[int] = (1, 10, 20, 100, 200),
    temperature: float | Sequence[float] = 0.07,
    exclude: Tensor | None = None,
) -> dict[str, Mean]:
    """kNN accuracy for every k from one exact search.

    Args:
        bank: (n, F) features; compared by inner product, so give unit rows for cosine similarity.
        bank_labels: (n,) classes; rows with -1 do not vote.
        queries: (q, F) features.
        query_labels: (q,) classes; queries with -1 are passed over.
        k: numbers of neighbours.
        temperature: of the weighted vote (Wu et al. 2018, arXiv 1805.01978; 0.07 is the field's custom), or several.
        exclude: (q,) the row of `bank` that is the query itself, -1 for none: leave-one-out.

    Returns:
        `{"knn@K": weighted, "knn_majority@K": majority}`, shares between 0 and 1 that know their `interval()`; weighted
        votes of the second and further temperatures are called `knn@K,t=0.2`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k outside 1 to the bank's size, no labels.
    """
    search_in = labelled(bank, bank_labels, queries, query_labels, exclude)
    temperatures = [temperature] if isinstance(temperature, int | float) else temperature
    return tally(search_in, Votes(search_in.bank_labels, k, temperatures))


def _by_vote_then_k(name: str) -> tuple[str, str, int]:
    vote, _, rest = name.partition("@")
    k, _, temperature = rest.partition(",")
    return vote, temperature, int(k)
