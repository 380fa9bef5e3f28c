"""kNN classification: how often the neighbours' classes name the query's own."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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
        by_class = ByClass(votes)
        counts = by_class.so_far((votes < self._classes).double())
        for temperature in self.temperatures:
            given = weights(similarities[:, : self.depth], temperature)
            main = temperature == self.temperatures[0]
            self._vote(labels, votes, by_class.so_far(given), given.cumsum(1), counts if main else None, temperature)

    def results(self) -> dict[str, Mean]:
        """Shares of right answers: `knn@K` (weighted), `knn_majority@K`; `knn@K,t=T` for further temperatures."""
        made = {name: Mean(torch.cat(right).float()) for name, right in self._right.items()}
        return dict(sorted(made.items(), key=lambda item: _by_vote_then_k(item[0])))

    def _vote(
        self, labels: Tensor, votes: Tensor, given: Tensor, total: Tensor, counts: Tensor | None, temperature: float
    ) -> None:
        """Sums only rise, so a class that leads among k stands with its final sum at its last vote."""
        for k in self.k:
            name = f"knn@{k}" if counts is not None else f"knn@{k},t={temperature:g}"
            self._right[name].append(_leading(given[:, :k], votes) == labels)
            if counts is not None:
                # Equal counts are decided by the larger weight, which is scaled to stay below one vote.
                scores = counts[:, :k] + given[:, :k] / (total[:, k - 1, None] + 1)
                self._right[f"knn_majority@{k}"].append(_leading(scores, votes) == labels)


class ByClass:
    """The neighbours (b, k) of each query, brought together by class."""

    def __init__(self, votes: Tensor) -> None:
        count = votes.shape[1]
        # NumPy sorts integers several times as fast as torch; the place travels along.
        keys = np.sort((votes * count + torch.arange(count)).numpy(), axis=1)
        classes = torch.from_numpy(keys // count)
        self._places = torch.from_numpy(keys).sub_(classes * count)
        # 1 where the neighbour 1, 2, 4, ... places before is of the same class
        self._alike: list[Tensor] = []
        while (step := 1 << len(self._alike)) < count and (alike := classes[:, step:] == classes[:, :-step]).any():
            self._alike.append(alike.double())

    def so_far(self, values: Tensor) -> Tensor:
        """(b, k) of each neighbour: the sum of the values of its class up to itself.

        Summed alike for every class, so that classes with the same values have the same sum.
        """
        sums = values.gather(1, self._places)
        room = torch.empty_like(sums)
        for number, alike in enumerate(self._alike):
            step = 1 << number
            room[:, :step] = sums[:, :step]
            torch.addcmul(sums[:, step:], sums[:, :-step], alike, out=room[:, step:])
            sums, room = room, sums
        return room.scatter_(1, self._places, sums)


def _leading(scores: Tensor, votes: Tensor) -> Tensor:
    """(b,) the class with the greatest score (b, k), of equal ones the first."""
    if not len(scores):
        return votes.new_empty(0)
    leads = (scores == scores.amax(1, keepdim=True)).numpy()
    winners = votes.gather(1, torch.from_numpy(leads.argmax(1, keepdims=True)))[:, 0]
    tied = torch.from_numpy(np.count_nonzero(leads, axis=1) > 1)
    if tied.any():
        equal = votes[tied, : scores.shape[1]].masked_fill(~torch.from_numpy(leads)[tied], torch.iinfo(torch.int64).max)
        winners[tied] = equal.amin(1)
    return winners


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
