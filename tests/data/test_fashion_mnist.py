"""Fashion-MNIST from IDX files: every place and compression; damaged files are named."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from image_files import fetch_all
from reptk.core.errors import DataError
from reptk.data import fashion_mnist
from reptk.data.sources import fashion_mnist as fashion_mnist_module

DEBIAN_FOLDER = fashion_mnist_module.DEBIAN_FOLDER
needs_debian_files = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason=f"no {DEBIAN_FOLDER} (Debian: dataset-fashion-mnist)"
)


@pytest.fixture
def no_debian_files(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "missing")


def idx(values: np.ndarray) -> bytes:
    shape = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()


def write_idx_files(root: Path, extension: str = "") -> dict[str, np.ndarray]:
    """Write the four files with 7 and 3 images, and return their content by name."""
    rng = np.random.default_rng(0)
    written = {}
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 7), ("t10k", 3)):
        written[f"{part}-images-idx3"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        written[f"{part}-labels-idx1"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, values in written.items():
        content = gzip.compress(idx(values)) if extension else idx(values)
        (root / f"{name}-ubyte{extension}").write_bytes(content)
    return written


@needs_debian_files
def test_files_of_debians_package_are_read(tmp_path):
    data = fashion_mnist(str(tmp_path), download=False)
    assert (len(data.train), len(data.query)) == (60_000, 10_000)
    assert data.bank is data.train
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.query.labels.bincount().tolist() == [1000] * 10
    assert data.train.images.fetch(torch.tensor([0])).shape == (1, 3, 28, 28)
    assert data.train.images.pixels.float().mean() == pytest.approx(0.2860 * 255, abs=0.05)
    assert data.classes[data.train.labels[0]] == "boot"


@pytest.mark.parametrize("extension", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_idx_files_are_read_compressed_or_not(tmp_path, no_debian_files, place, extension):
    written = write_idx_files(tmp_path / place, extension)
    data = fashion_mnist(str(tmp_path), download=False)
    for part, split in (("train", data.train), ("t10k", data.query)):
        assert np.array_equal(fetch_all(split).numpy(), np.repeat(written[f"{part}-images-idx3"][:, None], 3, axis=1))
        assert split.labels.tolist() == written[f"{part}-labels-idx1"].tolist()


def test_files_in_root_have_precedence_over_debians(tmp_path):
    write_idx_files(tmp_path)
    assert len(fashion_mnist(str(tmp_path), download=False).train) == 7


DAMAGE = {
    "cut": lambda content: content[:-20],
    "empty": lambda content: b"",
    "a web page": lambda content: b"<!doctype html>" + content,
    "an overwritten middle": lambda content: content[:60] + bytes(40) + content[100:],
}


@pytest.mark.parametrize("damage", ["cut", "empty", "a web page"])
def test_damaged_idx_files_are_named(tmp_path, no_debian_files, damage):
    write_idx_files(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(path))):
        fashion_mnist(str(tmp_path), download=False)


@pytest.mark.parametrize("damage", ["empty", "cut", "a web page", "an overwritten middle"])
def test_damaged_gzipped_files_are_named(tmp_path, no_debian_files, damage):
    write_idx_files(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(path))):
        fashion_mnist(str(tmp_path), download=False)


def test_every_image_needs_a_label(tmp_path, no_debian_files):
    write_idx_files(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(6, dtype=np.uint8)))
    with pytest.raises(DataError, match="7 images but 6 labels"):
        fashion_mnist(str(tmp_path), download=False)


def test_labels_instead_of_images_are_refused(tmp_path, no_debian_files):
    write_idx_files(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(np.zeros(7, dtype=np.uint8)))
    with pytest.raises(DataError, match=re.escape(str(path))):
        fashion_mnist(str(tmp_path), download=False)
