"""What the implementations of log-sum-exp share: blocks of rows to compare with, and sums of exponentials over them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

Candidates = Literal["positives", "negatives", "others"]
"""The rows that an anchor is compared with: the other rows of its id, the rows of other ids, or both."""

CANDIDATES: tuple[Candidates, ...] = get_args(Candidates)


class KeyBlock(NamedTuple):
    """Rows that anchors are compared with. The first block of a list is the anchors themselves.

    In the forward pass, and for rows that are never anchors (a queue), `grad_log_sum` and `log_sum` are None.

    Attributes:
        z: (M, D) unit rows.
        group: (M,) number of each row's id.
        grad_log_sum: (T, M) gradient of the loss with respect to the T log-sum-exp of these rows, as anchors.
        log_sum: (T, M) these log-sum-exp.
    """

    z: Tensor
    group: Tensor
    grad_log_sum: Tensor | None
    log_sum: Tensor | None

    def of_sum(self, number: int) -> Self:
        """Return the block with `grad_log_sum` (M,) and `log_sum` (M,) of one of the T sums."""
        if self.grad_log_sum is None:
            return self
        return self._replace(grad_log_sum=self.grad_log_sum[number], log_sum=self.log_sum[number])

    def select(self, index: slice | Tensor) -> Self:
        """Return the rows at `index` of a block `of_sum`."""
        if self.grad_log_sum is None:
            return self._replace(z=self.z[index], group=self.group[index])
        return type(self)(self.z[index], self.group[index], self.grad_log_sum[index], self.log_sum[index])

    def split(self, first: int, count: int) -> tuple[Self, Self]:
        """Return the rows first .. first + count - 1, and all others in their order, with all T sums."""
        stop = first + count
        inside = self._replace(z=self.z[first:stop], group=self.group[first:stop])
        outside = self._replace(z=_cut_out(self.z, first, stop, dim=0), group=_cut_out(self.group, first, stop, dim=0))
        if self.grad_log_sum is None:
            return inside, outside
        grad, log_sum = self.grad_log_sum, self.log_sum
        inside = inside._replace(grad_log_sum=grad[:, first:stop], log_sum=log_sum[:, first:stop])
        outside = outside._replace(
            grad_log_sum=_cut_out(grad, first, stop, dim=1), log_sum=_cut_out(log_sum, first, stop, dim=1)
        )
        return inside, outside


class ExpSum(NamedTuple):
    """The sum of exp(logit_scale * s_ij) over the candidates j of an anchor i.

    `needs_max_shift` says that an exponential may overflow or vanish, so that the largest logit has to be subtracted
    from all of them first.
    """

    logit_scale: float | Tensor
    candidates: Candidates
    needs_max_shift: bool


class LogSums(NamedTuple):
    """What a forward pass returns.

    Attributes:
        log_sum: (T, n) logarithm of every sum for every anchor; minus infinity where there is no candidate.
        expected_similarity: (T, n) mean similarity to the candidates under the softmax of the logits, which is the
            derivative of `log_sum` with respect to `logit_scale`; empty unless requested.
        cache: what makes the backward pass cheaper; may be empty.
    """

    log_sum: Tensor
    expected_similarity: Tensor
    cache: Tensor


def needs_max_shift(logit_scale: float, dtype: torch.dtype) -> bool:
    """Return whether exp(logit_scale * s), for s in -1..1 and summed over any batch, may leave the floating type."""
    # exp(50) is 5e21 and exp(-50) 2e-22: float32 (1e-38 to 3e38) also holds sums of 1e16 of them. exp(600) is 4e260.
    if dtype == torch.float64:
        largest_safe = 600
    else:
        largest_safe = 50
    # Negated, so that NaN needs the shift.
    return not abs(logit_scale) <= largest_safe


def compared_rows(
    rows: KeyBlock, keys: Tensor, group: Tensor, first: int, count: int
) -> tuple[KeyBlock, list[KeyBlock]]:
    """Return this rank's anchors, and all that they are compared with: themselves, the other ranks' rows, the keys.

    Args:
        rows: the N rows of all ranks.
        keys: (K, D) further rows.
        group: (N + K,) of rows and keys.
        first: the first of this rank's rows.
        count: how many they are.
    """
    num_rows = rows.z.shape[0]
    if count == num_rows:
        anchors, key_blocks = rows, [rows]
    else:
        anchors, other_rows = rows.split(first, count)
        key_blocks = [anchors, other_rows]
    if keys.shape[0]:
        key_blocks.append(KeyBlock(keys, group[num_rows:], None, None))
    return anchors, key_blocks


def make_exp_sums(logit_scales: Tensor, candidates: Sequence[int], dtype: torch.dtype) -> list[ExpSum]:
    """Return the sums of T logit scales over candidates, which are positions in `CANDIDATES`."""
    exp_sums = []
    if logit_scales.is_cuda:
        # Reading the values would wait for the GPU; a sum with the shift is correct for any of them.
        for scale, place in zip(logit_scales.to(dtype), candidates, strict=True):
            exp_sums.append(ExpSum(scale, CANDIDATES[place], needs_max_shift=True))
        return exp_sums
    for scale, place in zip(logit_scales.tolist(), candidates, strict=True):
        exp_sums.append(ExpSum(scale, CANDIDATES[place], needs_max_shift(scale, dtype)))
    return exp_sums


def excluded_pairs(anchors: KeyBlock, keys: KeyBlock, candidates: Candidates) -> Tensor | None:
    """Return (n, m) the pairs that are no candidates, judged by groups alone (not i = j); None if there are none."""
    if candidates == "others":
        return None
    same_group = anchors.group[:, None] == keys.group[None, :]
    if candidates == "positives":
        return ~same_group
    return same_group


def _cut_out(values: Tensor, start: int, stop: int, dim: int) -> Tensor:
    before = values.narrow(dim, 0, start)
    after = values.narrow(dim, stop, values.shape[dim] - stop)
    return torch.cat([before, after], dim)
