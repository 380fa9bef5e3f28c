"""Row statistics: what a contrastive loss needs to know about a batch, written once for all of them.

Every loss here is, per anchor, some mean over its positives plus logarithms of weighted sums of exponentials over its
positives P(i), its negatives N(i), or all others A(i). A loss writes down which sums it wants as `Term`s; how they are
computed, with or without an N x N matrix, on one rank or on many, is the business of `operator.py`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reptk.losses.core import operator
from reptk.losses.core.operator import normalize

__all__ = ["RowStatistics", "Term", "mean_over_anchors", "normalize"]


class Term(NamedTuple):
    """`exp(log_weight) * sum_j exp(slope * s_ij)` over the given rows j, where s_ij = z_i . z_j.

    `over`: "positives" (same id, not i itself), "negatives" (another id) or "others" (both). A slope that is a scalar
    tensor gets its gradient.
    """

    over: Literal["positives", "negatives", "others"]
    slope: float | Tensor
    log_weight: float = 0.0


class RowStatistics:
    """Unit rows and who is whose positive.

    Args:
        z: (N, D) embeddings of any scale; they are normalised in float32 or wider. A zero row stays zero and has a
            finite gradient.
        ids: (N,) integers; rows that share an id are positives of each other.
        keys: (K, D) further rows to compare with, e.g. a queue; they are no anchors and get no gradient.
        key_ids: (K,) their ids.

    Raises:
        ValueError: wrong shapes, integer embeddings or floating-point ids.
        NumericalError: on the CPU, when a sum is asked for: rows that hold NaN or infinity, named. (On other devices
            the answer is NaN, since looking would wait for the device.)
    """

    def __init__(self, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None) -> None:
        _check("z", "ids", z, ids)
        if (keys is None) != (key_ids is None):
            raise ValueError("keys and key_ids come together: give both or neither")
        self._z = z
        dtype = torch.promote_types(z.dtype, torch.float32)
        if keys is None or key_ids is None or not len(keys):
            self._keys = z.new_empty(0, z.shape[1], dtype=dtype)
        else:
            _check("keys", "key_ids", keys, key_ids)
            if keys.shape[1] != z.shape[1]:
                raise ValueError(f"keys must be as wide as z, got {keys.shape[1]} and {z.shape[1]}")
            with torch.autocast(z.device.type, enabled=False):
                self._keys = normalize(keys.detach()).to(dtype)
            ids = torch.cat([ids.long(), key_ids.long()])
        self._groups = operator.Groups(ids, len(z))

    def positives(self) -> Tensor:
        """(N,) how many positives each row has."""
        return self._groups.positives

    def measure(self, *sums: Term | Sequence[Term]) -> tuple[Tensor, ...]:
        """(N,) mean similarity to the positives, then (N,) the logarithm of each sum of terms: all from one pass.

        A row without positives has mean 0, a row without a member in a sum minus infinity (without gradient).
        """
        return self._measure([[each] if isinstance(each, Term) else list(each) for each in sums], mean=True)

    def mean_over_positives(self) -> Tensor:
        """(N,) mean similarity of each row to its positives; 0 for a row without any."""
        return self._measure([], mean=True)[0]

    def log_sum(self, *terms: Term) -> Tensor:
        """(N,) logarithm of the sum of all terms; minus infinity (without gradient) for a row that has no member."""
        return self._measure([list(terms)], mean=False)[1]

    def _measure(self, sums: list[list[Term]], mean: bool) -> tuple[Tensor, ...]:
        sums = [_merged(terms) for terms in sums]
        flat = [(term.slope, term.over) for terms in sums for term in terms]
        log_sums, means = operator.row_statistics(self._z, self._keys, self._groups, flat, mean)
        parts = iter(log_sums)
        return (means, *(_log_sum_exp([_weighted(next(parts), term) for term in terms]) for terms in sums))


def mean_over_anchors(values: Tensor, positives: Tensor) -> Tensor:
    """Mean of the values of the rows that have a positive; 0, still attached to the graph, if there is none."""
    has_positive = positives > 0
    total = torch.where(has_positive, values, 0.0).sum()
    return total / has_positive.sum().clamp_min(1)


def _merged(terms: list[Term]) -> list[Term]:
    """The same sum in as few terms: positives and negatives of one slope and weight are together all others."""
    rest, merged = list(terms), []
    while rest:
        term = rest.pop(0)
        other_half = {"positives": "negatives", "negatives": "positives"}.get(term.over)
        for candidate in rest:
            if candidate.over == other_half and _alike(candidate, term):
                rest.remove(candidate)
                term = term._replace(over="others")
                break
        merged.append(term)
    return merged


def _alike(one: Term, other: Term) -> bool:
    tensors = isinstance(one.slope, Tensor) or isinstance(other.slope, Tensor)
    same_slope = one.slope is other.slope if tensors else one.slope == other.slope
    return same_slope and one.log_weight == other.log_weight


def _weighted(log_sum: Tensor, term: Term) -> Tensor:
    return log_sum + term.log_weight if term.log_weight else log_sum


def _log_sum_exp(parts: list[Tensor]) -> Tensor:
    """(N,) log of the sum of exp; unlike torch.logsumexp, no NaN in the gradient where all are minus infinity."""
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(parts)
    top = stacked.detach().amax(0)
    top = torch.where(top == -math.inf, 0.0, top)
    total = torch.exp(stacked - top).sum(0)
    empty = total == 0
    return torch.where(empty, -math.inf, top + torch.log(torch.where(empty, 1.0, total)))


def _check(rows_name: str, ids_name: str, rows: Tensor, ids: Tensor) -> None:
    if rows.ndim != 2 or ids.ndim != 1 or len(rows) != len(ids):
        raise ValueError(
            f"a loss takes {rows_name} (N, D) and {ids_name} (N,), got {tuple(rows.shape)} and {tuple(ids.shape)}"
        )
    if not rows.numel():
        raise ValueError(f"{rows_name} is empty: {tuple(rows.shape)}")
    if not rows.is_floating_point():
        raise ValueError(f"{rows_name} must be floating point, got {rows.dtype}")
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"{ids_name} must be integers, got {ids.dtype}")
