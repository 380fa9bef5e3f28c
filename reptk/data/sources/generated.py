"""Generated images: each class has its own color pattern, under noise. For trying things out without any files."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from reptk.config.registry import DATASETS
from reptk.core import rng
from reptk.data.protocol import Data, InMemory, Split, with_shape

PATTERN_PX = 4

MAX_VALUES = 10**9
"""Of the pixels of a split, which are drawn in float32, all at once: 4 GB."""


@DATASETS.register("generated")
@with_shape(classes=10, size_px=32)
def generated(
    classes: Annotated[int, Ge(2)] = 10,
    size: Annotated[int, Ge(4)] = 32,
    train: Annotated[int, Ge(2)] = 500,
    bank: Annotated[int, Ge(2)] = 200,
    query: Annotated[int, Ge(1)] = 100,
) -> Data:
    """`train`, `bank` and `query` generated images of `size` px, with the classes in turn; the same ones in every call."""
    num_values = 3 * size**2 * max(train, bank, query, classes)
    if num_values > MAX_VALUES:
        raise ValueError(
            f"its images would have {num_values:.0e} values; take fewer or smaller ones, up to {MAX_VALUES:.0e}"
        )
    patterns = torch.rand(classes, 3, PATTERN_PX, PATTERN_PX, generator=rng.generator("generated", "patterns"))
    patterns = functional.interpolate(patterns, (size, size), mode="nearest")
    return Data(
        train=_split("train", train, patterns),
        bank=_split("bank", bank, patterns),
        query=_split("query", query, patterns),
        classes=tuple(f"class {number}" for number in range(classes)),
        protocol="generated images, classes in turn",
    )


def _split(name: str, count: int, patterns: Tensor) -> Split:
    """Return `count` images: half pattern, half noise.

    Args:
        name: of the split, which its noise depends on.
        count: number of images.
        patterns: (C, 3, size, size) in 0..1.
    """
    labels = torch.arange(count) % len(patterns)
    noise = torch.rand(count, *patterns.shape[1:], generator=rng.generator("generated", name))
    images = (0.5 * patterns[labels] + 0.5 * noise) * 255
    return Split(InMemory(images.to(torch.uint8)), labels)
