"""Views: random augmentations on the device, a pure function of the images and a key.

views(images (B, 3, H, W) uint8, key) -> (V, B, 3, size, size) float in 0..1
"""

from reptk.views.kornia import KorniaViews, Operation
from reptk.views.plain import plain, to_float
from reptk.views.sets import SETS

__all__ = ["SETS", "KorniaViews", "Operation", "plain", "to_float"]
