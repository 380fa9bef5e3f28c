"""MoCo v2: queries are compared with keys of a momentum encoder, those of this batch and a queue of earlier ones.

python -m reptk.recipe moco_photos
python -m reptk.recipe moco_photos loss.name=supcon method.positives=class
"""

import inspect
from contextlib import nullcontext
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from reptk import METHODS, Encoder, distributed
from reptk.losses import Loss, local_rows
from reptk.methods import Batch, Method, Step, class_ids, momentum_copy, update_momentum_copy
from reptk.views import Views

UNUSED_ID = -(2**62)
"""This id and lower ones belong to the random initial keys of the queue, which are positives of no query."""


@METHODS.register("moco")
class MoCo(Method):
    """Momentum contrast with a queue (He et al. 2020, arXiv 1911.05722; v2: Chen et al., arXiv 2003.04297).

    The first view of each image is the query z, the second, encoded by the momentum encoder, its key; the loss is
    loss(z, ids, keys, key_ids) with the keys of the batch and of the queue. Differences from the paper: the queries of a
    batch are compared with each other too, and a key of the queue that shares the query's id (an image seen again, or with
    positives="class" its class) is a positive, where the paper counts the former as a negative. Shuffled BatchNorm is left
    out. The query encoder is exported, as in the paper.

    Args:
        encoder: encodes queries; the paper's v2 head is `head_layers=2`, `head_width=2048`, `head_out=128`.
        views: two views of each image.
        loss: one that takes keys: `simclr` (temperature 0.2 in the paper), `supcon`, `tcl`.
        queue_size: number of keys in the queue, from all ranks.
        momentum: of the momentum encoder.
        positives: "instance": an image's key is its query's positive; "class": all keys of its class are.
    """

    uses_aspect_ratios = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        loss: Loss,
        queue_size: Annotated[int, Ge(1)] = 65536,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.999,
        positives: Literal["instance", "class"] = "instance",
    ) -> None:
        super().__init__()
        if views.count not in (None, 2):
            raise ValueError(f"it takes two views of each image, not {views.count}: set views.count=2")
        # The signature of a module itself is that of nn.Module.__call__, which shows no parameters.
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
        if not {"keys", "key_ids"} <= set(parameters):
            raise ValueError("its loss must take keys and key_ids, as simclr, supcon and tcl do")
        self.encoder = encoder
        self.momentum_encoder = momentum_copy(encoder)
        self.views = views
        self.loss = loss
        self.momentum = momentum
        self.positives = positives
        queue = nn.functional.normalize(torch.randn(queue_size, encoder.embedding_dim), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("queue_ids", UNUSED_ID - torch.arange(queue_size))

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        query_view, key_view = batch.draw_views(self.views, step.key)
        z = self.encoder(query_view)
        with torch.no_grad():
            keys = nn.functional.normalize(self.momentum_encoder(key_view).float(), dim=1)
        ids = batch.index
        if self.positives == "class":
            ids = class_ids(batch.labels, batch.index)
        first_row = distributed.rank() * len(z)
        row_count = len(z)
        z = distributed.all_gather(z, replicated_loss=self.loss.computes_local_rows)
        # Stored for `after_step`, which puts them into the queue.
        self.new_keys = distributed.all_gather(keys)
        self.new_ids = distributed.all_gather(ids)
        rows_of_this_rank = nullcontext()
        if self.loss.computes_local_rows:
            rows_of_this_rank = local_rows(first_row, row_count)
        with rows_of_this_rank:
            loss = self.loss(
                z,
                self.new_ids,
                keys=torch.cat([self.new_keys, self.queue]),
                key_ids=torch.cat([self.new_ids, self.queue_ids]),
            )
        # No "ids": every query has its key as a positive, though no two queries share an id.
        return {"loss": loss, "z": z.detach()}

    def after_step(self, step: Step) -> None:
        update_momentum_copy(self.momentum_encoder, self.encoder, self.momentum)
        size = len(self.queue)
        # A batch may be larger than the queue.
        keys = self.new_keys[-size:]
        ids = self.new_ids[-size:]
        # The positions are a function of the step, so that a resumed run needs no further state.
        positions = (step.number * len(keys) + torch.arange(len(keys), device=keys.device)) % size
        self.queue.index_copy_(0, positions, keys)
        self.queue_ids.index_copy_(0, positions, ids)
