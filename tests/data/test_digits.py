"""scikit-learn's digits: the same pixels and order, divided at any number."""

import numpy as np
import pytest
import torch

from image_files import fetch_all, same_data
from reptk.data import digits


def test_digits_equal_scikit_learns_in_order():
    from sklearn.datasets import load_digits

    raw, data = load_digits(), digits()
    pixels = torch.from_numpy(np.floor(raw.images * 255 / 16 + 0.5).astype(np.uint8))
    assert (len(data.train), len(data.query)) == (1000, 797)
    assert data.bank is data.train
    assert data.train.labels.tolist() + data.query.labels.tolist() == raw.target.tolist()
    all_images = torch.cat([fetch_all(data.train), fetch_all(data.query)])
    assert torch.equal(all_images, pixels[:, None].expand(-1, 3, -1, -1))
    assert (pixels.amin(), pixels.amax()) == (0, 255)
    assert same_data(data, digits())


@pytest.mark.parametrize("train", [10, 1796])
def test_train_sets_where_the_digits_are_divided(train):
    data = digits(train)
    assert (len(data.train), len(data.query)) == (train, 1797 - train)


@pytest.mark.parametrize("train", [0, 9, 1797])
def test_both_splits_need_images(train):
    with pytest.raises(ValueError, match=f"train must be 10 to 1796, got {train}"):
        digits(train)
