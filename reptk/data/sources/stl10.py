"""STL-10, read by torchvision."""

import torch

from reptk.config.registry import DATASETS
from reptk.data.protocol import Data, InMemory, Split, with_shape
from reptk.data.sources.torchvision_files import open_or_download

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@DATASETS.register("stl10")
@with_shape(classes=len(CLASSES), size_px=96)
def stl10(root: str = "data/stl10", download: bool = True, unlabeled: bool = True) -> Data:
    """STL-10: 5,000 labeled images (bank), 8,000 queries, 96 x 96 px; 100,000 more without labels train as well.

    Args:
        root: holds `stl10_binary`.
        download: let torchvision download the files if they are missing.
        unlabeled: train on the unlabeled images too; they carry label -1.

    Raises:
        DataError: the files are missing, and were not downloaded.
    """
    from torchvision.datasets import STL10

    def open_split(name: str) -> Split:
        dataset = open_or_download(
            "stl10",
            root,
            download=download,
            open_dataset=lambda fetch: STL10(root, name, download=fetch),
            content=STL10.base_folder,
        )
        return Split(InMemory(torch.from_numpy(dataset.data)), torch.from_numpy(dataset.labels).long())

    bank = open_split("train")
    query = open_split("test")
    train = bank
    if unlabeled:
        train = open_split("train+unlabeled")
    return Data(train, bank, query, CLASSES, "STL-10: bank the 5,000 labeled training images, queries the 8,000 test")
