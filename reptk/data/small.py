"""Small public data sets in memory, read by torchvision: Fashion-MNIST, CIFAR-10, CIFAR-100, STL-10."""

import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from reptk.config.registry import DATASETS
from reptk.core.errors import DataError
from reptk.data.protocol import Data, InMemory, Split, with_shape

FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@DATASETS.register("fashion_mnist")
@with_shape(classes=10, size_px=28)
def fashion_mnist(root: str = "data/fashion_mnist", download: bool = True) -> Data:
    """Fashion-MNIST: 60,000 images train and are searched, 10,000 are queries; 28 x 28 px, grey.

    Looked for in `root` (the four IDX files, gzipped or not, in it or where torchvision puts them), then where
    Debian's package dataset-fashion-mnist installs them; else torchvision downloads it into `root`.

    Raises:
        DataError: nowhere, and the download failed.
    """
    from torchvision.datasets import FashionMNIST

    places = [Path(root), Path(root) / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    folder = _with_idx_files(places)
    if folder is None:
        _read("fashion_mnist", root, download, lambda fetch: FashionMNIST(root, download=fetch), _FASHION_FILES)
        folder = places[1]
    train, query = _idx_split(folder, "train"), _idx_split(folder, "t10k")
    return Data(
        train, train, query, FASHION_CLASSES, "Fashion-MNIST: bank the 60,000 training, queries the 10,000 test"
    )


@DATASETS.register("cifar10")
@with_shape(classes=10, size_px=32)
def cifar10(root: str = "data/cifar10", download: bool = True) -> Data:
    """CIFAR-10: 50,000 images train and are searched, 10,000 are queries; 32 x 32 px.

    `root` holds `cifar-10-batches-py`; torchvision checks every file's checksum before it reads it.

    Raises:
        DataError: not there, and the download failed.
    """
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, "cifar10", root, download)


@DATASETS.register("cifar100")
@with_shape(classes=100, size_px=32)
def cifar100(root: str = "data/cifar100", download: bool = True) -> Data:
    """CIFAR-100: 50,000 images train and are searched, 10,000 are queries; 32 x 32 px.

    `root` holds `cifar-100-python`; torchvision checks every file's checksum before it reads it.

    Raises:
        DataError: not there, and the download failed.
    """
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, "cifar100", root, download)


@DATASETS.register("stl10")
@with_shape(classes=10, size_px=96)
def stl10(root: str = "data/stl10", download: bool = True, unlabeled: bool = True) -> Data:
    """STL-10: 5,000 labelled images (bank), 8,000 queries, 96 x 96 px; 100,000 more without labels train as well.

    Args:
        root: holds `stl10_binary`.
        download: let torchvision fetch it if it is not there.
        unlabeled: train on the unlabelled images too; they carry label -1.

    Raises:
        DataError: not there, and the download failed.
    """
    from torchvision.datasets import STL10

    def split(name: str) -> Split:
        made = _read("stl10", root, download, lambda fetch: STL10(root, name, download=fetch), "stl10_binary")
        return Split(InMemory(torch.from_numpy(made.data)), torch.from_numpy(made.labels).long())

    bank, query = split("train"), split("test")
    train = split("train+unlabeled") if unlabeled else bank
    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    return Data(train, bank, query, classes, "STL-10: bank the 5,000 labelled training images, queries the 8,000 test")


_FASHION_FILES = "the four files of Fashion-MNIST, *-ubyte or *-ubyte.gz"


def _cifar(reader: Any, name: str, root: str, download: bool) -> Data:
    def split(train: bool) -> Any:
        return _read(name, root, download, lambda fetch: reader(root, train, download=fetch), reader.base_folder)

    made = [split(True), split(False)]
    train, query = (
        Split(
            InMemory(rearrange(torch.from_numpy(part.data), "n h w c -> n c h w")),
            torch.tensor(part.targets),
        )
        for part in made
    )
    protocol = f"{reader.__name__}: bank the 50,000 training, queries the 10,000 test images"
    return Data(train, train, query, tuple(made[0].classes), protocol)


def _read(name: str, root: str, download: bool, read: Callable[[bool], Any], content: str) -> Any:
    """`read(False)` if the files are there, else `read(True)`, which downloads them."""
    try:
        return read(False)
    except RuntimeError:
        cause: Exception | None = None
    try:
        if download:
            return read(True)
    except Exception as error:
        cause = error
    why = f"the download failed: {cause}" if cause else "and data.download is false"
    raise DataError(
        f"{name}: no images in {root} (data.root); {why}\n"
        f"  data.root=/path/to/folder   a folder that holds {content}\n"
        f"  without any data: add --smoke"
    ) from cause


def _with_idx_files(folders: list[Path]) -> Path | None:
    return next((folder for folder in folders if all(_idx_file(folder, part, kind) for part, kind in _IDX)), None)


_IDX = [(part, kind) for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    candidates = [folder / f"{part}-{kind}-ubyte{ending}" for ending in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _idx_split(folder: Path, part: str) -> Split:
    images, labels = _idx(folder, part, "images-idx3"), _idx(folder, part, "labels-idx1")
    if len(images) != len(labels):
        raise DataError(f"fashion_mnist: {len(images)} images but {len(labels)} labels in {folder} ({part})")
    return Split(InMemory(rearrange(images, "n h w -> n 1 h w")), labels.long())


def _idx(folder: Path, part: str, kind: str) -> Tensor:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    path = _idx_file(folder, part, kind)
    try:
        with tempfile.NamedTemporaryFile() as plain:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as packed:
                shutil.copyfileobj(packed, plain)
            plain.flush()
            values = read_sn3_pascalvincent_tensor(plain.name)
    except Exception as cause:
        raise DataError(f"fashion_mnist: {path} is damaged: {cause or type(cause).__name__}") from cause
    expected = 3 if kind == "images-idx3" else 1
    if values.ndim != expected:
        raise DataError(f"fashion_mnist: {path} has {values.ndim} dimensions, not {expected}")
    return values
