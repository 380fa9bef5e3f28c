"""The numbers of an encoder, and of raw pixels, under the same evaluators."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from reptk.data import Data
from reptk.encoder import Encoder, evaluating
from reptk.evaluate.features import PIXELS_PX, Features, pixels

Numbers = dict[str, float]
Evaluator = Callable[[Features, Data], Iterable[tuple[str, float]]]


def measure(
    encoder: Encoder,
    data: Data,
    evaluators: Iterable[Evaluator],
    *,
    views: Callable[[Tensor, int], Tensor] | None = None,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    workers: int = 0,
) -> Numbers:
    """Numbers of one encoder, put into evaluation mode for the time."""

    def embed(images: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            return encoder.features(images)

    size = encoder.config["size"]
    encode = Features(embed, size=size, crop=data.crop, views=views, device=device, workers=workers)
    with evaluating(encoder.to(device)):
        return _numbers(evaluators, encode, data)


def measure_pixels(data: Data, evaluators: Iterable[Evaluator], views: Any = None, workers: int = 0) -> Numbers:
    """Numbers of the raw pixels, at most 32 x 32 of them."""
    side = min(data.train.images.fetch(torch.tensor([0])).shape[-1], PIXELS_PX)
    encode = Features(pixels(data.train), size=side, crop=data.crop, views=views, workers=workers)
    return _numbers(evaluators, encode, data)


def _numbers(evaluators: Iterable[Evaluator], encode: Features, data: Data) -> Numbers:
    return {name: value for evaluator in evaluators for name, value in evaluator(encode, data)}
