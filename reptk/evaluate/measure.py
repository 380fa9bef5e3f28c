"""All numbers of an encoder, and of raw pixels, from one pass over the images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reptk.data import Data
from reptk.evaluate.answers import Answers
from reptk.evaluate.features import PIXELS_PX, Features, pixels
from reptk.evaluate.health import MOST_ROWS, health
from reptk.evaluate.mean import Mean
from reptk.models.encoder import Encoder, eval_mode

Evaluator = Callable[[Features, Data], Iterable[tuple[str, float]]]


@dataclass(frozen=True)
class Measured:
    """What evaluators found.

    Args:
        numbers: by name; a `Mean` knows the queries behind it.
        health: see `reptk.evaluate.health`.
        notes: how evaluators measured, by their names.
        answers: who was answered with what, if an evaluator left it.
    """

    numbers: dict[str, float]
    health: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    answers: Answers | None = None

    def plain(self) -> dict[str, Any]:
        """The numbers as tensors and floats, for a checkpoint."""
        numbers = {name: value.values if isinstance(value, Mean) else value for name, value in self.numbers.items()}
        return {"numbers": numbers, "health": self.health}

    @classmethod
    def from_plain(cls, kept: dict[str, Any]) -> "Measured":
        """What `plain` gave."""
        numbers = {name: Mean(value) if isinstance(value, Tensor) else value for name, value in kept["numbers"].items()}
        return cls(numbers, kept["health"])


def measure(
    encoder: Encoder,
    data: Data,
    evaluators: Iterable[Evaluator],
    *,
    views: Callable[[Tensor, int], Tensor] | None = None,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Numbers of one encoder, put into evaluation mode for the time."""

    def embed(images: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            return encoder.features(images)

    size = encoder.config["size"]
    encode = Features(embed, size=size, crop=data.crop, views=views, device=device, workers=workers, progress=progress)
    with eval_mode(encoder.to(device)):
        return evaluated(encode, data, evaluators)


def measure_pixels(data: Data, evaluators: Iterable[Evaluator], views: Any = None, workers: int = 0) -> Measured:
    """Numbers of the raw pixels, at most 32 x 32 of them."""
    side = min(data.train.images.fetch(torch.tensor([0])).shape[-1], PIXELS_PX)
    encode = Features(pixels(data.train), size=side, crop=data.crop, views=views, workers=workers)
    return evaluated(encode, data, evaluators)


def evaluated(encode: Features, data: Data, evaluators: Iterable[Evaluator]) -> Measured:
    """Run the evaluators on what they share: features that are extracted once."""
    numbers = {name: value for evaluator in evaluators for name, value in evaluator(encode, data)}
    answers = encode.answers
    found = health(*_spread(answers.features, answers.labels)) if answers else {}
    return Measured(numbers, found, encode.notes, answers)


def _spread(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """At most `MOST_ROWS` of them, at even distances: data sets may be sorted by class."""
    step = max(1, len(features) // MOST_ROWS)
    return features[::step], labels[::step]
