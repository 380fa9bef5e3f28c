"""Views: random augmentations on the device, a pure function of the images and a key.

views(images (B, 3, H, W) uint8, key, aspect_ratios=None) -> (V, B, 3, size, size) float in 0..1

Named sets (`sets`) are lists of kornia operations. `pipeline` turns them into views: `operations` defines those that reptk
has, what each image draws and what it means, `passes` joins neighbors, and `backends` execute them; all others are kornia's.
`protocol` says what views of another origin must offer.
"""

from reptk.core.images import resize_center_crop, to_float
from reptk.views.pipeline import ViewPipeline, center_squares
from reptk.views.protocol import Views, crops_full_images
from reptk.views.sets import SETS
from reptk.views.tables import Operation

__all__ = [
    "SETS",
    "Operation",
    "ViewPipeline",
    "Views",
    "center_squares",
    "crops_full_images",
    "resize_center_crop",
    "to_float",
]
