"""Small encoders, batches and steps for tests of methods, and rows for the values of published code."""

import torch
from torch.nn import functional

from reptk import Encoder
from reptk.core import rng
from reptk.methods import Batch, Method, Step

SIZE_PX = 16


def encoder(backbone: str = "test_vit", **options: object) -> Encoder:
    options = {"head_width": 32, "head_out": 8} | options
    with rng.seeded("encoder"):
        return Encoder(backbone, size=SIZE_PX, **options)


def batch(first: int = 0, count: int = 4, num_classes: int = 2) -> Batch:
    """Images first, first + 1, ..., of which number i has the label i modulo the number of classes."""
    images = []
    for number in range(first, first + count):
        generator = rng.generator("image", number)
        images.append(torch.randint(256, (3, SIZE_PX, SIZE_PX), generator=generator).to(torch.uint8))
    index = torch.arange(first, first + count)
    return Batch(torch.stack(images), index % num_classes, index)


def step(number: int = 0, total: int = 10) -> Step:
    return Step(number, total, rng.key("step", number))


def published_rows(count: int, dim: int, start: int) -> torch.Tensor:
    """The rows that published code was run with, for the values in the tests: sin(1.7 i), i = start, start + 1, ..."""
    return torch.sin(1.7 * torch.arange(start, start + count * dim, dtype=torch.float64)).reshape(count, dim)


def separate(copy: torch.nn.Module) -> None:
    """Change the weights of a momentum copy, which begin as those of the encoder."""
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(1.1)


def unit_rows(z: torch.Tensor) -> torch.Tensor:
    return functional.normalize(z.detach().double(), dim=1)


def gradients(method: Method) -> dict[str, torch.Tensor]:
    """The gradients of the method's parameters by name."""
    return {name: parameter.grad for name, parameter in method.named_parameters() if parameter.requires_grad}
