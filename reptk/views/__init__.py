"""Views: random augmentations on the device, a pure function of the images and a key.

views(images (B, 3, H, W) uint8, key) -> (V, B, 3, size, size) float in 0..1

A list of kornia operations says what is wanted (`sets`). `compiled` decides how it is run: `recognised` operations are drawn
by reptk and `fused` into few passes (`spatial`, `colour`), all others are `kornia`'s.
"""

from reptk.core.images import resize_center_crop, to_float
from reptk.views.compiled import ViewPipeline
from reptk.views.recognised import Operation
from reptk.views.sets import SETS

__all__ = ["SETS", "Operation", "ViewPipeline", "resize_center_crop", "to_float"]
