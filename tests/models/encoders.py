"""Small encoders and their images, for the tests of models."""

from typing import Any

import torch
from torch import Tensor

from reptk.core import rng
from reptk.models.encoder import Encoder


def build_encoder(backbone: str = "test_resnet", seed: int = 0, **options: Any) -> Encoder:
    """An encoder with the initial weights of a seed, in evaluation mode."""
    with rng.seeded("test", seed):
        return Encoder(backbone, **{"size": 32, "head_out": 16, **options}).eval()


def trained_encoder(backbone: str = "test_resnet", **options: Any) -> Encoder:
    """An encoder whose running statistics are not the initial ones."""
    encoder = build_encoder(backbone, **options).train()
    with torch.no_grad():
        encoder(random_images(8))
    return encoder.eval()


def random_images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=rng.generator("images"))


@torch.no_grad()
def without_zeros(encoder: Encoder) -> Encoder:
    """The encoder with norms whose weights are not zero, which timm's initialization of residual branches sets some to."""
    for parameter in encoder.parameters():
        if parameter.ndim == 1 and not parameter.any():
            parameter.fill_(0.5)
    return encoder
