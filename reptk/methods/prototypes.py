"""Prototypes: directions that embeddings are compared with, and the cross-entropy between assignments of several views."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reptk.core.distributed import all_reduce_mean
from reptk.losses import normalize
from reptk.methods.protocol import Step


class Prototypes(nn.Module):
    """Scores of embeddings: their cosines to K prototypes, which are trained.

    It is the last layer of DINO's head, a linear layer with weight normalization on embeddings of unit length, and SwAV's
    layer of prototypes. Scores are computed outside of autocast, in float32 or wider.

    Args:
        count: K.
        dim: D, the width of the embeddings.

    Attributes:
        weight: (K, D) prototypes of any length other than 0. They begin as random directions of unit length.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(torch.randn(count, dim), dim=1))
        self._weight_before: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        """Return scores (N, K) of embeddings (N, D) of any length."""
        with torch.autocast(z.device.type, enabled=False):
            unit = normalize(z)
            return unit @ normalize(self.weight).to(unit.dtype).T

    def save_if_frozen(self, step: Step, frozen_epochs: float) -> None:
        """Call it in `Method.forward`: store the prototypes of a step in which they are frozen, for `restore`."""
        self._weight_before = None
        if is_frozen(step, frozen_epochs):
            self._weight_before = self.weight.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Call it in `Method.after_step`: undo what the optimizer has done to frozen prototypes.

        They get a gradient all the same, so that DDP does not wait for it, and the optimizer has its averages when they are
        trained.
        """
        if self._weight_before is not None:
            self.weight.copy_(self._weight_before)
            self._weight_before = None

    @torch.no_grad()
    def normalize_(self) -> None:
        """Set the prototypes to unit length, which changes no score."""
        self.weight.copy_(functional.normalize(self.weight, dim=1))


def is_frozen(step: Step, frozen_epochs: float) -> bool:
    """Return whether prototypes are frozen in a step: in the first epochs of the run."""
    return step.epoch < frozen_epochs


def swapped_cross_entropy(assignments: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return the mean cross-entropy between the assignment of one view and the probabilities of another view of the image.

    The mean is over all images, and over all pairs of a view with an assignment and another view.

    Sources: DINO, arXiv 2104.14294, equation 3; SwAV, arXiv 2006.09882, equation 1 and section 3.2 (multi-crop).

    Args:
        assignments: (G, B, K) of the first G views; each row sums to 1.
        log_probabilities: (V, B, K) of all views.
    """
    num_assigned, num_images, _ = assignments.shape
    num_views = len(log_probabilities)
    with torch.autocast(assignments.device.type, enabled=False):  # else the products would be in half precision
        cross_entropy = -torch.einsum("gbk,vbk->gv", assignments, log_probabilities) / num_images
    is_other_view = ~torch.eye(num_assigned, num_views, dtype=torch.bool, device=assignments.device)
    return (cross_entropy * is_other_view).sum() / (num_assigned * (num_views - 1))


class AssignmentEntropies(NamedTuple):
    """Entropies of assignments in nats, as scalar tensors.

    of_views: mean over the views; log K where each view belongs to all prototypes equally, 0 where to one of them.
    of_mean: that of the mean assignment; log K where all prototypes are used equally, 0 where all views belong to one.

    Where the two are equal, all views have the same assignment: the prototypes have collapsed.
    """

    of_views: Tensor
    of_mean: Tensor

    def as_outputs(self) -> dict[str, Tensor]:
        """Return them under the names that the diagnostics of an epoch read; see `reptk.evaluate.diagnostics`."""
        return {"assignment_entropy": self.of_views, "mean_assignment_entropy": self.of_mean}


@torch.no_grad()
def assignment_entropies(assignments: Tensor) -> AssignmentEntropies:
    """Return the entropies of the assignments (..., K) of all ranks."""
    rows = assignments.flatten(0, -2)
    mean = rows.mean(0)
    of_views = torch.special.entr(rows).sum(1).mean()
    # One collective for both.
    reduced = all_reduce_mean(torch.cat([mean, of_views[None]]))
    return AssignmentEntropies(of_views=reduced[-1], of_mean=torch.special.entr(reduced[:-1]).sum())
