"""Images made on the spot: each class has a colour pattern of its own, under noise. For trying things out, offline."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from reptk.config.registry import DATASETS
from reptk.core import rng
from reptk.data.protocol import Data, InMemory, Split, with_shape


@DATASETS.register("generated")
@with_shape(classes=10, size_px=32)
def generated(
    classes: Annotated[int, Ge(2)] = 10,
    size: Annotated[int, Ge(4)] = 32,
    train: Annotated[int, Ge(2)] = 500,
    bank: Annotated[int, Ge(2)] = 200,
    query: Annotated[int, Ge(1)] = 100,
) -> Data:
    """`train`, `bank` and `query` images of `size` pixels, classes in turn; the same at every call."""
    patterns = torch.rand(classes, 3, 4, 4, generator=rng.generator("generated", "patterns"))
    splits = [
        _split(name, count, patterns, size) for name, count in (("train", train), ("bank", bank), ("query", query))
    ]
    return Data(*splits, tuple(f"class {number}" for number in range(classes)), "generated images, classes in turn")


def _split(name: str, count: int, patterns: Tensor, size: int) -> Split:
    labels = torch.arange(count) % len(patterns)
    large = functional.interpolate(patterns, (size, size), mode="nearest")
    noise = torch.rand(count, 3, size, size, generator=rng.generator("generated", name))
    return Split(InMemory(((0.5 * large[labels] + 0.5 * noise) * 255).to(torch.uint8)), labels)
