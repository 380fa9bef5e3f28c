"""Runs of fused operations, parts of a photograph to run them on, and torchvision's functions to compare with."""

from collections.abc import Sequence

import torch
from test_views import photo
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from reptk.views.fused import Fused
from reptk.views.recognised import Blur, Crop, Flip, Gray, Jitter, Recognised, Resize, ResizedCrop

JITTER = Jitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), 0.8)
CHAIN = (ResizedCrop((40, 40)), Flip(), JITTER, Gray(0.2), Blur((9, 9), (0.1, 2.0)))
NEAR = {"atol": 1e-6, "rtol": 0}


def rows(count: int) -> Tensor:
    return torch.arange(count)


def run_of(operations: Sequence[Recognised], exact_hue: bool = False) -> Fused:
    """A run whose operations draw as the first ones of view 0 do."""
    salts = [[100 * place + column for column in range(made.columns)] for place, made in enumerate(operations, 1)]
    return Fused(operations, salts, exact_hue)


def drawn(operation: Recognised, key: int, count: int, shape: tuple[int, int] = (32, 32)) -> Tensor:
    return run_of([operation]).draw(key, rows(count), shape)[0]


def cut(count: int, height: int = 56, width: int = 48) -> Tensor:
    """Parts of a photograph, (count, 3, height, width) float64."""
    whole = photo()[0].double() / 255
    places = [(37 * number % (427 - height), 71 * number % (640 - width)) for number in range(count)]
    return torch.stack([whole[:, top : top + height, left : left + width] for top, left in places])


def by_torchvision(images: Tensor, operations: list[Recognised], draws: list[Tensor]) -> Tensor:
    """Each image through torchvision's functions, with what it drew."""
    return torch.stack([
        _one_by_torchvision(image, operations, [draw[number].tolist() for draw in draws])
        for number, image in enumerate(images)
    ])  # fmt: skip


def _one_by_torchvision(image: Tensor, operations: list[Recognised], draws: list[list[float]]) -> Tensor:
    steps = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue)
    for operation, drawn in zip(operations, draws, strict=True):
        match operation:
            case ResizedCrop() | Resize():
                image = reference.resized_crop(image, *map(int, drawn), list(operation.size), antialias=True)
            case Crop():
                padded = reference.pad(image, [operation.padding] * 4)
                top, left, height, width = map(int, drawn)
                image = reference.crop(padded, top + operation.padding, left + operation.padding, height, width)
            case Flip() if drawn[0]:
                image = reference.vertical_flip(image) if operation.upright else reference.horizontal_flip(image)
            case Jitter():
                for kind in map(int, drawn[4:]):
                    image = steps[kind](image, drawn[kind])
            case Gray() if drawn[0]:
                image = reference.rgb_to_grayscale(image, 3)
            case Blur() if drawn[0]:
                image = reference.gaussian_blur(image, list(reversed(operation.kernel)), drawn * 2)
    return image
