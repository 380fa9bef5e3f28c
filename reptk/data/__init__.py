"""Data sets: uint8 images, labels (-1 where there is none) and fixed splits; and the keyed loader that batches them."""

from reptk.data.device_prefetch import DevicePrefetcher
from reptk.data.embedded import digits, photos
from reptk.data.folder import folder, imagenet100
from reptk.data.generated import generated
from reptk.data.loader import Loader, read_blocks
from reptk.data.prefetch import num_cpus
from reptk.data.protocol import Data, Images, InMemory, Split, subsample
from reptk.data.small import cifar10, cifar100, fashion_mnist, stl10

__all__ = [
    "Data",
    "DevicePrefetcher",
    "Images",
    "InMemory",
    "Loader",
    "Split",
    "read_blocks",
    "cifar10",
    "cifar100",
    "num_cpus",
    "digits",
    "fashion_mnist",
    "folder",
    "generated",
    "imagenet100",
    "subsample",
    "photos",
    "stl10",
]
