"""The loss my_loss: InfoNCE with every positive of a row.

Source: authors, year, arXiv number. Where paper and published code differ, say which one this is.
"""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from reptk import LOSSES
from reptk.losses import normalize


@LOSSES.register("my_loss")
class MyLoss(nn.Module):
    """Mean over anchors of -log softmax(z_i . z_p / temperature), averaged over the positives p of i.

    Required is the call `loss(z, ids)`. Optional is what `reptk.losses.Loss` describes: `temperature`, which training logs,
    and `computes_local_rows`, for losses on `reptk.losses.RowStatistics`, which need no N x N matrix and are shared by the
    ranks. Parameters (`nn.Parameter`) are trained with the encoder, and buffers are in every checkpoint.

    A loss knows which rows belong together, not which class they are of. One that has a vector for each class, such as
    ArcFace, takes `num_classes` and `embedding_dim`, see `reptk.losses.Loss`, or is a method: `reptk plugin new method`.

    Args:
        temperature: of the softmax, above 0. The arguments are what the recipe's [loss] table may set; names, types, ranges
            and defaults are those of this signature. One that is kept under its name may follow a schedule in a recipe.
    """

    def __init__(self, temperature: Annotated[float, Gt(0)] = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        """Return the loss of the global batch: a scalar, float32 or wider.

        Args:
            z: (N, D) embeddings of any length and floating type. N counts all views of all images on all ranks: a loss
                neither gathers rows nor asks how many ranks there are.
            ids: (N,) integers; rows that share an id are positives of each other. Only which of them are equal matters.
        """
        z = normalize(z)  # unit length, in float32 or float64
        with torch.autocast(z.device.type, enabled=False):  # else the product would be in bfloat16
            logits = z @ z.T / self.temperature
        is_self = torch.eye(len(z), dtype=torch.bool, device=z.device)
        is_positive = (ids[:, None] == ids[None, :]) & ~is_self
        log_denominator = logits.masked_fill(is_self, float("-inf")).logsumexp(dim=1, keepdim=True)
        num_positives = is_positive.sum(dim=1)
        loss = ((log_denominator - logits) * is_positive).sum(dim=1) / num_positives.clamp_min(1)
        # Rows without a positive count neither above nor below the line; a batch without any gives 0.
        return loss.sum() / (num_positives > 0).sum().clamp_min(1)
