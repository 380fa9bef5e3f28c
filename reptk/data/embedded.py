"""Data sets that come with Python packages: real images without a download."""

from importlib.resources import files
from importlib.util import find_spec

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from reptk.config.registry import DATASETS
from reptk.core import rng
from reptk.core.errors import EnvironmentProblem
from reptk.data.decode import to_tensor
from reptk.data.protocol import Data, InMemory, Split, with_shape

# Photographs only: drawings, charts and printed text of the same packages are left out, and so is the second picture
# of a stereo pair.
SCIKIT_IMAGE = {
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
SCIKIT_LEARN = {"flower": "flower.jpg", "palace": "china.jpg"}

PATCH_PX = 32
SIDES_PX = (32, 96)
TRAIN_SHARE = 0.6
TRAIN_PATCHES, QUERY_PATCHES = 150, 50


@DATASETS.register("photos")
@with_shape(classes=len(SCIKIT_IMAGE) + len(SCIKIT_LEARN), size_px=PATCH_PX)
def photos() -> Data:
    """Patches of 18 photographs that come with scikit-image and scikit-learn; the class is the photograph.

    Square patches of 32 to 96 px side at random places, the same ones at every call, resized to 32 px: 150 from the
    left 60 % of each photograph to train on and to search, 50 from the right 40 % as queries. No pixel is in both.

    Raises:
        EnvironmentProblem: scikit-image is not installed.
    """
    pictures = _photographs()
    train, query, classes = [], [], sorted(pictures)
    for name in classes:
        picture = pictures[name]
        edge = round(picture.width * TRAIN_SHARE)
        train += _patches(name, picture.crop((0, 0, edge, picture.height)), TRAIN_PATCHES)
        query += _patches(name, picture.crop((edge, 0, picture.width, picture.height)), QUERY_PATCHES)
    numbers = torch.arange(len(classes))
    bank = Split(InMemory(torch.stack(train)), numbers.repeat_interleave(TRAIN_PATCHES))
    queries = Split(InMemory(torch.stack(query)), numbers.repeat_interleave(QUERY_PATCHES))
    protocol = "patches of 18 photographs: bank from the left 60 % of each, queries from the right 40 %"
    return Data(bank, bank, queries, tuple(classes), protocol)


@DATASETS.register("digits")
@with_shape(classes=10, size_px=8)
def digits(train: int = 1000) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 px: the first `train` train and are searched, the rest query."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    if not 10 <= train < len(raw.target):
        raise ValueError(f"train must be 10 to {len(raw.target) - 1}, got {train}")
    pixels = rearrange(torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8), "n h w -> n 1 h w")
    labels = torch.from_numpy(raw.target).long()
    bank = Split(InMemory(pixels[:train]), labels[:train])
    query = Split(InMemory(pixels[train:]), labels[train:])
    protocol = f"scikit-learn's digits: bank the first {train}, queries the other {len(query)}"
    return Data(bank, bank, query, tuple("0123456789"), protocol)


def _photographs() -> dict[str, Image.Image]:
    if find_spec("skimage") is None:
        raise EnvironmentProblem(
            "photos needs the photographs of scikit-image, which is not installed: pip install 'reptk[demo]'"
        )
    found = {name: files("skimage") / "data" / file for name, file in SCIKIT_IMAGE.items()}
    found |= {name: files("sklearn") / "datasets" / "images" / file for name, file in SCIKIT_LEARN.items()}
    missing = sorted(name for name, path in found.items() if not path.is_file())
    if missing:
        raise EnvironmentProblem(f"photos: scikit-image or scikit-learn came without {', '.join(missing)}")
    pictures = {}
    for name, path in found.items():
        with path.open("rb") as file, Image.open(file) as picture:
            pictures[name] = picture.convert("RGB")
    return pictures


def _patches(name: str, region: Image.Image, count: int) -> list[Tensor]:
    draws = torch.rand(count, 3, generator=rng.generator("photos", name, count))
    return [_patch(region, *draw) for draw in draws.tolist()]


def _patch(region: Image.Image, size: float, across: float, down: float) -> Tensor:
    low, high = SIDES_PX
    side = min(low + round(size * (high - low)), region.width, region.height)
    left, top = round(across * (region.width - side)), round(down * (region.height - side))
    patch = region.resize((PATCH_PX, PATCH_PX), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return to_tensor(patch)
