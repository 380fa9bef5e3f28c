"""Patches of photographs that come with scikit-image and scikit-learn: real images without a download."""

from importlib.resources import files
from importlib.util import find_spec

import torch
from PIL import Image
from torch import Tensor

from reptk.config.registry import DATASETS
from reptk.core import rng
from reptk.core.errors import EnvironmentProblem
from reptk.data.decoding.decode import to_tensor
from reptk.data.protocol import Data, InMemory, Split, with_shape

# Photographs alone: the packages' drawings, charts and images of text are left out, and so is the second image of a
# stereo pair.
SCIKIT_IMAGE_FILES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "cells": "cell.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
SCIKIT_LEARN_FILES = {"flower": "flower.jpg", "palace": "china.jpg"}

PATCH_PX = 32
MIN_SIDE_PX, MAX_SIDE_PX = 32, 96
TRAIN_FRACTION = 0.6
TRAIN_PATCHES, QUERY_PATCHES = 150, 50


@DATASETS.register("photos")
@with_shape(classes=len(SCIKIT_IMAGE_FILES) + len(SCIKIT_LEARN_FILES), size_px=PATCH_PX)
def photos() -> Data:
    """Patches of 18 photographs that come with scikit-image and scikit-learn; the class is the photograph.

    Square patches of 32 to 96 px side at random places, the same ones in every call, resized to 32 px: 150 from the
    left 60 % of each photograph are training images and bank, 50 from the right 40 % are queries. No pixel is in both.

    Raises:
        EnvironmentProblem: scikit-image is not installed.
    """
    photographs = load_photographs()
    # Sorted, so that the labels do not depend on the order of the tables above.
    classes = sorted(photographs)
    train_patches: list[Tensor] = []
    query_patches: list[Tensor] = []
    for name in classes:
        photograph = photographs[name]
        # Cropped before patches are resized: a filter that crosses the edge would mix the splits.
        edge = round(photograph.width * TRAIN_FRACTION)
        train_region = photograph.crop((0, 0, edge, photograph.height))
        query_region = photograph.crop((edge, 0, photograph.width, photograph.height))
        train_patches += _random_patches(name, train_region, TRAIN_PATCHES)
        query_patches += _random_patches(name, query_region, QUERY_PATCHES)
    labels = torch.arange(len(classes))
    train = Split(InMemory(torch.stack(train_patches)), labels.repeat_interleave(TRAIN_PATCHES))
    query = Split(InMemory(torch.stack(query_patches)), labels.repeat_interleave(QUERY_PATCHES))
    protocol = "patches of 18 photographs: bank from the left 60 % of each, queries from the right 40 %"
    return Data(train, train, query, tuple(classes), protocol)


def load_photographs() -> dict[str, Image.Image]:
    """Return the photographs in RGB, by class name.

    Raises:
        EnvironmentProblem: scikit-image is not installed, or a file is missing in an installed package.
    """
    if find_spec("skimage") is None:
        raise EnvironmentProblem(
            "photos needs the photographs of scikit-image, which is not installed: pip install 'reptk[demo]'"
        )
    scikit_image = files("skimage") / "data"
    scikit_learn = files("sklearn") / "datasets" / "images"
    paths = {name: scikit_image / file for name, file in SCIKIT_IMAGE_FILES.items()}
    paths |= {name: scikit_learn / file for name, file in SCIKIT_LEARN_FILES.items()}
    missing = sorted(name for name, path in paths.items() if not path.is_file())
    if missing:
        raise EnvironmentProblem(f"photos: scikit-image or scikit-learn came without {', '.join(missing)}")
    photographs = {}
    for name, path in paths.items():
        with path.open("rb") as file, Image.open(file) as image:
            photographs[name] = image.convert("RGB")
    return photographs


def _random_patches(name: str, region: Image.Image, count: int) -> list[Tensor]:
    draws = torch.rand(count, 3, generator=rng.generator("photos", name, count))
    return [_patch(region, size, across, down) for size, across, down in draws.tolist()]


def _patch(region: Image.Image, size: float, across: float, down: float) -> Tensor:
    """Cut out a square and resize it; `size`, `across` and `down` are in [0, 1)."""
    side = min(MIN_SIDE_PX + round(size * (MAX_SIDE_PX - MIN_SIDE_PX)), region.width, region.height)
    left = round(across * (region.width - side))
    top = round(down * (region.height - side))
    box = (left, top, left + side, top + side)
    return to_tensor(region.resize((PATCH_PX, PATCH_PX), Image.Resampling.BICUBIC, box))
