"""Patches of photographs: how many, always the same ones, and no pixel in both splits."""

import functools
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import BLUE, GREEN, RED, WHITE, fetch_all, same_data
from reptk.core.errors import EnvironmentProblem
from reptk.data import Data, photos
from reptk.data.sources import photos as photos_module

needs_scikit_image = pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")


@functools.cache
def cached_photos() -> Data:
    return photos()


@needs_scikit_image
def test_18_classes_of_150_and_50_patches():
    data = cached_photos()
    assert data.bank is data.train
    assert fetch_all(data.train).shape == (2700, 3, 32, 32)
    assert fetch_all(data.query).shape == (900, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [150] * 18
    assert data.query.labels.bincount().tolist() == [50] * 18
    assert len(data.classes) == photos.classes == 18
    assert list(data.classes) == sorted(data.classes)


@needs_scikit_image
def test_photos_are_the_same_in_every_call():
    torch.manual_seed(1)
    assert same_data(photos(), cached_photos())


def test_no_pixel_is_in_both_splits(monkeypatch):
    """Images of two colors that meet at 60 %: a patch or a filter that crosses the edge would give a third color."""
    colors = {"narrow": (WHITE, RED), "odd": (GREEN, BLUE), "wide": (RED, BLUE)}
    images = {}
    for name, (width, height) in {"wide": (640, 427), "odd": (211, 303), "narrow": (90, 400)}.items():
        left, right = colors[name]
        images[name] = Image.new("RGB", (width, height), left)
        images[name].paste(right, (round(width * 0.6), 0, width, height))
    monkeypatch.setattr(photos_module, "load_photographs", lambda: images)
    data = photos()
    for split, side in ((data.train, 0), (data.query, 1)):
        expected = torch.tensor([colors[data.classes[label]][side] for label in split.labels.tolist()])
        assert (fetch_all(split) == expected[:, :, None, None]).all()


def test_patches_of_one_side_do_not_depend_on_the_other(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (2, 200, 300, 3), dtype=np.uint8)
    edge = round(300 * 0.6)
    mixed = noise[0].copy()
    mixed[:, edge:] = noise[1][:, edge:]

    def photos_of(pixels: np.ndarray) -> Data:
        monkeypatch.setattr(photos_module, "load_photographs", lambda: {"noise": Image.fromarray(pixels)})
        return photos()

    first, second, mixed_data = photos_of(noise[0]), photos_of(noise[1]), photos_of(mixed)
    assert torch.equal(fetch_all(mixed_data.train), fetch_all(first.train))
    assert torch.equal(fetch_all(mixed_data.query), fetch_all(second.query))
    assert not torch.equal(fetch_all(first.query), fetch_all(second.query))


def test_missing_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setattr(photos_module, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=re.escape("pip install 'reptk[demo]'")):
        photos()
