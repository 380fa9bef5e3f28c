"""check_views: shipped sets pass, and every requirement is violated by views written for it."""

import pytest
import torch

from reptk.config.registry import VIEWS
from reptk.core import rng
from reptk.core.images import resize_center_crop
from reptk.methods import Batch
from reptk.testing import (
    FIXED_VIEWS_REQUIREMENTS,
    RANDOM_VIEWS_REQUIREMENTS,
    VIEWS_REQUIREMENTS,
    check_views,
)
from reptk.views import crops_full_images
from violations import assert_each_is_violated, assert_rng_untouched, assert_violates, shipped

SIZE = 16

VIEWS_ARGUMENTS = {
    "kornia": {
        "operations": [{"name": "RandomResizedCrop", "size": [SIZE, SIZE]}, {"name": "RandomErasing", "p": 0.5}]
    },
    "multi_crop": {"small_size": SIZE // 2},
    "per_view": {"lists": ["simclr_small", "crop_flip", "none"]},
}


@pytest.mark.parametrize("name", shipped(VIEWS))
def test_every_shipped_set_meets_the_requirements(name):
    views = VIEWS.get(name)(size=SIZE, **VIEWS_ARGUMENTS.get(name, {}))
    check_views(views, size=SIZE, random=name != "none")


class Brighten:
    """Two views of every image, each brighter by its own amount. Subclasses violate a requirement."""

    def __init__(self):
        self.rank, self.world_size = 0, 1

    def shard(self, rank, world_size):
        self.rank, self.world_size = rank, world_size
        return self

    def draw(self, count, key):
        return torch.rand(2, count * self.world_size, 1, 1, 1, generator=rng.generator(key))

    def __call__(self, images, key):
        part = slice(self.rank * len(images), (self.rank + 1) * len(images))
        return (resize_center_crop(images, SIZE) + self.draw(len(images), key)[:, part]).clamp(0, 1)


class BrightensByAspectRatio(Brighten):
    def __call__(self, images, key, aspect_ratios=None):
        views = super().__call__(images, key)
        if aspect_ratios is not None:
            views = views * 0.5
        return views


class GlobalStream(Brighten):
    def draw(self, count, key):
        return torch.rand(2, count * self.world_size, 1, 1, 1)


class SeedsGlobalStream(Brighten):
    def draw(self, count, key):
        torch.manual_seed(key)
        return torch.rand(2, count * self.world_size, 1, 1, 1)


class DrawsForItsPartOnly(Brighten):
    def __call__(self, images, key):
        return (resize_center_crop(images, SIZE) + self.draw(len(images), key)[:, : len(images)]).clamp(0, 1)


class ShardGivesAnother(Brighten):
    def shard(self, rank, world_size):
        other = type(self)()
        other.rank, other.world_size = rank, world_size
        return other


class ComputesInAutocast(Brighten):
    def __call__(self, images, key):
        turn = torch.linalg.qr(torch.rand(SIZE, SIZE, generator=rng.generator("turn")))[0]
        return (super().__call__(images, key) @ turn @ turn.T).clamp(0, 1)


class WritesToImages(Brighten):
    def __call__(self, images, key):
        views = super().__call__(images, key)
        images.fill_(7)
        return views


class SmallKeys(Brighten):
    def draw(self, count, key):
        return super().draw(count, int(torch.tensor(key, dtype=torch.int32)))


class OneDraw(Brighten):
    def draw(self, count, key):
        return super().draw(count, key)[:1].expand(2, -1, -1, -1, -1)


def brighten_then(change):
    """`Brighten` with its result changed, and without `shard`."""
    return lambda images, key: change(Brighten()(images, key))


BROKEN_VIEWS = {
    "one view, no axis": (brighten_then(lambda views: views[0]), ["(B, 3, H, W)", ...]),
    "a list": (brighten_then(list), ["(B, 3, H, W)", ...]),
    "another size": (brighten_then(lambda views: views[..., 1:]), ["(B, 3, H, W)"]),
    "bytes": (brighten_then(lambda views: (views * 255).to(torch.uint8)), ["(B, 3, H, W)"]),
    "0..255": (brighten_then(lambda views: views * 255), ["(B, 3, H, W)"]),
    "NaN": (brighten_then(lambda views: views * torch.nan), ["(B, 3, H, W)", ...]),
    "global stream": (GlobalStream(), ["the same images and key", "the random states", ...]),
    "seeds the global stream": (SeedsGlobalStream(), ["the random states"]),
    "in autocast": (ComputesInAutocast(), ["autocast"]),
    "writes": (WritesToImages(), ["the images are not written", ...]),
    "aspect ratios of squares": (BrightensByAspectRatio(), ["aspect ratios of 1"]),
    "draws for its part only": (DrawsForItsPartOnly(), ["two ranks"]),
    "shard gives another": (ShardGivesAnother(), ["two ranks"]),
    "key ignored": (lambda images, key: Brighten()(images, 0), ["another key"]),
    "short keys": (SmallKeys(), ["another key"]),
    "one draw": (OneDraw(), ["the views of an image"]),
}
BROKEN_FIXED_VIEWS = {"random": (Brighten(), ["the key does not matter"])}


def test_brighten_meets_the_requirements():
    check_views(Brighten(), size=SIZE)
    check_views(lambda images, key: Brighten()(images, 0), size=SIZE, random=False)


@pytest.mark.parametrize(("views", "expected"), BROKEN_VIEWS.values(), ids=BROKEN_VIEWS)
def test_broken_views_are_detected(views, expected):
    assert_violates(expected, VIEWS_REQUIREMENTS + RANDOM_VIEWS_REQUIREMENTS, check_views, views, size=SIZE)


@pytest.mark.parametrize(("views", "expected"), BROKEN_FIXED_VIEWS.values(), ids=BROKEN_FIXED_VIEWS)
def test_views_that_are_not_fixed_are_detected(views, expected):
    requirements = VIEWS_REQUIREMENTS + FIXED_VIEWS_REQUIREMENTS
    assert_violates(expected, requirements, check_views, views, size=SIZE, random=False)


def test_every_requirement_is_violated_by_broken_views():
    requirements = VIEWS_REQUIREMENTS + RANDOM_VIEWS_REQUIREMENTS + FIXED_VIEWS_REQUIREMENTS
    assert_each_is_violated(requirements, BROKEN_VIEWS, BROKEN_FIXED_VIEWS)


class AsModule(torch.nn.Module):
    """Views may be a module, and aspect ratios may be passed by name only."""

    def forward(self, images, key, *, aspect_ratios=None):
        return BrightensByAspectRatio()(images, key, aspect_ratios)


def test_the_aspect_ratios_of_a_module_are_tried_as_well():
    assert crops_full_images(AsModule())
    with pytest.raises(AssertionError, match="aspect ratios of 1"):
        check_views(AsModule(), size=SIZE)
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2), torch.arange(2), torch.ones(2))
    assert not torch.equal(batch.draw_views(AsModule(), 0), AsModule()(batch.images, 0))


def test_views_are_reset_to_one_process():
    views = Brighten()
    check_views(views, size=SIZE)
    assert (views.rank, views.world_size) == (0, 1)


def test_a_failing_check_leaves_the_random_state() -> None:
    assert_rng_untouched(check_views, SeedsGlobalStream(), size=SIZE)
