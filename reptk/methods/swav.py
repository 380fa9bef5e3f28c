"""SwAV: each view of an image predicts the prototypes to which another one is assigned, and all are used equally."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from reptk.config.registry import METHODS
from reptk.core.distributed import all_gather, rank, world_size
from reptk.losses import normalize
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.prototypes import Prototypes, assignment_entropies, swapped_cross_entropy
from reptk.methods.queue import Queue
from reptk.methods.required_views import require_several_views
from reptk.methods.sinkhorn import sinkhorn
from reptk.methods.view_embeddings import encode_by_size, views_by_size
from reptk.models.encoder import Encoder
from reptk.views import Views


@METHODS.register("swav")
class SwAV(Method):
    """Swapped assignments between views (Caron et al. 2020, arXiv 2006.09882; code facebookresearch/swav).

    The cosines of embeddings to prototypes are assigned by Sinkhorn-Knopp over the images of all ranks, each large view of them
    by itself. The loss is the cross-entropy between the assignment of a large view and softmax(cosines / temperature) of
    another view of the image, averaged over all such pairs. Large views are those of the first size that the views have:
    `views.name=multi_crop` gives the paper's multi-crop. The trained encoder is exported.

    The projection head is the encoder's; the paper's is `head_layers=2`, `head_width=2048`, `head_out=128`, `head_norm=true`.
    Differences from the published code: the gradient of a prototype has no part along it, where there the part is undone after
    the step; BatchNorm of the head normalizes over the views of one size, there over those of all sizes; and the queue holds
    all large views together and is filled from the first step on, where there each view has a queue, which is filled from the
    epoch on in which it is first used. Frozen prototypes keep their weights, as there, but get a gradient, as in `DINO`.

    On several ranks BatchNorm normalizes over the images of a rank alone unless the recipe sets `train.sync_batchnorm`, as
    the published code does.

    Args:
        encoder: images to embeddings.
        views: at least two views of each image, the large ones first.
        num_prototypes: K. The paper: 3,000 for ImageNet.
        temperature: of the softmax of the predictions.
        epsilon: temperature of the assignments, lower than that of the predictions.
        queue_size: embeddings of earlier steps that are assigned along with those of the batch, for batches that have few
            images for each prototype. The paper: 3,840 for each of two large views with batches of 256; 0 with large batches.
        queue_start_epochs: from which epoch on the queue is used.
        frozen_epochs: how long the prototypes stay as they are.
    """

    crops_full_images = True
    prototypes_advice = "or lower method.epsilon, or raise method.frozen_epochs"

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        num_prototypes: Annotated[int, Ge(2)] = 3000,
        temperature: Annotated[float, Gt(0)] = 0.1,
        epsilon: Annotated[float, Gt(0)] = 0.05,
        queue_size: Annotated[int, Ge(0)] = 0,
        queue_start_epochs: Annotated[float, Ge(0)] = 15.0,
        frozen_epochs: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__()
        require_several_views(views)
        self.encoder = encoder
        self.prototypes = Prototypes(num_prototypes, encoder.embedding_dim)
        self.views = views
        self.temperature = temperature
        self.epsilon = epsilon
        self._queue_start_epochs = queue_start_epochs
        self._frozen_epochs = frozen_epochs
        self.queue = None
        if queue_size:
            self.queue = Queue(queue_size, encoder.embedding_dim)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        views = views_by_size(batch, self.views, step.key)
        num_images = len(batch.index)
        self.prototypes.save_if_frozen(step, self._frozen_epochs)
        z = encode_by_size(self.encoder, views)
        scores = self.prototypes(z).unflatten(0, (-1, num_images))
        num_large = len(views[0]) // num_images
        large_z = z[: num_large * num_images].detach()
        if self.queue is not None:
            # Stored for `after_step`, which puts them into the queue.
            self._new_rows = self._rows_of_all_ranks(normalize(large_z), num_images)
            self._new_ids = all_gather(batch.index).repeat(num_large)
        assignments = self._assign(scores[:num_large].detach(), step)
        loss = swapped_cross_entropy(assignments, (scores / self.temperature).log_softmax(dim=2))
        # No "ids": embeddings are compared with prototypes, not with each other.
        return {"loss": loss, "z": z.detach(), **assignment_entropies(assignments).as_outputs()}

    def after_step(self, step: Step) -> None:
        self.prototypes.restore()
        self.prototypes.normalize_()
        if self.queue is not None:
            self.queue.push(step, self._new_rows, self._new_ids)

    @torch.no_grad()
    def _assign(self, scores: Tensor, step: Step) -> Tensor:
        """Return the assignments (G, B, K) of large views with these scores."""
        queued_scores = scores.new_zeros(0, scores.shape[2])
        if self.queue is not None and self._uses_queue(self.queue, step):
            # Each rank has all rows of the queue, and its part of them is enough: assignments are over all ranks.
            queued_scores = self.prototypes(self.queue.rows[rank() :: world_size()])
        assignments = []
        for scores_of_view in scores:
            all_scores = torch.cat([scores_of_view, queued_scores])
            assigned = sinkhorn(all_scores, temperature=self.epsilon)
            assignments.append(assigned[: len(scores_of_view)])
        return torch.stack(assignments)

    def _uses_queue(self, queue: Queue, step: Step) -> bool:
        """Return whether the queue is full of embeddings, and the epoch is that from which on it is used."""
        if step.epoch < self._queue_start_epochs:
            return False
        return bool(queue.is_used.all())

    def _rows_of_all_ranks(self, rows: Tensor, num_images: int) -> Tensor:
        """Return the rows (G * B, D) of all ranks in the order that a single process would have: view by view."""
        of_ranks = all_gather(rows).unflatten(0, (world_size(), -1, num_images))
        return of_ranks.transpose(0, 1).flatten(0, 2)
