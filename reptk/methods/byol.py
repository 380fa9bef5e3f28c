"""BYOL: the embedding of one view predicts that of the other by a momentum encoder, without negatives.

python -m reptk.recipe byol_photos
"""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from reptk.config.registry import METHODS
from reptk.methods.ema import cosine_momentum, momentum_copy, update_momentum_copy
from reptk.methods.numerics import row_cosines
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.required_views import require_two_views
from reptk.models.encoder import Encoder
from reptk.models.mlp import mlp
from reptk.views import Views


@METHODS.register("byol")
class BYOL(Method):
    """Bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733, equation 2).

    With q = predictor(encoder(view)) and t = target(other view), both of unit length, the loss is |q - t|^2 = 2 - 2 q . t,
    averaged over the images and both orders of the two views; the paper adds the two orders up. The target has the weights'
    moving average and gets no gradient. The projection head is the encoder's; the paper's is `head_layers=2`,
    `head_width=4096`, `head_out=256`, `head_norm=true`. The last layers of head and predictor have a bias, in the authors' code
    none. The online encoder is exported, as in the paper.

    In training BatchNorm normalizes the target's images over the batch, as in the paper. On several ranks each computes the
    loss of its own images; BatchNorm normalizes over them alone unless the recipe sets `train.sync_batchnorm`, as the authors'
    code does.

    Args:
        encoder: the online encoder.
        views: two views of each image.
        momentum: of the target at the start; it rises to 1 along a cosine. The paper: 0.996 for 1,000 epochs, 0.99 for 300.
        predictor_width: hidden width of the predictor.
        predictor_norm: BatchNorm in the predictor, as in the paper.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.996,
        predictor_width: Annotated[int, Ge(1)] = 4096,
        predictor_norm: bool = True,
    ) -> None:
        super().__init__()
        require_two_views(views)
        self.encoder = encoder
        self.target = momentum_copy(encoder)
        self.views = views
        # Not under the argument's name, which would let it have a schedule on top of the cosine.
        self._momentum = momentum
        width = encoder.embedding_dim
        self.predictor = mlp((width, predictor_width, width), norm=predictor_norm)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        first, second = batch.draw_views(self.views, step.key)
        z_first, z_second = self.encoder(first), self.encoder(second)
        with torch.no_grad():
            target_first, target_second = self.target(first), self.target(second)
        loss = distance(self.predictor(z_first), target_second) + distance(self.predictor(z_second), target_first)
        momentum = torch.tensor(cosine_momentum(step, self._momentum))
        # No "ids": the positive of an embedding is in the target, not among these embeddings.
        return {"loss": loss / 2, "z": torch.cat([z_first, z_second]).detach(), "momentum": momentum}

    def after_step(self, step: Step) -> None:
        update_momentum_copy(self.target, self.encoder, cosine_momentum(step, self._momentum))


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared distance of (B, D) rows of unit length, in float32 or wider: 2 - 2 cos."""
    return (2 - 2 * row_cosines(prediction, target)).mean()
