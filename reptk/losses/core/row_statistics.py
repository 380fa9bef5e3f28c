"""Row statistics: what a contrastive loss needs of a batch.

Every loss of this package is, per anchor, some mean over its positives plus logarithms of weighted sums of exponentials over
its positives P(i), its negatives N(i), or all others A(i). A loss lists the sums as `Term`s. How they are computed, with or
without an N x N matrix, on one rank or many, is decided in `operator.py`.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.losses.core import operator
from reptk.losses.core.key_blocks import Candidates
from reptk.losses.core.normalization import normalize
from reptk.losses.core.positives import Groups

__all__ = ["RowStatistics", "Term", "mean_over_anchors", "normalize"]


class Term(NamedTuple):
    """The sum of `exp(log_weight) * exp(logit_scale * s_ij)` over the candidates j of anchor i, with s_ij = z_i . z_j.

    Attributes:
        candidates: "positives" (same id, not i itself), "negatives" (another id) or "others" (both).
        logit_scale: a number, or a scalar tensor, which gets its gradient; 1 / temperature in most losses.
        log_weight: logarithm of the sum's weight.
    """

    candidates: Candidates
    logit_scale: float | Tensor
    log_weight: float = 0.0


class RowStatistics:
    """Statistics of every row of a batch, as an anchor that is compared with the others.

    Args:
        z: (N, D) embeddings of any scale; they are normalized in float32 or wider. A zero row stays zero and has a
            finite gradient.
        ids: (N,) integers; rows that share an id are positives of each other.
        keys: (K, D) further rows to compare with, e.g. a queue; they are not anchors and get no gradient.
        key_ids: (K,) their ids.

    Raises:
        ValueError: wrong shapes, integer embeddings or floating-point ids.
        NumericalError: on the CPU, when statistics are computed: rows that hold NaN or infinity, named. (On other devices
            the result is NaN, since looking would wait for the device.)
    """

    def __init__(self, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None) -> None:
        check_batch("z", "ids", z, ids)
        if (keys is None) != (key_ids is None):
            raise ValueError("keys and key_ids come together: give both or neither")
        self._z = z
        dtype = torch.promote_types(z.dtype, torch.float32)
        if keys is None or key_ids is None or not len(keys):
            self._keys = z.new_empty(0, z.shape[1], dtype=dtype)
        else:
            check_batch("keys", "key_ids", keys, key_ids)
            if keys.shape[1] != z.shape[1]:
                raise ValueError(f"keys must be as wide as z, got {keys.shape[1]} and {z.shape[1]}")
            # Once for all statistics; z is normalized by the operator, which also returns its gradient.
            with torch.autocast(z.device.type, enabled=False):
                self._keys = normalize(keys.detach()).to(dtype)
            ids = torch.cat([ids.long(), key_ids.long()])
        self._groups = Groups(ids, len(z))

    def positives(self) -> Tensor:
        """Return the (N,) number of positives of each row."""
        return self._groups.num_positives

    def measure(self, *sums: Term | Sequence[Term]) -> tuple[Tensor, ...]:
        """Return (N,) mean similarity to the positives, then the (N,) logarithm of each sum: all from one pass.

        A row without positives has mean 0; a row without a candidate in a sum has minus infinity (without gradient).

        Args:
            sums: each is one term, or several that are added up.
        """
        lists_of_terms = []
        for terms in sums:
            # A Term is a NamedTuple, and so itself a sequence: it has to be checked for first.
            if isinstance(terms, Term):
                lists_of_terms.append([terms])
            else:
                lists_of_terms.append(list(terms))
        means, log_sums = self._compute(lists_of_terms, with_means=True)
        return (means, *log_sums)

    def mean_over_positives(self) -> Tensor:
        """Return the (N,) mean similarity of each row to its positives; 0 for a row without any."""
        means, _ = self._compute([], with_means=True)
        return means

    def log_sum(self, *terms: Term) -> Tensor:
        """Return the (N,) logarithm of the sum of all terms; minus infinity (without gradient) for a row without
        candidates."""
        _, log_sums = self._compute([list(terms)], with_means=False)
        return log_sums[0]

    def _compute(self, sums: list[list[Term]], with_means: bool) -> tuple[Tensor, list[Tensor]]:
        sums = [_merge_complements(terms) for terms in sums]
        all_terms = list(chain.from_iterable(sums))
        log_of_terms, means = operator.row_statistics(
            self._z,
            self._keys,
            self._groups,
            [term.logit_scale for term in all_terms],
            [term.candidates for term in all_terms],
            with_means,
        )
        # The log-sums of all terms follow each other in the order of `sums`.
        unbound = iter(log_of_terms)
        log_sums = []
        for terms in sums:
            weighted = [_add_log_weight(next(unbound), term) for term in terms]
            log_sums.append(_log_sum_exp(weighted))
        return means, log_sums


def mean_over_anchors(values: Tensor, positives: Tensor) -> Tensor:
    """Return the mean of the values (N,) of the rows that have a positive; 0, attached to the graph, if none has.

    Args:
        values: (N,); those of rows without a positive may be infinite or NaN.
        positives: (N,) number of positives of each row, from `RowStatistics.positives`.
    """
    has_positive = positives > 0
    # `where` and not a product with the mask: infinity times 0 is NaN, in the value and in the gradient.
    total = torch.where(has_positive, values, 0.0).sum()
    return total / has_positive.sum().clamp_min(1)


_COMPLEMENT = {"positives": "negatives", "negatives": "positives"}


def _merge_complements(terms: list[Term]) -> list[Term]:
    """Return the same sum in as few terms: positives and negatives of equal scale and weight are all others."""
    merged: list[Term] = []
    for term in terms:
        place = _place_of_complement(merged, term)
        if place is None:
            merged.append(term)
        else:
            merged[place] = merged[place]._replace(candidates="others")
    return merged


def _place_of_complement(terms: list[Term], term: Term) -> int | None:
    for place, other in enumerate(terms):
        if other.candidates == _COMPLEMENT.get(term.candidates) and _have_equal_weights(other, term):
            return place
    return None


def _have_equal_weights(first: Term, second: Term) -> bool:
    if isinstance(first.logit_scale, Tensor) or isinstance(second.logit_scale, Tensor):
        # Comparing values would wait for a GPU.
        has_equal_scale = first.logit_scale is second.logit_scale
    else:
        has_equal_scale = first.logit_scale == second.logit_scale
    return has_equal_scale and first.log_weight == second.log_weight


def _add_log_weight(log_sum: Tensor, term: Term) -> Tensor:
    if not term.log_weight:
        return log_sum
    return log_sum + term.log_weight


def _log_sum_exp(log_sums: list[Tensor]) -> Tensor:
    """Return the (N,) logarithm of the sum of exp over the list.

    Unlike torch.logsumexp, the gradient is not NaN where all are minus infinity.
    """
    if len(log_sums) == 1:
        return log_sums[0]
    stacked = torch.stack(log_sums)
    shift = stacked.detach().amax(0)
    shift = torch.where(shift == -math.inf, 0.0, shift)
    total = torch.exp(stacked - shift).sum(0)
    # Both branches of `where` are differentiated, so the logarithm must not be that of 0.
    is_empty = total == 0
    log_total = torch.log(torch.where(is_empty, 1.0, total))
    return torch.where(is_empty, -math.inf, shift + log_total)


def check_batch(rows_name: str, ids_name: str, rows: Tensor, ids: Tensor) -> None:
    """Check rows (N, D) and their ids (N,), under the names that messages use.

    Raises:
        TypeError, ValueError: they are no such tensors.
    """
    for name, values in ((rows_name, rows), (ids_name, ids)):
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(values).__name__}; torch.as_tensor({name}) makes one")
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
