"""The views of a batch, size by size, and what an encoder makes of them."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

from reptk.methods.numerics import in_float32_or_wider
from reptk.methods.protocol import Batch
from reptk.models.encoder import Encoder
from reptk.views import Views

Encode = Callable[[Tensor], Tensor]
"""(N, 3, h, w) views to (N, D) rows, e.g. an encoder."""


def views_by_size(batch: Batch, views: Views, key: int) -> list[Tensor]:
    """Return the views of a batch as tensors (V * B, 3, h, w), view by view; one tensor for each size of the views."""
    drawn = batch.draw_views(views, key)
    groups = drawn if isinstance(drawn, list | tuple) else [drawn]
    return [rearrange(group, "v b c h w -> (v b) c h w") for group in groups]


def encode_by_size(encode: Encode, views_of_sizes: Sequence[Tensor]) -> Tensor:
    """Return the rows (N, D) of the views of all sizes, in their order; views of one size are encoded together."""
    return torch.cat([encode(views_of_size) for views_of_size in views_of_sizes])


def encode_views(encode: Encode, batch: Batch, views: Views, key: int) -> Tensor:
    """Draw and encode the views of a batch.

    Args:
        encode: see `Encode`; views of one size pass through it together.
        batch: B images of this rank.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes.
        key: of the views.

    Returns:
        (V * B, D) rows, view by view.
    """
    return encode_by_size(encode, views_by_size(batch, views, key))


def embed_views(encoder: Encoder, batch: Batch, views: Views, key: int) -> tuple[Tensor, int]:
    """Draw and embed the views of a batch, for losses without ids, which need to know the views; see `encode_views`.

    Returns:
        (V, B, D) embeddings in float32 or wider, in the order of the views, and the number of views of the first size, which
        are the large ones of `multi_crop`; V if all views have one size.
    """
    views_of_sizes = views_by_size(batch, views, key)
    batch_size = len(batch.images)
    z = in_float32_or_wider(encode_by_size(encoder, views_of_sizes))
    return z.unflatten(0, (-1, batch_size)), len(views_of_sizes[0]) // batch_size
