"""The registered views: named lists of kornia operations, with kornia's own names and arguments.

An operation is a table `{name, ...arguments}`, e.g. `{name = "RandomGrayscale", p = 0.2}`.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Le

from reptk.config.registry import VIEWS
from reptk.views.pipeline import BackendName, ViewPipeline
from reptk.views.tables import Operation

Count = Annotated[int, Ge(1)]
Size = Annotated[int, Ge(4)]
Share = Annotated[float, Gt(0), Le(1)]
Strength = Annotated[float, Ge(0), Le(2)]
ThirdView = str | list[Operation] | None
"""What the third view of each image uses instead: a list of operations, or the name of a set with its defaults."""

# `backend` and `exact_hue` of every set are those of `ViewPipeline`.


def simclr_operations(size: int, scale: float = 0.08, strength: float = 1.0) -> list[Operation]:
    # A kernel of a tenth of the side, as in the paper.
    blur = {"name": "RandomGaussianBlur", "kernel_size": [_odd_kernel(size / 10)] * 2, "sigma": [0.1, 2.0], "p": 0.5}
    return [*simclr_small_operations(size, scale, strength), blur]


def resized_crop_flip_operations(size: int, scale: float = 0.2) -> list[Operation]:
    return [
        {"name": "RandomResizedCrop", "size": [size, size], "scale": [scale, 1.0]},
        {"name": "RandomHorizontalFlip", "p": 0.5},
    ]


def simclr_small_operations(size: int, scale: float = 0.2, strength: float = 0.5) -> list[Operation]:
    return [
        *resized_crop_flip_operations(size, scale),
        {
            "name": "ColorJitter",
            "brightness": 0.8 * strength,
            "contrast": 0.8 * strength,
            "saturation": 0.8 * strength,
            "hue": 0.2 * strength,
            "p": 0.8,
        },
        {"name": "RandomGrayscale", "p": 0.2},
    ]


def digits_operations(size: int, strength: float = 1.0) -> list[Operation]:
    affine = {
        "name": "RandomAffine",
        "degrees": 15.0 * strength,
        "translate": [0.125 * strength] * 2,
        "scale": [1 - 0.2 * strength, 1 + 0.2 * strength],
        "shear": 10.0 * strength,
        "p": 1.0,
    }
    return [*none_operations(size), affine]


def crop_flip_operations(size: int, padding: int = 4) -> list[Operation]:
    return [
        *none_operations(size),
        {"name": "RandomCrop", "size": [size, size], "padding": padding},
        {"name": "RandomHorizontalFlip", "p": 0.5},
    ]


def autoaugment_operations(size: int, policy: str = "cifar10", scale: float = 1.0) -> list[Operation]:
    if scale < 1:
        crop = resized_crop_flip_operations(size, scale)
    else:
        crop = crop_flip_operations(size)
    return [*crop, {"name": "AutoAugment", "policy": policy}]


def none_operations(size: int) -> list[Operation]:
    return [{"name": "Resize", "size": [size, size], "antialias": True}]


SETS = {
    "simclr": simclr_operations,
    "simclr_small": simclr_small_operations,
    "digits": digits_operations,
    "crop_flip": crop_flip_operations,
    "resized_crop_flip": resized_crop_flip_operations,
    "autoaugment": autoaugment_operations,
    "none": none_operations,
}


@VIEWS.register("simclr")
def simclr(
    count: Count = 2,
    size: Size = 224,
    scale: Share = 0.08,
    strength: Strength = 1.0,
    third: ThirdView = None,
    backend: BackendName = "auto",
    exact_hue: bool = False,
) -> ViewPipeline:
    """SimCLR's augmentations for photographs (arXiv 2002.05709, appendix A); the blur has a kernel of size / 10."""
    return _pipeline(simclr_operations(size, scale, strength), count, size, third, backend, exact_hue)


@VIEWS.register("simclr_small")
def simclr_small(
    count: Count = 2,
    size: Size = 32,
    scale: Share = 0.2,
    strength: Strength = 0.5,
    third: ThirdView = None,
    backend: BackendName = "auto",
    exact_hue: bool = False,
) -> ViewPipeline:
    """SimCLR's augmentations without blur and at half the color strength, as is usual for images of 28 to 64 px."""
    return _pipeline(simclr_small_operations(size, scale, strength), count, size, third, backend, exact_hue)


@VIEWS.register("multi_crop")
def multi_crop(
    count: Count = 2,
    size: Size = 224,
    small_count: Count = 6,
    small_size: Size = 96,
    scale: Share = 0.14,
    small_scale: Share = 0.05,
    strength: Strength = 1.0,
    backend: BackendName = "auto",
    exact_hue: bool = False,
) -> ViewPipeline:
    """`count` views of `size` px and `small_count` of `small_size` px, otherwise SimCLR's (SwAV, arXiv 2006.09882).

    Large views show at least `scale` of the image, small ones between `small_scale` and `scale` of it. DINO (arXiv 2104.14294)
    has small_count=8, scale=0.4 and small_scale=0.05.

    Convolutional backbones take views of any size. Vision transformers interpolate their position embeddings for small views
    (bicubic, by timm's `dynamic_img_size`), and both sizes must be multiples of the patches. The encoder is evaluated and
    exported for large views.
    """
    if small_scale > scale:
        raise ValueError(f"small_scale is {small_scale}, more than scale ({scale}), where small views end")
    large = simclr_operations(size, scale, strength)
    small = simclr_operations(small_size, small_scale, strength)
    # The first operation is the crop; `simclr_operations` would let it show the whole image.
    small[0]["scale"] = [small_scale, scale]
    sizes = [size] * count + [small_size] * small_count
    return ViewPipeline([large] * count + [small] * small_count, sizes, backend=backend, exact_hue=exact_hue)


@VIEWS.register("digits")
def digits(
    count: Count = 2, size: Size = 32, strength: Strength = 1.0, third: ThirdView = None, backend: BackendName = "auto"
) -> ViewPipeline:
    """Small shifts, rotations, shears and zooms, for written digits; no flips, no color."""
    return _pipeline(digits_operations(size, strength), count, size, third, backend)


@VIEWS.register("crop_flip")
def crop_flip(
    count: Count = 2,
    size: Size = 32,
    padding: Annotated[int, Ge(1)] = 4,
    third: ThirdView = None,
    backend: BackendName = "auto",
) -> ViewPipeline:
    """Pad by `padding` px, crop at random, flip: the usual augmentation of small images."""
    return _pipeline(crop_flip_operations(size, padding), count, size, third, backend)


@VIEWS.register("resized_crop_flip")
def resized_crop_flip(
    count: Count = 2, size: Size = 224, scale: Share = 0.2, third: ThirdView = None, backend: BackendName = "auto"
) -> ViewPipeline:
    """Crop at least `scale` of the area, resize, flip: what linear classifiers are trained on in the papers."""
    return _pipeline(resized_crop_flip_operations(size, scale), count, size, third, backend)


@VIEWS.register("autoaugment")
def autoaugment(
    count: Count = 2,
    size: Size = 32,
    policy: str = "cifar10",
    scale: Share = 1.0,
    third: ThirdView = None,
    backend: BackendName = "auto",
) -> ViewPipeline:
    """`crop_flip`, then AutoAugment (arXiv 1805.09501): every image draws one of the policy's sub-policies.

    policy: "cifar10", "svhn" or "imagenet", as kornia defines them. With a `scale` below 1, a random resized crop of at
    least that share of the area replaces the padded crop, as is usual for photographs.
    """
    return _pipeline(autoaugment_operations(size, policy, scale), count, size, third, backend)


@VIEWS.register("none")
def none(count: Count = 2, size: Size = 32, backend: BackendName = "auto") -> ViewPipeline:
    """The image, resized but otherwise unchanged, `count` times."""
    return _pipeline(none_operations(size), count, size, None, backend)


@VIEWS.register("kornia")
def custom(
    operations: list[Operation],
    count: Count = 2,
    size: Size = 224,
    third: ThirdView = None,
    backend: BackendName = "auto",
    exact_hue: bool = False,
) -> ViewPipeline:
    """Any list of kornia operations, e.g. `operations = [{name = "RandomGrayscale", p = 0.2}]`."""
    return _pipeline(operations, count, size, third, backend, exact_hue)


@VIEWS.register("per_view")
def per_view(
    lists: list[str | list[Operation]], size: Size = 224, backend: BackendName = "auto", exact_hue: bool = False
) -> ViewPipeline:
    """Different operations for each view: for each a list of them, or the name of a set with its defaults."""
    if not lists:
        raise ValueError("lists must hold a list of operations, or the name of a set, for each view")
    resolved = [_resolve(operations, size, "lists") for operations in lists]
    return ViewPipeline(resolved, size, backend=backend, exact_hue=exact_hue)


def _pipeline(
    operations: list[Operation],
    count: int,
    size: int,
    third: ThirdView,
    backend: BackendName,
    exact_hue: bool = False,
) -> ViewPipeline:
    """The same operations for each of `count` views, except the third if `third` says so."""
    if third is not None and count < 3:
        raise ValueError(f"third is for the third view, but count is {count}")
    lists = [operations] * count
    if third is not None:
        lists[2] = _resolve(third, size, "third")
    return ViewPipeline(lists, size, backend=backend, exact_hue=exact_hue)


def _resolve(operations: str | list[Operation], size: int, argument: str) -> list[Operation]:
    """Return a list of operations, or that of a set if `operations` is its name."""
    if not isinstance(operations, str):
        return operations
    if operations not in SETS:
        raise ValueError(f"{argument} takes lists of operations or names out of {', '.join(SETS)}, got {operations!r}")
    return SETS[operations](size)


def _odd_kernel(length: float) -> int:
    """Return an odd number of pixels, which a kernel needs to have a center, near `length` and at least 3."""
    return max(3, int(length) // 2 * 2 + 1)
