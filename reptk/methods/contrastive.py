"""SimCLR, SupCon and TCL: views of the batch are embedded, gathered from all ranks, and compared by a contrastive loss."""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from reptk.config.registry import METHODS, with_defaults
from reptk.core.distributed import all_gather, rank
from reptk.losses import Loss, local_rows
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.view_embeddings import encode_views
from reptk.models.encoder import Encoder
from reptk.views import Views

Positives = Literal["instance", "class"]


@METHODS.register("contrastive")
class Contrastive(Method):
    """A contrastive loss on the embeddings of all views of the global batch.

    Args:
        encoder: images to embeddings.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes.
        loss: (z (N, D), ids (N,)) -> scalar; rows that share an id are positives. See `reptk.losses.Loss`: a loss with
            `computes_local_rows` computes the terms of this rank's rows alone, and its backward pass needs no communication.
            Any other loss is computed in full on every rank.
        positives: "instance": the views of one image are positives; "class": all views of one class are, and an image
            without a label (-1) has only its own views.
    """

    crops_full_images = True

    def __init__(self, encoder: Encoder, views: Views, loss: nn.Module, positives: Positives = "instance") -> None:
        super().__init__()
        self.encoder = encoder
        self.views = views
        self.loss = with_defaults(loss, Loss)
        self.positives = positives

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        z = encode_views(self.encoder, batch, self.views, step.key)
        return contrastive_outputs(self.loss, z, positive_ids(batch, self.positives))


def positive_ids(batch: Batch, positives: Positives) -> Tensor:
    """Return the ids (B,) of the batch's images; images that share an id are positives. See `Contrastive`."""
    if positives == "class":
        return class_ids(batch.labels, batch.index)
    return batch.index


def contrastive_outputs(
    loss_function: Loss, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the loss of the global batch, and what is logged with it, as `Method.forward` returns it.

    Args:
        loss_function: see `Contrastive`.
        z: (V * B, D) embeddings of this rank, view by view.
        ids: (B,) of its images.
        keys: (K, D) further rows to compare with, which are no anchors, the same on all ranks; for a loss that takes keys.
        key_ids: (K,) their ids.
    """
    # Embeddings are ordered view by view, so the ids of the batch are repeated as a whole.
    ids = all_gather(ids.repeat(len(z) // len(ids)))
    first_row = rank() * len(z)
    row_count = len(z)
    # Every image is compared with those of all ranks: the loss is that of the global batch.
    z = all_gather(z, replicated_loss=loss_function.computes_local_rows)
    rows_of_this_rank = nullcontext()
    if loss_function.computes_local_rows:
        rows_of_this_rank = local_rows(first_row, row_count)
    with rows_of_this_rank:
        if keys is None:
            loss = loss_function(z, ids)
        else:
            loss = loss_function(z, ids, keys=keys, key_ids=key_ids)
    outputs = {"loss": loss, "z": z.detach(), "ids": ids}
    if keys is not None:
        # Of an anchor: the other rows, and the keys.
        outputs["num_candidates"] = torch.tensor(len(z) - 1 + len(keys))
    temperature = current_temperature(loss_function)
    if temperature is not None:
        outputs["temperature"] = temperature
    return outputs


def class_ids(labels: Tensor, index: Tensor) -> Tensor:
    """Return ids (B,) that make the images of a class positives of each other.

    The id is the label, or a negative number that no other image has if there is no label.

    Args:
        labels: (B,) -1 for none.
        index: (B,) the number of each image in the data set, from 0.
    """
    return torch.where(labels >= 0, labels, -1 - index)


def has_positives(ids: Tensor) -> Tensor:
    """Return whether any two rows share an id, as a boolean tensor, so that the host does not wait for the GPU."""
    ids = ids.sort().values
    return (ids[1:] == ids[:-1]).any()


def current_temperature(loss: Loss) -> Tensor | None:
    """Return the temperature of a loss as a detached scalar tensor; None if it has none."""
    value = loss.temperature
    if callable(value):  # e.g. of a temperature that is learned
        value = value()
    if value is None:
        return None
    return torch.as_tensor(value).detach()
