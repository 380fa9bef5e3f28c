"""How the embeddings lie on the sphere: whether positives are close, and whether the room is used."""

import torch
from torch import Tensor
from torch.nn import functional

MOST_ROWS = 4096


def health(h: Tensor, ids: Tensor | None = None) -> dict[str, float]:
    """Alignment, uniformity, rank and spread of embeddings.

    Args:
        h: (n, F) embeddings of any scale; at most the first `MOST_ROWS` are looked at.
        ids: (n,) rows that share an id (from 0) are positives; -1 for a row without one. Without them there is no alignment.

    Returns:
        `alignment`: mean squared distance between unit rows that share an id; 0 is perfect, 2 is chance.
        `uniformity`: log of the mean Gaussian potential exp(-2 d^2) of all pairs; 0 is collapse, about -4 the best.
        (Both: Wang and Isola 2020, arXiv 2005.10242, alpha = 2, t = 2.)
        `rank`: see `effective_rank`; `dimensions`: the most that it can be, min(n, F).
        `std`: deviation of unit rows over the sample, averaged over dimensions, times sqrt(F): 1 if spread evenly, 0 for
        collapse.
    """
    z = functional.normalize(h[:MOST_ROWS].float(), dim=1)
    squared = (2 - 2 * z @ z.T).clamp_min_(0)
    apart = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    made = {
        "uniformity": squared[apart].mul(-2).exp_().mean().log().item(),
        "rank": effective_rank(z),
        "dimensions": float(min(z.shape)),
        "std": z.std(0, unbiased=False).mean().item() * z.shape[1] ** 0.5,
    }
    if ids is not None:
        ids = ids[:MOST_ROWS].to(z.device)
        positives = (ids[:, None] == ids) & (ids >= 0) & apart
        if positives.any():
            made = {"alignment": squared[positives].mean().item(), **made}
    return made


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of (N, D) embeddings: 1 if all are parallel, at most min(N, D).

    RankMe (Garrido et al. 2023, arXiv 2210.02885); a value that falls towards 1 means collapse.
    """
    values = torch.linalg.svdvals(z.float())
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))
