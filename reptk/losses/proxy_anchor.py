"""Proxy-Anchor: every class has a learned proxy, which is the anchor of the images of a batch."""

from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional

from reptk.config.registry import LOSSES
from reptk.losses.arguments import NonNegativeFloat, PositiveFloat, check_not_negative, check_positive
from reptk.losses.proxies import initial_proxies, proxy_group, similarities


def proxy_anchor(z: Tensor, ids: Tensor, proxies: Tensor, *, alpha: float, margin: float) -> Tensor:
    """Proxy-Anchor loss (Kim et al. 2020, arXiv 2003.13911, equation 4).

    With s(x, p) the cosine of row x and proxy p, X+(p) the rows of p's class, X-(p) those of other classes, P all proxies
    and P+ those with a row in the batch:

        1/|P+| sum_{p in P+} log(1 + sum_{x in X+(p)} exp(-alpha (s(x, p) - margin)))
        + 1/|P| sum_{p in P} log(1 + sum_{x in X-(p)} exp(alpha (s(x, p) + margin)))

    Rows without a label belong to no sum.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) labels below C; negative for a row without one.
        proxies: (C, D) of any scale.
        alpha: the scale (32 in the paper).
        margin: delta (0.1 in the paper).

    Returns:
        Scalar in float32 or wider; 0, attached to the graph, if no row has a label.

    Raises:
        ValueError: wrong shapes or types, alpha not positive, negative margin.

    Example:
        >>> import torch
        >>> z = torch.eye(2)
        >>> round(proxy_anchor(z, torch.tensor([0, 1]), torch.eye(2), alpha=32.0, margin=0.1).item(), 4)
        3.24
    """
    check_positive("alpha", alpha)
    check_not_negative("margin", margin)
    similarity = similarities(z, ids, proxies)  # (N, C)
    has_label = (ids >= 0)[:, None]
    classes = torch.arange(len(proxies), device=z.device)
    is_positive = ids[:, None] == classes
    is_negative = ~is_positive & has_label
    positive_sums = _log_one_plus_sum(-alpha * (similarity - margin), is_positive)
    negative_sums = _log_one_plus_sum(alpha * (similarity + margin), is_negative)
    num_present = is_positive.any(0).sum().clamp_min(1)
    return positive_sums.sum() / num_present + negative_sums.sum() / len(proxies)


def _log_one_plus_sum(exponents: Tensor, is_summed: Tensor) -> Tensor:
    """Return log(1 + sum of exp over the marked rows) for each column of (N, C); 0 where none is marked."""
    exponents = exponents.masked_fill(~is_summed, -torch.inf)
    # The 1 as a row of zeros: the sum is never empty, and so neither it nor its gradient is NaN.
    return torch.logsumexp(functional.pad(exponents, (0, 0, 1, 0)), 0)


@LOSSES.register("proxy_anchor")
class ProxyAnchor(nn.Module):
    """Proxy-Anchor (Kim et al. 2020), `proxy_anchor` with the proxies as a parameter: forward(z (N, D), labels (N,)) -> scalar.

    Args:
        num_classes: C, of the data set.
        embedding_dim: D, of the embeddings.
        alpha: the scale.
        margin: delta.
        lr_scale: factor on the learning rate of the proxies (100 in the authors' code). They are not decayed; there, by 1e-4.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        alpha: PositiveFloat = 32.0,
        margin: NonNegativeFloat = 0.1,
        lr_scale: Annotated[float, Gt(0)] = 100.0,
    ) -> None:
        super().__init__()
        self.alpha = check_positive("alpha", alpha)
        self.margin = check_not_negative("margin", margin)
        self._lr_scale = lr_scale
        self.proxies = initial_proxies(num_classes, embedding_dim)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [proxy_group(self.proxies, self._lr_scale)]

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        return proxy_anchor(z, ids, self.proxies, alpha=self.alpha, margin=self.margin)
