"""Cross-entropy of the labeled images of the global batch."""

import torch
from torch import Tensor
from torch.nn import functional

from reptk.core.distributed import all_gather
from reptk.methods.numerics import in_float32_or_wider

NO_LABEL = -1


def cross_entropy_outputs(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> dict[str, Tensor]:
    """Return the loss of the global batch and the accuracy on it, as `Method.forward` returns them.

    Images without a label (-1) are left out of both. If no image has one, both are 0, and the loss has a gradient of zeros.

    Args:
        scores: (N, C) of the views of this rank.
        labels: (N,) of the same.
        label_smoothing: share of the target that all classes have in common, as in `torch.nn.functional.cross_entropy`.

    Returns:
        `loss`, and `train_accuracy`, the share of the views whose class has the highest score.
    """
    losses = functional.cross_entropy(
        in_float32_or_wider(scores), labels, ignore_index=NO_LABEL, reduction="none", label_smoothing=label_smoothing
    )
    is_correct = (scores.argmax(1) == labels).to(losses.dtype)
    loss, accuracy = labeled_means(torch.stack([losses, is_correct], dim=1), labels != NO_LABEL)
    return {"loss": loss, "train_accuracy": accuracy.detach()}


def soft_cross_entropy_outputs(scores: Tensor, targets: Tensor, is_labeled: Tensor) -> dict[str, Tensor]:
    """Return the loss of the global batch for soft targets (N, C), whose rows sum to 1; see `cross_entropy_outputs`."""
    scores = in_float32_or_wider(scores)
    losses = functional.cross_entropy(scores, targets.to(scores.dtype), reduction="none")
    [loss] = labeled_means(losses[:, None], is_labeled)
    return {"loss": loss}


def labeled_means(values: Tensor, is_labeled: Tensor) -> Tensor:
    """Return the means (k,) of values (N, k) over the labeled rows of all ranks; zeros if there are none.

    The gradient is that of the global mean once DDP has averaged it over the ranks.
    """
    weights = is_labeled.to(values.dtype)[:, None]
    rows = all_gather(torch.cat([values * weights, weights], dim=1), replicated_loss=True)
    sums = rows.sum(0)
    return sums[:-1] / sums[-1].clamp_min(1)
