"""Images to make views of, operations to make them with, and torchvision's functions to compare with."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from reptk.config.registry import VIEWS
from reptk.views import Operation, ViewPipeline
from reptk.views.crops import RandomCrop, RandomResizedCrop, Resize
from reptk.views.operations import ColorJitter, RandomFlip, RandomGaussianBlur, RandomGrayscale, ViewOperation
from reptk.views.pipeline import NativeStep

SIZE = 32
JITTER = ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), 0.8)
CHAIN = (
    RandomResizedCrop((40, 40)),
    RandomFlip(),
    JITTER,
    RandomGrayscale(0.2),
    RandomGaussianBlur((9, 9), (0.1, 2.0)),
)
NEAR = {"atol": 1e-6, "rtol": 0}


@functools.cache
def photo(file: str = "china.jpg") -> Tensor:
    """A photograph of scikit-learn's, (1, 3, 427, 640) uint8, read without importing scikit-learn."""
    [home] = importlib.util.find_spec("sklearn").submodule_search_locations
    return reference.pil_to_tensor(Image.open(Path(home) / "datasets" / "images" / file))[None]


@functools.cache
def patches(count: int, size: int = SIZE) -> Tensor:
    """Patches of both photographs, (count, 3, size, size) uint8."""
    photos = torch.cat([photo("china.jpg"), photo("flower.jpg")])
    corners = torch.randint(0, 427 - size, (count, 2), generator=torch.Generator().manual_seed(0)).tolist()
    images = []
    for number, (top, left) in enumerate(corners):
        images.append(photos[number % 2, :, top : top + size, left : left + size])
    return torch.stack(images)


def float64_patches(count: int, height: int = 56, width: int = 48) -> Tensor:
    """Patches of a photograph, (count, 3, height, width) float64."""
    whole = photo()[0].double() / 255
    images = []
    for number in range(count):
        top, left = 37 * number % (427 - height), 71 * number % (640 - width)
        images.append(whole[:, top : top + height, left : left + width])
    return torch.stack(images)


def custom(*operations: Operation, size: int = SIZE, **arguments: object) -> ViewPipeline:
    """Views of a list of operations."""
    return VIEWS.get("kornia")(operations=list(operations), size=size, **arguments)


def step_of(operations: Sequence[ViewOperation], exact_hue: bool = False) -> NativeStep:
    """A step of these operations, with arbitrary salts."""
    salts = []
    for position, operation in enumerate(operations, 1):
        salts.append([100 * position + column for column in range(operation.num_uniforms)])
    return NativeStep(operations, salts, exact_hue=exact_hue)


def sample(operation: ViewOperation, key: int, count: int, shape: tuple[int, int] = (32, 32)) -> Tensor:
    """The parameters of one operation for images 0 to count - 1."""
    return step_of([operation]).sample(key, torch.arange(count), shape)[0]


def by_torchvision(images: Tensor, operations: Sequence[ViewOperation], params: list[Tensor]) -> Tensor:
    """Each image through torchvision's functions, with the same parameters."""
    results = []
    for number, image in enumerate(images):
        for operation, table in zip(operations, params, strict=True):
            image = _operation_by_torchvision(image, operation, table[number].tolist())
        results.append(image)
    return torch.stack(results)


def _operation_by_torchvision(image: Tensor, operation: ViewOperation, row: list[float]) -> Tensor:
    match operation:
        case RandomResizedCrop() | Resize():
            return reference.resized_crop(image, *map(int, row), list(operation.size), antialias=True)
        case RandomCrop():
            padded = reference.pad(image, [operation.padding] * 4)
            top, left, height, width = map(int, row)
            return reference.crop(padded, top + operation.padding, left + operation.padding, height, width)
        case RandomFlip() if row[0]:
            return reference.vertical_flip(image) if operation.is_vertical else reference.horizontal_flip(image)
        case ColorJitter():
            adjust = (
                reference.adjust_brightness,
                reference.adjust_contrast,
                reference.adjust_saturation,
                reference.adjust_hue,
            )
            for kind in map(int, row[4:]):
                image = adjust[kind](image, row[kind])
            return image
        case RandomGrayscale() if row[0]:
            return reference.rgb_to_grayscale(image, 3)
        case RandomGaussianBlur() if row[0]:
            return reference.gaussian_blur(image, list(reversed(operation.kernel)), row * 2)
    return image
