"""MoCo v2: queries are compared with keys of a momentum encoder, those of this batch and a queue of earlier ones.

python -m reptk.recipe moco_photos
python -m reptk.recipe supcon_moco_photos
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from reptk.config.registry import METHODS, with_defaults
from reptk.core.distributed import all_gather
from reptk.losses import Loss
from reptk.methods.contrastive import Positives, contrastive_outputs, positive_ids
from reptk.methods.ema import momentum_copy, update_momentum_copy
from reptk.methods.loss_keys import check_takes_keys
from reptk.methods.numerics import in_float32_or_wider
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.queue import Queue
from reptk.methods.required_views import require_two_views
from reptk.models.encoder import Encoder
from reptk.views import Views


@METHODS.register("moco")
class MoCo(Method):
    """Momentum contrast with a queue (He et al. 2020, arXiv 1911.05722; v2: Chen et al., arXiv 2003.04297).

    The first view of each image is the query z, the second, encoded by the momentum encoder, its key; the loss is
    loss(z, ids, keys, key_ids) with the keys of the batch and of the queue. With `loss.name=supcon` and `positives="class"` it
    is the form with a memory of SupCon (arXiv 2004.11362, section 4), with `loss.name=tcl` TCL with a queue.

    Differences from MoCo's paper and code (facebookresearch/moco), whose negatives are the queue alone: a query is also
    compared with the other queries and keys of its batch, and a key of the queue that shares the query's id is a positive and
    no negative: an image that is seen again, and with positives="class" its class. For a batch of one image the loss is the
    paper's. The order of a batch is not shuffled before the momentum encoder; on several ranks, BatchNorm normalizes over
    each rank's images unless the recipe sets `train.sync_batchnorm`.

    The momentum encoder's BatchNorm normalizes over the batch in training, as in the paper. The query encoder is exported.

    Args:
        encoder: encodes queries; the paper's v2 head is `head_layers=2`, `head_width=2048`, `head_out=128`.
        views: two views of each image.
        loss: one that takes keys: `simclr` (temperature 0.2 in the paper), `siglip`, `smooth_ap`, `supcon`, `tcl`.
        queue_size: number of keys in the queue, from all ranks.
        momentum: of the momentum encoder.
        positives: "instance": an image's keys are its query's positives; "class": all keys and queries of its class are, and
            an image without a label (-1) has only its own keys.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        loss: nn.Module,
        queue_size: Annotated[int, Ge(1)] = 65536,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.999,
        positives: Positives = "instance",
    ) -> None:
        super().__init__()
        require_two_views(views)
        check_takes_keys(loss)
        self.encoder = encoder
        self.momentum_encoder = momentum_copy(encoder)
        self.views = views
        self.loss = with_defaults(loss, Loss)
        self.momentum = momentum
        self.positives = positives
        self.queue = Queue(queue_size, encoder.embedding_dim)
        self.register_load_state_dict_pre_hook(_rename_queue)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        query_view, key_view = batch.draw_views(self.views, step.key)
        z = self.encoder(query_view)
        with torch.no_grad():
            keys = nn.functional.normalize(in_float32_or_wider(self.momentum_encoder(key_view)), dim=1)
        ids = positive_ids(batch, self.positives)
        # Stored for `after_step`, which puts them into the queue.
        self._new_keys = all_gather(keys)
        self._new_ids = all_gather(ids)
        outputs = contrastive_outputs(
            self.loss,
            z,
            ids,
            keys=torch.cat([self._new_keys, self.queue.rows]),
            key_ids=torch.cat([self._new_ids, self.queue.ids]),
        )
        # For the health of every epoch: the positive of a query is a key, so both are embeddings of the step.
        z = torch.cat([outputs["z"], self._new_keys])
        return outputs | {"z": z, "ids": self._new_ids.repeat(2)}

    def after_step(self, step: Step) -> None:
        update_momentum_copy(self.momentum_encoder, self.encoder, self.momentum)
        self.queue.push(step, self._new_keys, self._new_ids)


def _rename_queue(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Read the checkpoints of runs from before the queue was a module."""
    for old, new in (("queue", "queue.rows"), ("queue_ids", "queue.ids")):
        if f"{prefix}{old}" in state:
            state[f"{prefix}{new}"] = state.pop(f"{prefix}{old}")
