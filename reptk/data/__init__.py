"""Data sets: uint8 images, labels (-1 where there is none) and fixed splits; and the keyed loader that batches them."""

from reptk.data.ahead import cores
from reptk.data.embedded import digits, photos
from reptk.data.feed import Feed
from reptk.data.folder import folder, imagenet100
from reptk.data.generated import generated
from reptk.data.loader import Loader, blocks
from reptk.data.small import cifar10, cifar100, fashion_mnist, stl10
from reptk.data.splits import Data, Images, InMemory, Split, limited

__all__ = [
    "Data",
    "Feed",
    "Images",
    "InMemory",
    "Loader",
    "Split",
    "blocks",
    "cifar10",
    "cifar100",
    "cores",
    "digits",
    "fashion_mnist",
    "folder",
    "generated",
    "imagenet100",
    "limited",
    "photos",
    "stl10",
]
