"""my_dataset does what every data set must do, and its images have the classes that their labels say."""

import torch
from my_dataset import CLASSES, my_dataset

from reptk.testing import check_dataset


def test_it_does_what_a_data_set_must_do():
    check_dataset(my_dataset, train=40, bank=20, query=8)


def test_labels():
    data = my_dataset(train=8)
    images = data.train.images.fetch(torch.arange(8))
    for image, label in zip(images, data.train.labels, strict=True):
        first, second = (image[0, :, 0] >= 200).nonzero()[:2]
        assert CLASSES[label] == f"{second.item() - first.item()} px"
