"""What evaluators share: features that are extracted once, data without labels, collapse."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reptk.core import distributed
from reptk.data import Data, InMemory, Split
from reptk.data.sources.generated import generated
from reptk.evaluate import ImageFeatures, Knn, ViewRetrieval, effective_rank, knn, pixels, retrieval
from reptk.views.sets import crop_flip, none

# Its functions are replaced here, so the module itself is asked for.
search_module = importlib.import_module("reptk.neighbors.exact")
features_module = importlib.import_module("reptk.evaluate.features")


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


# Features


class Counted:
    """Row-wise features (no batch arithmetic), and how many images went through."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return torch.stack([image.flatten() + 0.1 for image in images])


def small_data(**changes: int) -> Data:
    return generated(**{"classes": 5, "size": 8, "train": 60, "bank": 40, "query": 21, **changes})


def test_features_are_unit_rows_extracted_once() -> None:
    data, embed = small_data(), Counted()
    encode = ImageFeatures(embed, size_px=8)
    first = encode.features(data.bank)
    assert encode.features(data.bank) is first
    assert embed.seen == 40
    encode.features(data.query)
    encode.features(Split(data.bank.images, data.bank.labels))  # another split, though of the same images
    assert embed.seen == 40 + 21 + 40
    flat = data.bank.images.pixels.flatten(1) / 255 + 0.1
    assert torch.allclose(first, flat / flat.norm(dim=1, keepdim=True))
    assert not first.requires_grad


@pytest.mark.parametrize("block", [1, 7, 40, 64])
def test_blocks_do_not_change_features(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_data()
    expected = ImageFeatures(Counted(), size_px=8).features(data.bank)
    monkeypatch.setattr(features_module, "BLOCK", block)
    assert torch.equal(ImageFeatures(Counted(), size_px=8).features(data.bank), expected)


@pytest.mark.parametrize("images", [3, 16, 23, 40])
def test_ranks_do_not_change_features(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, one after the other: what they would gather is what one process computes, random views included."""
    data = small_data(bank=images)
    monkeypatch.setattr(features_module, "BLOCK", 8)
    views = crop_flip(count=1, size=8)
    alone = ImageFeatures(Counted(), size_px=8, views=views)
    expected = alone.features(data.bank), alone.view(data.bank, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "all_gather_uneven", lambda part: parts.append(part) or part)
        encode = ImageFeatures(Counted(), size_px=8, views=views)
        encode.features(data.bank), encode.view(data.bank, 1)
        assert torch.equal(encode.local_part(data.bank)[0], parts[4 * rank])
    assert torch.equal(torch.cat(parts[::4]), expected[0])
    assert torch.equal(torch.cat(parts[2::4]), expected[1])


def test_random_views_differ_by_number_and_repeat() -> None:
    data = small_data()
    views = crop_flip(count=1, size=8)
    encode, again = (ImageFeatures(Counted(), size_px=8, views=views) for _ in range(2))
    assert encode.view(data.bank, 0) is encode.view(data.bank, 0)
    assert torch.equal(again.view(data.bank, 1), encode.view(data.bank, 1))
    assert torch.equal(again.view(data.bank, 0), encode.view(data.bank, 0))
    for other in (encode.view(data.bank, 1), encode.features(data.bank)):
        assert (encode.view(data.bank, 0) != other).any(1).float().mean() > 0.8


def test_raw_pixels_of_grey_images_count_once() -> None:
    grey = Split(InMemory(torch.arange(64, dtype=torch.uint8).view(4, 1, 4, 4)), torch.zeros(4))
    coloured = small_data().train
    assert ImageFeatures(pixels(grey), size_px=4).features(grey).shape == (4, 16)
    assert ImageFeatures(pixels(coloured), size_px=4).features(coloured).shape == (60, 48)


# Evaluators


def few_pixels(images: Tensor) -> Tensor:
    """Features that do not settle every question."""
    return images[:, 0, :1, ::4].flatten(1)


def test_knn_evaluator_is_the_two_functions() -> None:
    data = small_data()
    encode = ImageFeatures(few_pixels, size_px=8)
    given = (encode.features(data.bank), data.bank.labels, encode.features(data.query), data.query.labels)
    found = Knn(k=(1, 10), temperature=0.5, recall=(1, 3), precision=(2,))(encode, data).metrics
    assert found == knn(*given, k=[1, 10], temperature=0.5) | retrieval(*given, k=[1, 3], precision=[2])
    assert Knn(k=(1, 10), temperature=0.5).during_training(encode, data).metrics == knn(
        *given, k=[1, 10], temperature=0.5
    )
    assert list(Knn(k=(1,), retrieval=False)(encode, data).metrics) == ["knn@1", "knn_majority@1"]


def test_a_bank_that_is_the_queries_is_leave_one_out() -> None:
    data = small_data()
    data = replace(data, query=data.bank)
    encode = ImageFeatures(few_pixels, size_px=8)
    given = [encode.features(data.bank), data.bank.labels] * 2
    own = torch.arange(40)
    found = Knn(k=(1, 39), recall=(1,), precision=(3,))(encode, data).metrics
    assert found == knn(*given, k=[1, 39], exclude=own) | retrieval(*given, k=[1], precision=[3], exclude=own)
    # A copy of the bank is not the bank: there every query finds itself.
    copy = replace(data, query=Split(data.bank.images, data.bank.labels))
    assert Knn(k=(1,), recall=(1,))(encode, copy).metrics["knn@1"] == 1
    assert found["knn@1"] < 1


@pytest.mark.parametrize(("same", "limit"), [(False, 40), (True, 39)])
def test_k_beyond_the_bank_is_lowered_with_a_warning(same: bool, limit: int) -> None:
    data = small_data()
    data = replace(data, query=data.bank) if same else data
    encode = ImageFeatures(pixels(data.train), size_px=8)
    with pytest.warns(UserWarning, match=f"k = 200 is more than the bank offers; {limit} is used"):
        found = Knn(k=(1, 100, 200), retrieval=False)(encode, data).metrics
    assert list(found) == ["knn@1", f"knn@{limit}", "knn_majority@1", f"knn_majority@{limit}"]


def unlabelled(images: int) -> Data:
    train = small_data(train=images).train
    return Data(Split(train.images, torch.full((images,), -1)), None, None, (), "no labels")


def test_view_retrieval_is_perfect_where_views_do_not_matter() -> None:
    data = unlabelled(300)
    encode = ImageFeatures(pixels(data.train), size_px=8, views=none(count=1, size=8))
    assert ViewRetrieval()(encode, data).metrics == {"view_recall@1": 1, "view_recall@5": 1}


def test_view_retrieval_of_a_random_embedding_is_chance() -> None:
    data = unlabelled(400)
    noise = torch.Generator().manual_seed(0)
    encode = ImageFeatures(
        lambda images: torch.randn(len(images), 8, generator=noise), size_px=8, views=none(count=1, size=8)
    )
    found = ViewRetrieval(recall=(1, 5, 200))(encode, data).metrics
    assert found["view_recall@1"] < 0.03
    assert found["view_recall@5"] < 0.06
    assert 0.35 < found["view_recall@200"] < 0.65


def test_view_retrieval_looks_at_no_more_than_its_limit() -> None:
    data = unlabelled(90)
    found = []
    for _ in range(2):
        embed = Counted()
        encode = ImageFeatures(embed, size_px=8, views=crop_flip(count=1, size=8))
        found.append(ViewRetrieval(recall=(1, 30), limit=30)(encode, data).metrics)
        assert embed.seen == 3 * 30  # two views, and the images as they are for the report
    assert found[0] == found[1]
    assert list(found[0]) == ["view_recall@1", "view_recall@30"]
    assert found[0]["view_recall@30"] == 1


def test_view_retrieval_lowers_k_as_knn_does() -> None:
    data = unlabelled(50)
    encode = ImageFeatures(pixels(data.train), size_px=8, views=none(count=1, size=8))
    with pytest.warns(UserWarning, match="50 is used"):
        assert ViewRetrieval(recall=(100,))(encode, data).metrics == {"view_recall@50": 1}


# Collapse


def test_effective_rank_counts_dimensions() -> None:
    orthogonal = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0))).Q
    assert effective_rank(torch.ones(32, 8)) == pytest.approx(1, abs=0.01)
    assert effective_rank(orthogonal[:1] * torch.arange(1, 51)[:, None]) == pytest.approx(1, abs=0.01)
    assert effective_rank(orthogonal) == pytest.approx(16, rel=1e-3)
    assert effective_rank(torch.nn.functional.pad(orthogonal[:, :4], (0, 12))) == pytest.approx(4, rel=1e-3)
    assert effective_rank(1000 * orthogonal.bfloat16()) == pytest.approx(16, rel=1e-2)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    scaled = orthogonal[:, :4] * torch.tensor(shares, dtype=torch.float32)
    assert effective_rank(scaled) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
