"""BYOL: the embedding of one view predicts that of another by a momentum encoder, without negatives.

python -m reptk.recipe byol_photos
"""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional

from reptk import METHODS, Encoder
from reptk.methods import Batch, Method, Step, cosine_momentum, momentum_copy, update_momentum_copy
from reptk.views import Views


@METHODS.register("byol")
class BYOL(Method):
    """Bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733).

    With q = predictor(encoder(view)) and t = target(other view), both of unit length, the loss is |q - t|^2 = 2 - 2 q . t,
    averaged over the images and both orders of the two views. The target has the weights' moving average and gets no
    gradient. The projection head is the encoder's; the paper's is `head_layers=2`, `head_width=4096`, `head_out=256`,
    `head_norm=true`. The online encoder is exported, as in the paper.

    On several ranks each computes the loss of its own images; BatchNorm normalizes over them alone unless the recipe sets
    `train.sync_batchnorm`.

    Args:
        encoder: the online encoder.
        views: two views of each image.
        momentum: of the target at the start; it rises to 1 along a cosine. The paper: 0.996 for 1,000 epochs, 0.99 for 300.
        predictor_width: hidden width of the predictor.
        predictor_norm: BatchNorm in the predictor, as in the paper.
    """

    uses_aspect_ratios = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.996,
        predictor_width: Annotated[int, Ge(1)] = 4096,
        predictor_norm: bool = True,
    ) -> None:
        super().__init__()
        if views.count not in (None, 2):
            raise ValueError(f"it compares two views of each image, not {views.count}: set views.count=2")
        self.encoder = encoder
        self.target = momentum_copy(encoder)
        self.views = views
        self.momentum = momentum
        width = encoder.embedding_dim
        norm = nn.BatchNorm1d(predictor_width) if predictor_norm else nn.Identity()
        self.predictor = nn.Sequential(
            nn.Linear(width, predictor_width, bias=not predictor_norm),
            norm,
            nn.ReLU(),
            nn.Linear(predictor_width, width),
        )

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        first, second = batch.draw_views(self.views, step.key)
        z_first, z_second = self.encoder(first), self.encoder(second)
        with torch.no_grad():
            target_first, target_second = self.target(first), self.target(second)
        loss = distance(self.predictor(z_first), target_second) + distance(self.predictor(z_second), target_first)
        momentum = torch.tensor(cosine_momentum(step, self.momentum))
        # No "ids": the positive of an embedding is in the target, not among these embeddings.
        return {"loss": loss / 2, "z": torch.cat([z_first, z_second]).detach(), "momentum": momentum}

    def after_step(self, step: Step) -> None:
        update_momentum_copy(self.target, self.encoder, cosine_momentum(step, self.momentum))


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared distance of (B, D) rows of unit length, in float32: 2 - 2 cos."""
    cosine = functional.cosine_similarity(prediction.float(), target.float(), dim=1)
    return (2 - 2 * cosine).mean()
