"""VICReg: views of an image have the same embedding, and dimensions vary and are not correlated.

python -m reptk.recipe vicreg_photos
"""

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from reptk.config.registry import METHODS
from reptk.core.distributed import all_reduce_mean, world_size
from reptk.methods.covariance import centered, products_of_dimensions
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.required_views import require_several_views
from reptk.methods.view_embeddings import embed_views
from reptk.models.encoder import Encoder
from reptk.views import Views

Weight = Annotated[float, Ge(0)]

VARIANCE_EPSILON = 1e-4
"""Added to variances before the root, as in the paper and its code, so that a constant dimension has a finite gradient."""


class VICRegTerms(NamedTuple):
    """The three terms of the loss, scalars; see `vicreg_terms`."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(z: Tensor) -> VICRegTerms:
    """Return the terms of VICReg over the images of all ranks (Bardes et al. 2022, arXiv 2105.04906, equations 1 to 5).

    With N images, Z the centered embeddings (N, D) of one view and C = Z^T Z / (N - 1):

        invariance:  mean of (z_a - z_b)^2 over images, dimensions and pairs of views
        variance:    mean of max(0, 1 - sqrt(C_jj + 1e-4)) over dimensions and views
        covariance:  1/D sum_{i != j} C_ij^2 of one view plus that of the other, averaged over pairs of views

    For two views they are those of the authors' code, and for more the mean over all pairs. The paper's equation 5 divides
    the squared distance by N alone and its equation 6 adds the variance terms of both views, where the authors' code divides
    by N D and averages; the usual weights belong to the code. In lightly the terms are the same; in solo-learn that of the
    variance is twice as large.

    Args:
        z: (V, B, D) embeddings of this rank, of at least two views, in float32 or wider.

    Raises:
        ValueError: fewer than two views, or one image on all ranks.
    """
    num_images = z.shape[1] * world_size()
    if len(z) < 2 or num_images < 2:
        raise ValueError(f"VICReg compares at least 2 views of at least 2 images, got {len(z)} of {num_images}")
    # The mean of the squared differences of all pairs is twice the unbiased variance over the views.
    invariance = all_reduce_mean(2 * z.var(0).mean(), replicated_loss=True)
    x = centered(z)
    products = products_of_dimensions(x, x)
    standard_deviation = (products.diagonal / (num_images - 1) + VARIANCE_EPSILON).sqrt()
    variance = functional.relu(1 - standard_deviation).mean()
    covariance = 2 * products.off_diagonal_squares.mean() / (num_images - 1) ** 2 / z.shape[2]
    return VICRegTerms(invariance, variance, covariance)


@METHODS.register("vicreg")
class VICReg(Method):
    """Variance-invariance-covariance regularization (Bardes et al. 2022, arXiv 2105.04906).

    The loss is a weighted sum of `vicreg_terms`, over the images of all ranks. The projection head is the encoder's; the
    paper's expander is `head_layers=3`, `head_width=8192`, `head_out=8192`, `head_norm=true`. Its last layer has no bias, which
    the loss does not depend on.

    BatchNorm of the encoder normalizes over all views of one size together, where the authors encode each view alone; on
    several ranks over the images of a rank unless the recipe sets `train.sync_batchnorm`, as the published code does.

    Args:
        encoder: images to embeddings.
        views: two or more views of each image, of one size or several.
        invariance_weight, variance_weight, covariance_weight: lambda, mu and nu of the paper.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        invariance_weight: Weight = 25.0,
        variance_weight: Weight = 25.0,
        covariance_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        require_several_views(views)
        self.encoder = encoder
        self.views = views
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        z, _ = embed_views(self.encoder, batch, self.views, step.key)
        with torch.autocast(z.device.type, enabled=False):
            terms = vicreg_terms(z)
        loss = (
            self.invariance_weight * terms.invariance
            + self.variance_weight * terms.variance
            + self.covariance_weight * terms.covariance
        )
        outputs = {name: term.detach() for name, term in terms._asdict().items()}
        # The loss does not depend on the mean, so neither do the diagnostics.
        outputs["z"] = (z - z.mean(1, keepdim=True)).detach().flatten(0, 1)
        outputs["ids"] = batch.index.repeat(len(z))
        outputs["loss"] = loss
        return outputs
