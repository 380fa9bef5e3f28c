"""View retrieval: perfect, chance, and in between; it needs no labels."""

import pytest
import torch

from reptk.evaluate import ImageFeatures, ViewRetrieval, pixels
from reptk.views.sets import crop_flip, none
from small_features import CountingEmbedding, unlabeled_data


def test_it_is_perfect_if_views_do_not_differ() -> None:
    data = unlabeled_data(300)
    features = ImageFeatures(pixels(data.train), size_px=8, views=none(count=1, size=8))
    assert ViewRetrieval()(features, data).metrics == {"view_recall@1": 1, "view_recall@5": 1}


def test_a_random_embedding_is_chance() -> None:
    data = unlabeled_data(400)
    stream = torch.Generator().manual_seed(0)

    def embed(images: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(images), 8, generator=stream)

    features = ImageFeatures(embed, size_px=8, views=none(count=1, size=8))
    metrics = ViewRetrieval(recall=(1, 5, 200))(features, data).metrics
    assert metrics["view_recall@1"] < 0.03
    assert metrics["view_recall@5"] < 0.06
    assert 0.35 < metrics["view_recall@200"] < 0.65


def test_no_more_images_than_the_limit_are_encoded() -> None:
    data = unlabeled_data(90)
    metrics = []
    for _ in range(2):
        embed = CountingEmbedding()
        features = ImageFeatures(embed, size_px=8, views=crop_flip(count=1, size=8))
        metrics.append(ViewRetrieval(recall=(1, 30), limit=30)(features, data).metrics)
        assert embed.num_images == 3 * 30  # two views, and the images themselves for the report
    assert metrics[0] == metrics[1]
    assert list(metrics[0]) == ["view_recall@1", "view_recall@30"]
    assert metrics[0]["view_recall@30"] == 1


def test_during_training_the_images_themselves_are_not_encoded() -> None:
    data, embed = unlabeled_data(40), CountingEmbedding()
    features = ImageFeatures(embed, size_px=8, views=crop_flip(count=1, size=8))
    result = ViewRetrieval().during_training(features, data)
    assert embed.num_images == 2 * 40
    assert result.predictions is None
    assert result.metrics == ViewRetrieval()(features, data).metrics


def test_k_beyond_the_images_is_lowered_with_a_warning() -> None:
    data = unlabeled_data(50)
    features = ImageFeatures(pixels(data.train), size_px=8, views=none(count=1, size=8))
    with pytest.warns(UserWarning, match="50 is used"):
        assert ViewRetrieval(recall=(100,))(features, data).metrics == {"view_recall@50": 1}
