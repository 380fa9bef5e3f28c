"""The registered views: named lists of kornia operations, with kornia's own names and arguments.

An operation is a table `{name, ...arguments}`, e.g. `{name = "RandomGrayscale", p = 0.2}`.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Le

from reptk.registry import VIEWS
from reptk.views.kornia import KorniaViews, Operation

Count = Annotated[int, Ge(1)]
Size = Annotated[int, Ge(4)]
Share = Annotated[float, Gt(0), Le(1)]
Strength = Annotated[float, Ge(0), Le(2)]
Third = str | list[Operation] | None
"""What the third view of each image uses instead: a list of operations, or the name of a set with its defaults."""


def simclr_operations(size: int, scale: float = 0.08, strength: float = 1.0) -> list[Operation]:
    blur = {"name": "RandomGaussianBlur", "kernel_size": [_odd(size / 10)] * 2, "sigma": [0.1, 2.0], "p": 0.5}
    return [*simclr_small_operations(size, scale, strength), blur]


def simclr_small_operations(size: int, scale: float = 0.2, strength: float = 0.5) -> list[Operation]:
    # A warp of the whole batch is several times faster than one resize per image but not antialiased; small crops
    # are mostly enlarged, where that makes no difference.
    mode = "resample" if size <= 64 else "slice"
    return [
        {"name": "RandomResizedCrop", "size": [size, size], "scale": [scale, 1.0], "cropping_mode": mode},
        {"name": "RandomHorizontalFlip", "p": 0.5},
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
    cut = simclr_small_operations(size, scale)[:2] if scale < 1 else crop_flip_operations(size)
    return [*cut, {"name": "AutoAugment", "policy": policy}]


def none_operations(size: int) -> list[Operation]:
    return [{"name": "Resize", "size": [size, size], "antialias": True}]


SETS = {
    "simclr": simclr_operations,
    "simclr_small": simclr_small_operations,
    "digits": digits_operations,
    "crop_flip": crop_flip_operations,
    "autoaugment": autoaugment_operations,
    "none": none_operations,
}


@VIEWS.register("simclr")
def simclr(
    count: Count = 2, size: Size = 224, scale: Share = 0.08, strength: Strength = 1.0, third: Third = None
) -> KorniaViews:
    """SimCLR's augmentations for photographs (arXiv 2002.05709, appendix A), blur with a kernel of size / 10."""
    return _views(simclr_operations(size, scale, strength), count, size, third)


@VIEWS.register("simclr_small")
def simclr_small(
    count: Count = 2, size: Size = 32, scale: Share = 0.2, strength: Strength = 0.5, third: Third = None
) -> KorniaViews:
    """The same without blur and at half the colour strength, as is usual for images of 28 to 64 pixels."""
    return _views(simclr_small_operations(size, scale, strength), count, size, third)


@VIEWS.register("digits")
def digits(count: Count = 2, size: Size = 32, strength: Strength = 1.0, third: Third = None) -> KorniaViews:
    """Shifts, turns, shears and zooms that leave a written digit what it is; no flips, no colour."""
    return _views(digits_operations(size, strength), count, size, third)


@VIEWS.register("crop_flip")
def crop_flip(
    count: Count = 2, size: Size = 32, padding: Annotated[int, Ge(1)] = 4, third: Third = None
) -> KorniaViews:
    """Pad by `padding` px and cut at random, flip: the usual treatment of small images."""
    return _views(crop_flip_operations(size, padding), count, size, third)


@VIEWS.register("autoaugment")
def autoaugment(
    count: Count = 2, size: Size = 32, policy: str = "cifar10", scale: Share = 1.0, third: Third = None
) -> KorniaViews:
    """`crop_flip`, then AutoAugment (arXiv 1805.09501): every image draws one of the policy's sub-policies.

    policy: "cifar10", "svhn" or "imagenet", as kornia defines them. A `scale` below 1 puts a random resized crop of
    at least that share of the area in the place of the padded crop, as is usual for photographs.
    """
    return _views(autoaugment_operations(size, policy, scale), count, size, third)


@VIEWS.register("none")
def none(count: Count = 2, size: Size = 32) -> KorniaViews:
    """The image as it is, `count` times."""
    return _views(none_operations(size), count, size, None)


@VIEWS.register("kornia")
def custom(operations: list[Operation], count: Count = 2, size: Size = 224, third: Third = None) -> KorniaViews:
    """Your own list of kornia operations, e.g. `operations = [{name = "RandomGrayscale", p = 0.2}]`."""
    return _views(operations, count, size, third)


def _views(operations: list[Operation], count: int, size: int, third: Third) -> KorniaViews:
    if third is not None and count < 3:
        raise ValueError(f"third is for the third view, but count is {count}")
    if isinstance(third, str):
        if third not in SETS:
            raise ValueError(f"third must be a list of operations or one of {', '.join(SETS)}, got {third!r}")
        third = SETS[third](size)
    lists = [third if third is not None and view == 2 else operations for view in range(count)]
    return KorniaViews(lists, size)


def _odd(length: float) -> int:
    return max(3, int(length) // 2 * 2 + 1)
