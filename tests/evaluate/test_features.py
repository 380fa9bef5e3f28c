"""Features of splits: computed once, the same whatever the blocks and the number of ranks; random views; raw pixels."""

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from reptk import VIEWS
from reptk.core import distributed
from reptk.core.errors import UsageError
from reptk.core.images import resize_center_crop
from reptk.data import InMemory, Split, folder
from reptk.evaluate import FeatureStore, ImageFeatures, pixels
from reptk.views.sets import crop_flip
from small_features import CountingEmbedding, small_data

features_module = importlib.import_module("reptk.evaluate.features")


def test_features_are_unit_rows_computed_once() -> None:
    data, embed = small_data(), CountingEmbedding()
    store = ImageFeatures(embed, size_px=8)
    first = store.features(data.bank)
    assert store.features(data.bank) is first
    assert embed.num_images == 40
    store.features(data.query)
    store.features(Split(data.bank.images, data.bank.labels))  # another split, though of the same images
    assert embed.num_images == 40 + 21 + 40
    flat = data.bank.images.pixels.flatten(1) / 255 + 0.1
    assert torch.allclose(first, flat / flat.norm(dim=1, keepdim=True))
    assert torch.allclose(store.raw(data.bank), flat)
    assert not first.requires_grad


@pytest.mark.parametrize("block", [1, 7, 40, 64])
def test_blocks_do_not_change_features(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_data()
    expected = ImageFeatures(CountingEmbedding(), size_px=8).features(data.bank)
    monkeypatch.setattr(features_module, "BLOCK", block)
    assert torch.equal(ImageFeatures(CountingEmbedding(), size_px=8).features(data.bank), expected)


@pytest.mark.parametrize("images", [3, 16, 23, 40])
def test_ranks_do_not_change_features(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, one after the other: what they would gather equals what one process computes, also of random views."""
    data = small_data(bank=images)
    monkeypatch.setattr(features_module, "BLOCK", 8)
    views = crop_flip(count=1, size=8)
    alone = ImageFeatures(CountingEmbedding(), size_px=8, views=views)
    expected = alone.features(data.bank), alone.view(data.bank, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    gathered = []

    def record_rows(rows: torch.Tensor) -> torch.Tensor:
        if rows.ndim == 2:  # not the numbers of unreadable images
            gathered.append(rows)
        return rows

    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "all_gather_uneven", record_rows)
        store = ImageFeatures(CountingEmbedding(), size_px=8, views=views)
        store.features(data.bank), store.view(data.bank, 1)
        assert torch.equal(store.local_part(data.bank)[0], gathered[4 * rank])
    # Each rank gathers four tensors: unit rows and norms of the images, then of the view.
    assert torch.equal(torch.cat(gathered[::4]), expected[0])
    assert torch.equal(torch.cat(gathered[2::4]), expected[1])


def test_random_views_differ_by_number_and_repeat() -> None:
    data = small_data()
    views = crop_flip(count=1, size=8)
    store, other_store = (ImageFeatures(CountingEmbedding(), size_px=8, views=views) for _ in range(2))
    assert store.view(data.bank, 0) is store.view(data.bank, 0)
    assert torch.equal(other_store.view(data.bank, 1), store.view(data.bank, 1))
    assert torch.equal(other_store.view(data.bank, 0), store.view(data.bank, 0))
    for other in (store.view(data.bank, 1), store.features(data.bank)):
        assert (store.view(data.bank, 0) != other).any(1).float().mean() > 0.8


def test_raw_pixels_of_gray_images_count_once() -> None:
    gray = Split(InMemory(torch.arange(64, dtype=torch.uint8).view(4, 1, 4, 4)), torch.zeros(4))
    colored = small_data().train
    assert ImageFeatures(pixels(gray), size_px=4).features(gray).shape == (4, 16)
    assert ImageFeatures(pixels(colored), size_px=4).features(colored).shape == (60, 48)


class ConstantFeatures(FeatureStore):
    """The least that a store has to offer."""

    def features(self, split: Split) -> torch.Tensor:
        return torch.eye(len(split))

    def raw(self, split: Split) -> torch.Tensor:
        return 2 * torch.eye(len(split))


def test_a_store_without_images_says_so() -> None:
    data, store = small_data(), ConstantFeatures()
    assert not store.can_read_images
    for call in (
        lambda: store.view(data.bank, 0),
        lambda: store.image_batches(data.bank, []),
        lambda: store.embed(torch.zeros(1, 3, 8, 8)),
    ):
        with pytest.raises(UsageError, match="file of embeddings"):
            call()


@pytest.mark.parametrize("images", [3, 7, 40])
def test_local_parts_of_any_store_are_all_its_rows(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    split, store = small_data(bank=images).bank, ConstantFeatures()
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        rows, first = store.local_part(split)
        assert first == sum(len(part) for part in parts)
        parts.append(rows)
    assert torch.equal(torch.cat(parts), torch.eye(images))


@pytest.mark.parametrize("name", ["resized_crop_flip", "center"])
def test_random_views_are_drawn_on_full_images_if_they_can_be(name: str, tmp_path: Path) -> None:
    for number in range(20):
        picture = Image.new("RGB", (60, 30), (128, 128, 128))
        picture.paste((255, 0, 0), (0, 0, 10, 30))
        path = tmp_path / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    data = folder(str(tmp_path), size=30)

    def center(images: Tensor, key: int) -> Tensor:
        return resize_center_crop(images, 16)[None]

    views = center
    if name != "center":
        views = VIEWS.get(name)(size=16)
    features = ImageFeatures(lambda images: images.mean((2, 3)), size_px=16, views=views)
    drawn = features.view(data.train, 0)
    # Red is at the left end, which no center square shows.
    assert bool((drawn[:, 0] > drawn[:, 1] + 0.01).any()) == (name != "center")


def test_image_batches_hold_full_images_if_they_are_requested(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (20 + 10 * number, 20), (250, 0, 0)).save(tmp_path / f"{number}.png")
    split = folder(str(tmp_path), size=16).train
    store = ImageFeatures(lambda images: images.flatten(1), size_px=16)
    batches = [torch.tensor([2, 0])]
    [(squares, index)] = store.image_batches(split, batches)
    [(whole, same_index, aspect_ratios)] = store.image_batches(split, batches, full_images=True)
    assert index.tolist() == same_index.tolist() == [2, 0]
    assert whole.shape == squares.shape == (2, 3, 16, 16)
    assert aspect_ratios.tolist() == [2.0, 1.0]
