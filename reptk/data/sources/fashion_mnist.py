"""Fashion-MNIST, from its four IDX files."""

import gzip
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from einops import rearrange
from torch import Tensor

from reptk.config.registry import DATASETS
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.data.protocol import Data, InMemory, Split, with_shape
from reptk.data.sources.torchvision_files import open_or_download

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@DATASETS.register("fashion_mnist")
@with_shape(classes=len(CLASSES), size_px=28)
def fashion_mnist(root: str = "data/fashion_mnist", download: bool = True) -> Data:
    """Fashion-MNIST: 60,000 training images, which are the bank as well, and 10,000 queries; 28 x 28 px, gray.

    The four IDX files, gzipped or not, are read from `root` or the folder below it that torchvision uses, else from where
    Debian's package dataset-fashion-mnist installs them; else torchvision downloads them into `root`.

    Raises:
        DataError: the files are missing, and were not downloaded.
    """
    from torchvision.datasets import FashionMNIST

    torchvision_folder = Path(root) / "FashionMNIST" / "raw"
    folder = _first_complete([Path(root), torchvision_folder, DEBIAN_FOLDER])
    if folder is None:
        open_or_download(
            "fashion_mnist",
            root,
            download=download,
            open_dataset=lambda fetch: FashionMNIST(root, download=fetch),
            content="the four files of Fashion-MNIST, *-ubyte or *-ubyte.gz",
        )
        folder = torchvision_folder
    train = _read_split(folder, "train")
    query = _read_split(folder, "t10k")
    return Data(train, train, query, CLASSES, "Fashion-MNIST: bank the 60,000 training, queries the 10,000 test")


def _first_complete(folders: Iterable[Path]) -> Path | None:
    """Return the first folder that holds all four files."""
    for folder in folders:
        if all(_idx_path(folder, name) is not None for name in IDX_FILES):
            return folder
    return None


def _idx_path(folder: Path, name: str) -> Path | None:
    for extension in ("", ".gz"):
        path = folder / f"{name}-ubyte{extension}"
        if path.is_file():
            return path
    return None


def _read_split(folder: Path, part: str) -> Split:
    images = _read_idx(folder, f"{part}-images-idx3", ndim=3)
    labels = _read_idx(folder, f"{part}-labels-idx1", ndim=1)
    if len(images) != len(labels):
        raise DataError(
            f"fashion_mnist: {format_count(len(images), 'image')} but {format_count(len(labels), 'label')} in {folder} ({part})"
        )
    return Split(InMemory(rearrange(images, "n h w -> n 1 h w")), labels.long())


def _read_idx(folder: Path, name: str, ndim: int) -> Tensor:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    path = _idx_path(folder, name)
    try:
        # torchvision reads IDX from uncompressed files alone.
        with tempfile.NamedTemporaryFile() as uncompressed:
            open_file = open
            if path.suffix == ".gz":
                open_file = gzip.open
            with open_file(path, "rb") as file:
                shutil.copyfileobj(file, uncompressed)
            uncompressed.flush()
            values = read_sn3_pascalvincent_tensor(uncompressed.name)
    except Exception as cause:
        raise DataError(f"fashion_mnist: {path} is damaged: {str(cause) or type(cause).__name__}") from cause
    if values.ndim != ndim:
        raise DataError(f"fashion_mnist: {path} has {values.ndim} dimensions, not {ndim}")
    return values
