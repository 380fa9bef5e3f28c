"""Data sets: uint8 images, labels (-1 for none) and fixed splits; and the loader, whose order is a function of a seed."""

from reptk.core.threads import num_cpus
from reptk.data.batches.samplers import create_sampler
from reptk.data.loading.device_prefetch import DevicePrefetcher
from reptk.data.loading.loader import Loader, check_num_images, read_blocks
from reptk.data.protocol import Data, Images, InMemory, Split, WritableImages, subsample
from reptk.data.sources.cifar import cifar10, cifar100
from reptk.data.sources.digits import digits
from reptk.data.sources.fashion_mnist import fashion_mnist
from reptk.data.sources.folder import folder
from reptk.data.sources.generated import generated
from reptk.data.sources.imagenet import imagenet
from reptk.data.sources.imagenet100 import imagenet100
from reptk.data.sources.photos import photos
from reptk.data.sources.stl10 import stl10

__all__ = [
    "Data",
    "DevicePrefetcher",
    "Images",
    "InMemory",
    "Loader",
    "Split",
    "WritableImages",
    "check_num_images",
    "cifar10",
    "cifar100",
    "create_sampler",
    "digits",
    "fashion_mnist",
    "folder",
    "generated",
    "imagenet",
    "imagenet100",
    "num_cpus",
    "photos",
    "read_blocks",
    "stl10",
    "subsample",
]
