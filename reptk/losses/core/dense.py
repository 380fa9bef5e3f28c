"""Log-sum-exp by one n x m matrix: for small batches, and the reference for the other implementations."""

import math

import torch
from torch import Tensor

from reptk.losses.core.key_blocks import ExpSum, KeyBlock, LogSums, excluded_pairs


def forward(anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], with_expectation: bool) -> LogSums:
    """See `Implementation.forward`. The cache is exp(logits) of every sum, or the logits where a sum needs a shift."""
    keys = _all_rows(key_blocks)
    similarity = anchors.z @ keys.T
    # The logits are computed in the cache and, if needed, turned into exponentials there.
    cache = keys.new_empty(len(exp_sums), *similarity.shape)
    log_sums = keys.new_empty(len(exp_sums), similarity.shape[0])
    expected = torch.empty_like(log_sums) if with_expectation else keys.new_empty(0)
    for number, exp_sum in enumerate(exp_sums):
        logits = torch.mul(similarity, exp_sum.logit_scale, out=cache[number])
        logits.fill_diagonal_(-math.inf)  # the first block of keys is the anchors
        if exp_sum.candidates != "others":
            excluded = [excluded_pairs(anchors, block, exp_sum.candidates) for block in key_blocks]
            logits.masked_fill_(torch.cat(excluded, 1), -math.inf)
        if exp_sum.needs_max_shift:
            log_sums[number] = torch.logsumexp(logits, 1)
        else:
            log_sums[number] = logits.exp_().sum(1).log_()
        if with_expectation:
            expected[number] = _expected_similarity(cache[number], similarity, log_sums[number], exp_sum)
    return LogSums(log_sums, expected, cache)


def backward(anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], cache: Tensor) -> Tensor:
    """See `Implementation.backward`."""
    # The weights of all sums are added up, so that one product with the rows is enough.
    weights = None
    for number, exp_sum in enumerate(exp_sums):
        g, lse = _of_all_keys(key_blocks, number)
        h = _gradient_weights(g, lse, len(anchors.z), exp_sum, cache[number])
        if weights is None:
            weights = h
        else:
            weights.add_(h)
    return weights @ _all_rows(key_blocks)


def _expected_similarity(cached: Tensor, similarity: Tensor, log_sum: Tensor, exp_sum: ExpSum) -> Tensor:
    log_sum = log_sum.masked_fill(log_sum == -math.inf, 0.0)[:, None]
    if exp_sum.needs_max_shift:
        softmax = (cached - log_sum).exp_()
    else:
        softmax = cached * (-log_sum).exp()
    return (softmax * similarity).sum(1)


def _gradient_weights(g: Tensor, lse: Tensor, num_anchors: int, exp_sum: ExpSum, cached: Tensor) -> Tensor:
    """Return logit_scale * H of one sum, (n, m); H is defined in `operator.py`.

    Args:
        g, lse: (m,) gradients and log-sums of all keys, of which the first ones are the anchors.
        num_anchors: n.
        exp_sum: the sum.
        cached: (n, m) logits, or their exponentials.
    """
    if exp_sum.needs_max_shift:
        h = (cached - lse[:num_anchors, None]).exp_().mul_(g[:num_anchors, None])
        h += (cached - lse).exp_().mul_(g)
        h *= exp_sum.logit_scale
        return h
    u = (g * exp_sum.logit_scale).mul_(torch.exp(-lse))
    return (u[:num_anchors, None] + u).mul_(cached)


def _of_all_keys(key_blocks: list[KeyBlock], number: int) -> tuple[Tensor, Tensor]:
    """Return the (m,) gradients and log-sums of all keys for one sum; keys that are no anchors (a queue) get weight 0."""
    grads, log_sums = [], []
    for block in key_blocks:
        if block.grad_log_sum is None:
            grads.append(block.z.new_zeros(len(block.z)))
            log_sums.append(block.z.new_full((len(block.z),), math.inf))  # exp(-inf) is 0
        else:
            grads.append(block.grad_log_sum[number])
            log_sums.append(block.log_sum[number])
    if len(key_blocks) == 1:
        return grads[0], log_sums[0]
    return torch.cat(grads), torch.cat(log_sums)


def _all_rows(key_blocks: list[KeyBlock]) -> Tensor:
    if len(key_blocks) == 1:
        return key_blocks[0].z
    return torch.cat([block.z for block in key_blocks])
