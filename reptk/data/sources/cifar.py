"""CIFAR-10 and CIFAR-100, read by torchvision."""

from typing import Any

import torch
from einops import rearrange

from reptk.config.registry import DATASETS
from reptk.data.protocol import Data, InMemory, Split, with_shape
from reptk.data.sources.torchvision_files import open_or_download


@DATASETS.register("cifar10")
@with_shape(classes=10, size_px=32)
def cifar10(root: str = "data/cifar10", download: bool = True) -> Data:
    """CIFAR-10: 50,000 training images, which are the bank as well, and 10,000 queries; 32 x 32 px.

    `root` holds `cifar-10-batches-py`; torchvision checks the checksum of every file before it reads it.

    Raises:
        DataError: the files are missing, and were not downloaded.
    """
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, "cifar10", root, download)


@DATASETS.register("cifar100")
@with_shape(classes=100, size_px=32)
def cifar100(root: str = "data/cifar100", download: bool = True) -> Data:
    """CIFAR-100: 50,000 training images, which are the bank as well, and 10,000 queries; 32 x 32 px.

    `root` holds `cifar-100-python`; torchvision checks the checksum of every file before it reads it.

    Raises:
        DataError: the files are missing, and were not downloaded.
    """
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, "cifar100", root, download)


def _cifar(dataset_class: Any, name: str, root: str, download: bool) -> Data:
    def open_part(train: bool) -> Any:
        return open_or_download(
            name,
            root,
            download=download,
            open_dataset=lambda fetch: dataset_class(root, train, download=fetch),
            content=dataset_class.base_folder,
        )

    train = open_part(train=True)
    test = open_part(train=False)
    bank = _split(train)
    protocol = f"{dataset_class.__name__}: bank the 50,000 training, queries the 10,000 test images"
    return Data(bank, bank, _split(test), tuple(train.classes), protocol)


def _split(dataset: Any) -> Split:
    pixels = rearrange(torch.from_numpy(dataset.data), "n h w c -> n c h w")
    return Split(InMemory(pixels), torch.tensor(dataset.targets))
