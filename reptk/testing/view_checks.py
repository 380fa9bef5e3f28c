"""The check of views. A key is any integer of 63 bits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from reptk.config.registry import with_defaults
from reptk.core import rng
from reptk.testing.requirements import (
    Outcome,
    Requirement,
    global_rng_moved,
    qualified_name,
    raise_violations,
    try_requirements,
)
from reptk.views import Views, crops_full_images

HALF_LEVEL = 0.5 / 255
"""Half a step of 8-bit pixels. Views that differ by less are equal: kernels may round differently in another batch size."""


def check_views(views: Callable[[Tensor, int], Tensor | Sequence[Tensor]], *, size: int, random: bool = True) -> None:
    """Check views against `VIEWS_REQUIREMENTS` and those for random or for fixed views.

    Views without a method `shard(rank, world_size)` run on a single process only; those with one are left at `shard(0, 1)`.

    Args:
        views: (images (B, 3, H, W) uint8, key) -> (V, B, 3, size, size), or a list of such tensors, the largest first.
        size: side of the (largest) views in px.
        random: False for views that do not depend on the key.

    Raises:
        AssertionError: one line for each violated requirement.

    Example:
        >>> from reptk.views.sets import crop_flip
        >>> check_views(crop_flip(size=16), size=16)
    """
    raise_violations(try_views(views, size=size, random=random), "views", qualified_name(views))


def try_views(
    views: Callable[[Tensor, int], Tensor | Sequence[Tensor]], *, size: int, random: bool = True
) -> list[Outcome]:
    """Try the requirements of views, and return what came of each; see `check_views`."""
    if random:
        requirements = VIEWS_REQUIREMENTS + RANDOM_VIEWS_REQUIREMENTS
    else:
        requirements = VIEWS_REQUIREMENTS + FIXED_VIEWS_REQUIREMENTS
    generator = rng.generator("check_views")
    # Neither square nor of the requested size, as images are.
    images = torch.randint(256, (6, 3, size + size // 4 + 1, size + 2), generator=generator).to(torch.uint8)
    with rng.seeded("check_views"):
        return try_requirements(with_defaults(views, Views), requirements, images, size)


def _draw(views: Views, images: Tensor, key: int, **options: Tensor) -> Tensor:
    """Return the views as one tensor; those smaller than the first are padded in black."""
    out = views(images, key, **options)
    if not isinstance(out, list | tuple):
        return out
    largest_px = out[0].shape[-1]
    padded = []
    for group in out:
        missing_px = largest_px - group.shape[-1]
        padded.append(functional.pad(group, [0, missing_px, 0, missing_px]))
    return torch.cat(padded)


def _wrong_shape_or_range(views: Views, images: Tensor, size: int) -> str | None:
    out = _draw(views, images, 1)
    if not isinstance(out, Tensor):
        return f"it gave {type(out).__name__}"
    if out.ndim != 5 or out.shape[1:] != (len(images), 3, size, size):
        return f"it gave {tuple(out.shape)}"
    if not out.is_floating_point():
        return f"it gave {out.dtype}"
    # NaN is not inside of any range.
    is_inside = (out >= 0) & (out <= 1)
    if not is_inside.all():
        return f"values reach from {out.amin():.4g} to {out.amax():.4g}"
    return None


def _depends_on_random_state(views: Views, images: Tensor, size: int) -> str | None:
    with rng.seeded("one state"):
        first = _draw(views, images, 1)
    with rng.seeded("another state"):
        second = _draw(views, images, 1)
    if not torch.equal(first, second):
        return "the second call gave others"
    return None


def _changed_by_autocast(views: Views, images: Tensor, size: int) -> str | None:
    with torch.autocast("cpu", torch.bfloat16):
        out = _draw(views, images, 1)
    return _difference(out, _draw(views, images, 1))


def _moves_global_rng(views: Views, images: Tensor, size: int) -> str | None:
    return global_rng_moved(lambda: views(images, 1))


def _writes_to_images(views: Views, images: Tensor, size: int) -> str | None:
    before = images.clone()
    views(images, 1)
    if not torch.equal(before, images):
        return "they were written to"
    return None


def _square_aspect_ratios_differ(views: Views, images: Tensor, size: int) -> str | None:
    if not crops_full_images(views):
        return None
    squares = images[..., : images.shape[-1], :]
    ones = torch.ones(len(squares))
    return _difference(_draw(views, squares, 1, aspect_ratios=ones), _draw(views, squares, 1))


def _shards_differ(views: Views, images: Tensor, size: int) -> str | None:
    if views.shard is None:
        return None
    whole = _draw(views, images, 1)
    parts = []
    try:
        for rank, part in enumerate(images.chunk(2)):
            views.shard(rank, 2)
            parts.append(_draw(views, part, 1))
    finally:
        # Sharding changes the views that the caller passed, for good.
        views.shard(0, 1)
    return _difference(torch.cat(parts, 1), whole)


def _ignores_key(views: Views, images: Tensor, size: int) -> str | None:
    first = _draw(views, images, 1)
    for key in (0, 2**62):  # the smallest and a large one: keys have 63 bits
        if torch.equal(_draw(views, images, key), first):
            return f"keys 1 and {key} gave the same"
    return None


def _uses_key(views: Views, images: Tensor, size: int) -> str | None:
    first = _draw(views, images, 1)
    for key in (0, 2**62):
        if not torch.equal(_draw(views, images, key), first):
            return f"keys 1 and {key} gave different ones"
    return None


def _views_all_equal(views: Views, images: Tensor, size: int) -> str | None:
    out = _draw(views, images, 1)
    if len(out) > 1 and (out == out[:1]).all():
        return "they are"
    return None


def _difference(out: Tensor, expected: Tensor) -> str | None:
    largest = (out.float() - expected.float()).abs().amax().item()
    # Not ">=": a difference that is NaN must not pass.
    if not largest < HALF_LEVEL:
        return f"pixels differ by up to {largest:.3g}"
    return None


VIEWS_REQUIREMENTS = (
    Requirement(
        "(B, 3, H, W) uint8 gives (V, B, 3, size, size) floats in 0..1",
        _wrong_shape_or_range,
        "The encoder cannot read them, or gets colors of another scale than in evaluation.",
    ),
    Requirement(
        "the same images and key give the same views, whatever the random state",
        _depends_on_random_state,
        "A run that is repeated, or resumed, sees other views: draw from reptk.rng.generator(key).",
    ),
    Requirement(
        "autocast does not change them",
        _changed_by_autocast,
        "On a GPU colors are rounded to 8 bits of precision, with visible steps.",
    ),
    Requirement(
        "the random states of torch, NumPy and Python are left as they were",
        _moves_global_rng,
        "Dropout and other parts then draw other numbers, so that runs cannot be compared at one seed.",
    ),
    Requirement(
        "the images are not written to",
        _writes_to_images,
        "Data sets in memory are changed by training, and evaluation measures other images.",
    ),
    Requirement(
        "aspect ratios of 1 give what none give",
        _square_aspect_ratios_differ,
        "Square images are distorted as soon as the data set has others as well.",
    ),
    Requirement(
        "two ranks with shard(rank, 2) draw what one draws for the whole batch",
        _shards_differ,
        "Training on several GPUs sees other views than on one, and its result differs.",
    ),
)
"""What all views must do."""

RANDOM_VIEWS_REQUIREMENTS = (
    Requirement(
        "another key gives other views",
        _ignores_key,
        "Every epoch trains on the same views. Views that are meant to be fixed are checked with --fixed.",
    ),
    Requirement(
        "the views of an image are not all equal",
        _views_all_equal,
        "The positives are identical, and there is nothing to learn from them.",
    ),
)
"""What random views must do as well."""

FIXED_VIEWS_REQUIREMENTS = (
    Requirement(
        "the key does not matter",
        _uses_key,
        "They are random: check them as such.",
    ),
)
"""What views that are not random must do as well."""
