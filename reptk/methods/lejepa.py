"""LeJEPA: views of an image agree with the mean of its large views, and embeddings are normally distributed.

python -m reptk.recipe lejepa_photos
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from reptk.config.registry import METHODS
from reptk.core.distributed import all_reduce_mean
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.required_views import require_several_views
from reptk.methods.sigreg import random_directions, sigreg
from reptk.methods.view_embeddings import embed_views
from reptk.models.encoder import Encoder
from reptk.views import Views


@METHODS.register("lejepa")
class LeJEPA(Method):
    """LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544; code galilai-group/lejepa): one encoder, no teacher, no queue.

        loss = (1 - w) * mean of (z_v - c)^2 + w * SIGReg

    over all views v, images and dimensions, with c the mean embedding of an image's large views: those of the first size
    (`multi_crop`), or all of them if there is one size. See `sigreg` for SIGReg. Its directions are drawn anew in each step,
    from the step's key, and are the same on all ranks.

    The projection head is the encoder's. The authors' example has `head_layers=3`, `head_width=2048`, `head_norm=true` and
    `head_out=16`, for 10 classes; stable-pretraining has `head_out=512`.

    On several ranks BatchNorm normalizes over the images of a rank alone unless the recipe sets `train.sync_batchnorm`.

    Args:
        encoder: images to embeddings.
        views: two or more views of each image, of one size or several.
        sigreg_weight: w, the lambda of the paper, which suggests 0.05; 0.02 in the authors' example and in stable-pretraining,
            whose loss has the factor 1 in place of 1 - w.
        num_slices: number of directions.
        knots, t_max: of the integral in `sigreg`.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        sigreg_weight: Annotated[float, Ge(0), Le(1)] = 0.05,
        num_slices: Annotated[int, Ge(1)] = 1024,
        knots: Annotated[int, Ge(2)] = 17,
        t_max: Annotated[float, Gt(0)] = 3.0,
    ) -> None:
        super().__init__()
        require_several_views(views)
        self.encoder = encoder
        self.views = views
        self.sigreg_weight = sigreg_weight
        self.num_slices = num_slices
        self.knots = knots
        self.t_max = t_max

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        z, num_large = embed_views(self.encoder, batch, self.views, step.key)
        with torch.autocast(z.device.type, enabled=False):
            center = z[:num_large].mean(0)
            invariance = all_reduce_mean((z - center).square().mean(), replicated_loss=True)
            directions = random_directions(step.key, z.shape[2], self.num_slices, device=z.device, dtype=z.dtype)
            normality = sigreg(z, directions, knots=self.knots, t_max=self.t_max)
        return {
            "loss": (1 - self.sigreg_weight) * invariance + self.sigreg_weight * normality,
            "invariance": invariance.detach(),
            "sigreg": normality.detach(),
            "z": z.detach().flatten(0, 1),
            "ids": batch.index.repeat(len(z)),
        }
