"""Sub-centre ArcFace: a softmax over angles to the nearest of several learned centers of each class, with a margin."""

import math
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional

from reptk.config.registry import LOSSES
from reptk.losses.arguments import PositiveFloat, check_positive
from reptk.losses.proxies import initial_proxies, proxy_group, similarities

LARGEST_COSINE = 1 - 1e-6
"""Cosines are clamped to this size: the slope of the angle is infinite at 1."""


def subcenter_arcface(z: Tensor, ids: Tensor, centers: Tensor, *, scale: float, margin: float) -> Tensor:
    """Sub-centre ArcFace (Deng et al., ECCV 2020, equation 3); ArcFace (arXiv 1801.07698) with one center.

    With cos(x, c) the largest cosine of row x with a center of class c, theta its angle and y the class of x:

        L_x = -log( exp(s cos(theta_y + m)) / ( exp(s cos(theta_y + m)) + sum_{c != y} exp(s cos(x, c)) ) )

    averaged over the rows with a label. Where theta_y + m exceeds pi, cos(theta_y) - m sin(m) takes the place of
    cos(theta_y + m), as in pytorch-metric-learning, so that the loss rises with the angle everywhere. The authors' code for
    sub-centers (deepinsight/insightface) takes cos(theta_y + m) there, too.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) labels below C; negative for a row without one.
        centers: (C, K, D) of any scale.
        scale: s (64 in the paper).
        margin: m in radians, at least 0 and below pi (0.5 in the paper).

    Returns:
        Scalar in float32 or wider; 0, attached to the graph, if no row has a label.

    Raises:
        ValueError: wrong shapes or types, scale not positive, margin out of range.

    Example:
        >>> import torch
        >>> z = torch.eye(2)
        >>> round(subcenter_arcface(z, torch.tensor([0, 1]), torch.eye(2)[:, None], scale=4.0, margin=0.5).item(), 4)
        0.0295
    """
    check_positive("scale", scale)
    _check_margin(margin)
    num_classes, num_centers, _ = centers.shape
    cosine = similarities(z, ids, centers.flatten(0, 1)).unflatten(1, (num_classes, num_centers)).amax(2)
    has_label = ids >= 0
    labels = ids.long().clamp_min(0)  # those of rows without a label do not count below
    cosine = cosine.clamp(-LARGEST_COSINE, LARGEST_COSINE)
    of_label = cosine.gather(1, labels[:, None])
    # cos(theta + m), without the angle itself.
    with_margin = of_label * math.cos(margin) - (1 - of_label.square()).sqrt() * math.sin(margin)
    beyond_pi = of_label < -math.cos(margin)
    with_margin = torch.where(beyond_pi, of_label - margin * math.sin(margin), with_margin)
    logits = scale * cosine.scatter(1, labels[:, None], with_margin)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return torch.where(has_label, losses, 0.0).sum() / has_label.sum().clamp_min(1)


def _check_margin(margin: float) -> float:
    if not 0 <= margin < math.pi:
        raise ValueError(f"margin is an angle in radians, at least 0 and below pi, got {margin}")
    return margin


@LOSSES.register("subcenter_arcface")
class SubCenterArcFace(nn.Module):
    """Sub-centre ArcFace (Deng et al. 2020), `subcenter_arcface` with its centers: forward(z (N, D), labels (N,)) -> scalar.

    Args:
        num_classes: C, of the data set.
        embedding_dim: D, of the embeddings.
        centers: K, centers of each class; 1 is ArcFace.
        scale: s.
        margin: m in radians; the paper's 0.5 and 64 are for faces, of many classes with small angles.
        lr_scale: factor on the learning rate of the centers. They are not decayed.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        centers: Annotated[int, Ge(1)] = 3,
        scale: PositiveFloat = 64.0,
        margin: Annotated[float, Ge(0), Lt(math.pi)] = 0.5,
        lr_scale: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__()
        self.scale = check_positive("scale", scale)
        self.margin = _check_margin(margin)
        self._lr_scale = lr_scale
        proxies = initial_proxies(num_classes * centers, embedding_dim)
        self.centers = nn.Parameter(proxies.detach().unflatten(0, (num_classes, centers)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [proxy_group(self.centers, self._lr_scale)]

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        return subcenter_arcface(z, ids, self.centers, scale=self.scale, margin=self.margin)
