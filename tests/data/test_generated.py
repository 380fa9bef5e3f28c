"""Generated images: the same ones in every call, different ones in each split."""

import pytest
import torch

from image_files import fetch_all, same_data
from reptk.config import build
from reptk.config.registry import DATASETS
from reptk.core.errors import UsageError
from reptk.data import generated


def test_generated_images_are_the_same_in_every_call_and_differ_between_splits():
    data = generated(classes=3, size=8, train=7, bank=6, query=5)
    assert same_data(data, generated(classes=3, size=8, train=7, bank=6, query=5))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    shapes = [fetch_all(split).shape for split in (data.train, data.bank, data.query)]
    assert shapes == [(count, 3, 8, 8) for count in (7, 6, 5)]
    assert not torch.equal(fetch_all(data.train)[:5], fetch_all(data.query))


@pytest.mark.parametrize("sizes", [{"train": 10**15}, {"classes": 2**62}, {"size": 10**6}, {"bank": 10**9, "size": 8}])
def test_more_images_than_fit_into_memory_are_refused(sizes):
    with pytest.raises(UsageError, match="take fewer or smaller ones"):
        build(DATASETS, {"name": "generated", **sizes})
