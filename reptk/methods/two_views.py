"""Two views of each image, and the cosine of their embeddings, for methods that compare them in pairs."""

from torch import Tensor
from torch.nn import functional

from reptk.methods.cross_entropy import in_float32_or_wider
from reptk.views import Views


def check_two_views(views: Views) -> None:
    """Check that views are two of one size.

    Raises:
        ValueError: they are not, with what to set.
    """
    if views.count not in (None, 2):
        raise ValueError(f"it compares two views of each image, not {views.count}: set views.count=2")
    if len(set(views.sizes)) > 1:
        sizes = " and ".join(str(size) for size in views.sizes)
        raise ValueError(
            f"it compares two views of one size, not of {sizes} px: use other views, e.g. views.name=simclr"
        )


def row_cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return (B,) the cosines of two embeddings (B, D) row by row, in float32 or wider."""
    return functional.cosine_similarity(in_float32_or_wider(first), in_float32_or_wider(second), dim=1)
