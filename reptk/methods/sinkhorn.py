"""Sinkhorn-Knopp: assignments of rows to prototypes that use all prototypes equally, over the rows of all ranks."""

import torch
from torch import Tensor

from reptk.core.distributed import all_gather
from reptk.methods.numerics import in_float32_or_wider


@torch.no_grad()
def sinkhorn(scores: Tensor, *, temperature: float, iterations: int = 3) -> Tensor:
    """Return soft assignments (B, K) of this rank's rows, each of which sums to 1.

    exp(scores / temperature) of the rows of all ranks is scaled so that, in turns, each prototype has the same share of all
    rows, and each row sums to 1. After many iterations both hold; after the usual three, the second holds exactly.

    Everything is computed from logarithms, in float32 or wider, so that no temperature overflows. Ranks may have different
    numbers of rows. Each iteration communicates K numbers of every rank.

    Source: SwAV, arXiv 2006.09882, equations 3 to 5 and appendix A.1, where the temperature is epsilon.

    Args:
        scores: (B, K) similarities of the rows of this rank to the prototypes.
        temperature: how soft the assignments are.
        iterations: how many times the sums over rows and over prototypes are normalized.
    """
    log_q = in_float32_or_wider(scores) / temperature
    for _ in range(iterations):
        log_q = log_q - _log_sum_over_all_rows(log_q)
        log_q = log_q.log_softmax(dim=1)
    return log_q.exp()


def _log_sum_over_all_rows(log_q: Tensor) -> Tensor:
    """Return the logarithms (K,) of the sums of exp(log_q) over the rows of all ranks."""
    of_each_rank = all_gather(log_q.logsumexp(dim=0, keepdim=True))
    return of_each_rank.logsumexp(dim=0)
