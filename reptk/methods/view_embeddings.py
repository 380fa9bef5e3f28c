"""Embeddings of all views of a batch with the structure that methods without a loss on ids need: (V, B, D)."""

import torch
from torch import Tensor

from reptk.methods.contrastive import images_by_size
from reptk.methods.cross_entropy import in_float32_or_wider
from reptk.methods.protocol import Batch
from reptk.models.encoder import Encoder
from reptk.views import Views


def embed_views(encoder: Encoder, batch: Batch, views: Views, key: int) -> tuple[Tensor, int]:
    """Draw and embed the views of a batch.

    Args:
        encoder: images to embeddings; views of one size pass through it together.
        batch: B images of this rank.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes.
        key: of the views.

    Returns:
        (V, B, D) embeddings in float32 or wider, in the order of the views, and the number of views of the first size, which
        are the large ones of `multi_crop`; V if all views have one size.
    """
    images_of_sizes = images_by_size(batch, views, key)
    batch_size = len(batch.images)
    embeddings = []
    for images in images_of_sizes:
        z = in_float32_or_wider(encoder(images))
        embeddings.append(z.unflatten(0, (len(images) // batch_size, batch_size)))
    return torch.cat(embeddings), len(embeddings[0])


def check_view_count(views: Views) -> None:
    """Check that there are views of one image to compare.

    Raises:
        ValueError: there is one view of each image.
    """
    if views.count == 1:
        raise ValueError("it compares views of one image, and there is one view of each: set views.count=2 or more")
