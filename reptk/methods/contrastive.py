"""What the loop trains and what DDP wraps: method(images, labels, index, key) -> {"loss": ...}."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from reptk.config.registry import METHODS
from reptk.core.distributed import all_gather, rank
from reptk.losses import local_rows
from reptk.models.encoder import Encoder

Views = Callable[[Tensor, int], Tensor | Sequence[Tensor]]


@METHODS.register("contrastive")
class Contrastive(nn.Module):
    """Views of the batch are embedded, gathered from all ranks, and compared by a loss.

    Args:
        encoder: images to embeddings.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes.
        loss: (z (N, D), ids (N,)) -> scalar; rows that share an id are positives. A loss that says `computes_local_rows = True`
            takes what it needs of the batch from `reptk.losses.Rows` and draws nothing at random: then each rank
            computes its own rows alone, and the backward pass of the loss needs no communication. Any other loss is
            computed whole on every rank.
        positives: "instance": the views of one image are positives; "class": all views of one class are, and an image
            without a label (-1) has only its own.
    """

    def __init__(
        self, encoder: Encoder, views: Views, loss: nn.Module, positives: Literal["instance", "class"] = "instance"
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.loss, self.positives = encoder, views, loss, positives

    def forward(self, images: Tensor, labels: Tensor, index: Tensor, key: int) -> dict[str, Tensor]:
        """images (B, 3, H, W) uint8, labels (B,), index (B,) number of each image in the data set."""
        ids = index if self.positives == "instance" else class_ids(labels, index)
        with torch.autocast(images.device.type, enabled=False):
            made = self.views(images, key)
        groups = made if isinstance(made, list | tuple) else [made]
        z = torch.cat([self.encoder(rearrange(views, "v b c h w -> (v b) c h w")) for views in groups])
        shared = getattr(self.loss, "computes_local_rows", False)
        count = len(z)
        z, ids = all_gather(z, replicated_loss=shared), all_gather(ids.repeat(count // len(ids)))
        with local_rows(rank() * count, count) if shared else nullcontext():
            loss = self.loss(z, ids)
        return {"loss": loss, "z": z.detach(), "ids": ids, "pairs": has_pairs(ids)}


def class_ids(labels: Tensor, index: Tensor) -> Tensor:
    """Ids that make a class positives of each other: the label, or for an image without one a number all its own."""
    return torch.where(labels >= 0, labels, -1 - index)


def has_pairs(ids: Tensor) -> Tensor:
    """Whether any two rows share an id, as a tensor, so that nothing waits for a GPU."""
    ids = ids.sort().values
    return (ids[1:] == ids[:-1]).any()
