"""Barlow Twins: each dimension of an embedding agrees with itself in another view, and with no other dimension.

python -m reptk.recipe barlow_twins_photos
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from reptk.config.registry import METHODS
from reptk.core.distributed import all_reduce_mean, world_size
from reptk.methods.covariance import centered, products_of_dimensions
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.required_views import require_several_views
from reptk.methods.view_embeddings import embed_views
from reptk.models.encoder import Encoder
from reptk.views import Views

VARIANCE_EPSILON = 1e-5
"""Added to variances, as by BatchNorm in the authors' code: a constant dimension becomes 0, with a finite gradient."""


def standardized(z: Tensor) -> Tensor:
    """Return embeddings (V, B, D) with mean 0 and variance 1 of each view and dimension over the images of all ranks."""
    x = centered(z)
    variance = all_reduce_mean(x.square().mean(1, keepdim=True))
    return x * (variance + VARIANCE_EPSILON).rsqrt()


def barlow_twins_terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the terms of Barlow Twins over the images of all ranks (Zbontar et al. 2021, arXiv 2103.03230, equation 1).

    With N images, X_a and X_b the embeddings (N, D) of two views and C = X_a^T X_b / N their cross-correlation:

        on the diagonal:   sum_i (1 - C_ii)^2
        off the diagonal:  sum_{i != j} C_ij^2

    each averaged over the pairs of views, of which two views have one.

    Args:
        x: (V, B, D) `standardized` embeddings of this rank, of at least two views.

    Raises:
        ValueError: fewer than two views, or one image on all ranks.
    """
    num_images = x.shape[1] * world_size()
    if len(x) < 2 or num_images < 2:
        raise ValueError(f"Barlow Twins compares at least 2 views of at least 2 images, got {len(x)} of {num_images}")
    first, second = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    products = products_of_dimensions(x[first], x[second])
    on_diagonal = (1 - products.diagonal / num_images).square().sum(1).mean()
    off_diagonal = products.off_diagonal_squares.mean() / num_images**2
    return on_diagonal, off_diagonal


@METHODS.register("barlow_twins")
class BarlowTwins(Method):
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230; code facebookresearch/barlowtwins).

    The cross-correlation is that of the images of all ranks, standardized by their common mean and variance, as with the
    synchronized BatchNorm of the authors' code. The projection head is the encoder's; the paper's is `head_layers=3`,
    `head_width=8192`, `head_out=8192`, `head_norm=true`.

    BatchNorm of the encoder normalizes over all views of one size together, where the authors encode each view alone; on
    several ranks over the images of a rank unless the recipe sets `train.sync_batchnorm`, as the published code does.

    Args:
        encoder: images to embeddings.
        views: two or more views of each image, of one size or several; of more than two, the loss is the mean over pairs.
        off_diagonal_weight: lambda of the paper.
    """

    crops_full_images = True

    def __init__(self, encoder: Encoder, views: Views, off_diagonal_weight: Annotated[float, Ge(0)] = 0.0051) -> None:
        super().__init__()
        require_several_views(views)
        self.encoder = encoder
        self.views = views
        self.off_diagonal_weight = off_diagonal_weight

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        z, _ = embed_views(self.encoder, batch, self.views, step.key)
        with torch.autocast(z.device.type, enabled=False):
            x = standardized(z)
            on_diagonal, off_diagonal = barlow_twins_terms(x)
        return {
            "loss": on_diagonal + self.off_diagonal_weight * off_diagonal,
            "on_diagonal": on_diagonal.detach(),
            "off_diagonal": off_diagonal.detach(),
            # What the loss compares: the encoder is free to choose mean and variance.
            "z": x.detach().flatten(0, 1),
            "ids": batch.index.repeat(len(z)),
        }
