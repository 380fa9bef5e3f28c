"""MoCo v3: predicted embeddings of one view are compared with keys of the other by a momentum encoder, without a queue.

python -m reptk.recipe moco_v3_photos
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional

from reptk.config.registry import METHODS
from reptk.core.distributed import all_gather, rank
from reptk.losses import normalize
from reptk.methods.ema import cosine_momentum, momentum_copy, update_momentum_copy
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.required_views import require_two_views
from reptk.models.encoder import Encoder
from reptk.models.mlp import final_batch_norm, mlp
from reptk.views import Views


@METHODS.register("moco_v3")
class MoCoV3(Method):
    """MoCo v3 (Chen, Xie and He 2021, arXiv 2104.02057, algorithm 1).

    With unit rows q_i = predictor(encoder(view)) and k_i = momentum_encoder(other view), N images on all ranks and one order of
    the two views,

        ctr(q, k) = -2 t mean_i log( exp(q_i . k_i / t) / sum_j exp(q_i . k_j / t) )

    and the loss is ctr(q_1, k_2) + ctr(q_2, k_1). A key j of the same image as i (an image that a batch holds twice) is left
    out of the sum. Queries are compared with keys alone, those of the batch.

    The projection head is the encoder's; the paper's for ViT is `head_layers=3`, `head_width=4096`, `head_out=256`,
    `head_norm=true`, for ResNet two layers. BatchNorm after its last layer is the method's (`projector_norm`), and has no
    weights, as in the published code (facebookresearch/moco-v3). The trained encoder is exported. The paper does not train the
    patch embedding of a ViT; `encoder.freeze=stem` freezes it, with the position embeddings and the class token.

    In training BatchNorm normalizes the momentum encoder's images over the batch, as in the paper; on several ranks over each
    rank's images unless the recipe sets `train.sync_batchnorm`, as the published code does.

    Args:
        encoder: images to embeddings.
        views: two views of each image.
        temperature: t; 0.2 for ViT in the paper, 1.0 for ResNet in the published code.
        momentum: of the momentum encoder at the start; it rises to 1 along a cosine.
        predictor_width: hidden width of the predictor.
        projector_norm: BatchNorm on the embeddings, before the predictor.
        predictor_norm: BatchNorm in the predictor.
        predictor_final_norm: BatchNorm without weights after the predictor, as in the published code for ViT, not for ResNet.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        temperature: Annotated[float, Gt(0)] = 0.2,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.99,
        predictor_width: Annotated[int, Ge(1)] = 4096,
        projector_norm: bool = True,
        predictor_norm: bool = True,
        predictor_final_norm: bool = False,
    ) -> None:
        super().__init__()
        require_two_views(views)
        self.encoder = encoder
        self.momentum_encoder = momentum_copy(encoder)
        self.views = views
        self.temperature = temperature
        # Not under the argument's name, which would let it have a schedule on top of the cosine.
        self._momentum = momentum
        width = encoder.embedding_dim
        # Two of them, since each has the running statistics of its encoder.
        self.projector_norm = nn.Identity()
        self.momentum_projector_norm = nn.Identity()
        if projector_norm:
            self.projector_norm = final_batch_norm(width)
            self.momentum_projector_norm = final_batch_norm(width)
        self.predictor = mlp((width, predictor_width, width), norm=predictor_norm, final_norm=predictor_final_norm)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        first, second = batch.draw_views(self.views, step.key)
        q_first, q_second = self._queries(first), self._queries(second)
        with torch.no_grad():
            k_first, k_second = self._keys(first), self._keys(second)
        ids = all_gather(batch.index)
        cross_entropy = key_cross_entropy(q_first, k_second, ids, self.temperature)
        cross_entropy = cross_entropy + key_cross_entropy(q_second, k_first, ids, self.temperature)
        return {
            "loss": 2 * self.temperature * cross_entropy,
            # The cross-entropy without the factor 2 t, for the plot of the loss.
            "contrastive_loss": cross_entropy.detach() / 2,
            "z": torch.cat([q_first, q_second]).detach(),
            "ids": batch.index.repeat(2),
            "temperature": torch.tensor(self.temperature),
            "momentum": torch.tensor(cosine_momentum(step, self._momentum)),
        }

    def after_step(self, step: Step) -> None:
        update_momentum_copy(self.momentum_encoder, self.encoder, cosine_momentum(step, self._momentum))

    def _queries(self, images: Tensor) -> Tensor:
        return self.predictor(self.projector_norm(self.encoder(images)))

    def _keys(self, images: Tensor) -> Tensor:
        """Return the keys (N, D) of the images of all ranks, of unit length."""
        return all_gather(normalize(self.momentum_projector_norm(self.momentum_encoder(images))))


def key_cross_entropy(queries: Tensor, keys: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Return the mean over the queries of this rank of -log softmax(q . k / t) at their keys; ctr is 2 t times it.

    Args:
        queries: (B, D) of any length.
        keys: (N, D) unit rows of all ranks, in their order; those of this rank belong to its queries.
        ids: (N,) numbers of the images of the keys.
        temperature: t.
    """
    num_queries = len(queries)
    targets = rank() * num_queries + torch.arange(num_queries, device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        logits = normalize(queries) @ keys.T / temperature
    # Another key of the same image is neither the query's key nor a negative.
    is_same_image = ids[targets][:, None] == ids
    is_same_image.scatter_(1, targets[:, None], False)
    return functional.cross_entropy(logits.masked_fill(is_same_image, -torch.inf), targets)
