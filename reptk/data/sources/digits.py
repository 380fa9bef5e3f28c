"""scikit-learn's handwritten digits."""

import torch
from einops import rearrange

from reptk.config.registry import DATASETS
from reptk.data.protocol import Data, InMemory, Split, with_shape

NUM_CLASSES = 10
MAX_GRAY = 16
"""The value of white in scikit-learn's images."""


@DATASETS.register("digits")
@with_shape(classes=NUM_CLASSES, size_px=8)
def digits(train: int = 1000) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 px, gray.

    The first `train` are the training images and the bank, the others the queries.
    """
    # Imported here, since it takes long and only this data set needs it.
    from sklearn.datasets import load_digits

    dataset = load_digits()
    num_images = len(dataset.target)
    if not NUM_CLASSES <= train < num_images:
        raise ValueError(f"train must be {NUM_CLASSES} to {num_images - 1}, got {train}")
    gray = torch.from_numpy(dataset.images * (255 / MAX_GRAY)).round().to(torch.uint8)
    pixels = rearrange(gray, "n h w -> n 1 h w")
    labels = torch.from_numpy(dataset.target).long()
    bank = Split(InMemory(pixels[:train]), labels[:train])
    query = Split(InMemory(pixels[train:]), labels[train:])
    protocol = f"scikit-learn's digits: bank the first {train}, queries the other {len(query)}"
    return Data(bank, bank, query, tuple("0123456789"), protocol)
