"""CIFAR and STL-10 as torchvision lays them out on disk; missing files and failed downloads are explained."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from image_files import fetch_all
from reptk.core.errors import DataError
from reptk.data import cifar10, cifar100, fashion_mnist, stl10
from reptk.data.sources import fashion_mnist as fashion_mnist_module


@pytest.fixture
def no_checksums(monkeypatch):
    """Let torchvision accept files whose content is not the published one."""
    for module in ("cifar", "stl10"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )


def write_cifar10(root: Path) -> dict[str, np.ndarray]:
    training_files = [f"data_batch_{number}" for number in range(1, 6)]
    files = {"train": training_files, "test": ["test_batch"]}
    return write_cifar(root / "cifar-10-batches-py", files, "labels", 10, "batches.meta", "label_names")


def write_cifar100(root: Path) -> dict[str, np.ndarray]:
    files = {"train": ["train"], "test": ["test"]}
    return write_cifar(root / "cifar-100-python", files, "fine_labels", 100, "meta", "fine_label_names")


def write_cifar(
    folder: Path, files: dict[str, list[str]], label_key: str, classes: int, meta_file: str, meta_key: str
) -> dict[str, np.ndarray]:
    """Write two images into each file; return images (n, 3, 32, 32) and labels of both splits."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    written = {}
    for split, names in files.items():
        pixels = rng.integers(0, 256, (len(names), 2, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, (len(names), 2))
        for name, file_pixels, file_labels in zip(names, pixels, labels, strict=True):
            (folder / name).write_bytes(pickle.dumps({"data": file_pixels, label_key: file_labels.tolist()}))
        written[split] = pixels.reshape(-1, 3, 32, 32)
        written[f"{split} labels"] = labels.ravel()
    class_names = [f"class {number}" for number in range(classes)]
    (folder / meta_file).write_bytes(pickle.dumps({meta_key: class_names}))
    return written


@pytest.mark.parametrize(
    ("source", "write", "classes"), [(cifar10, write_cifar10, 10), (cifar100, write_cifar100, 100)]
)
def test_cifar_is_read_from_torchvisions_folder(tmp_path, no_checksums, source, write, classes):
    written = write(tmp_path)
    data = source(str(tmp_path), download=False)
    for part, split in (("train", data.train), ("test", data.query)):
        assert np.array_equal(fetch_all(split).numpy(), written[part])
        assert split.labels.tolist() == written[f"{part} labels"].tolist()
    assert data.bank is data.train
    assert data.classes == tuple(f"class {number}" for number in range(classes))
    assert source.classes == classes


def test_cifar_files_with_another_checksum_are_refused(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(DataError, match="cifar10"):
        cifar10(str(tmp_path), download=False)


def write_stl10(root: Path) -> dict[str, np.ndarray]:
    """Write torchvision's layout: images by column, classes from 1. Return images by row, and classes from 0."""
    rng = np.random.default_rng(0)
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    written = {}
    for part, count in (("train", 3), ("test", 2), ("unlabeled", 4)):
        written[part] = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (folder / f"{part}_X.bin").write_bytes(written[part].transpose(0, 1, 3, 2).tobytes())
        written[f"{part} labels"] = rng.integers(0, 10, count, dtype=np.uint8)
        (folder / f"{part}_y.bin").write_bytes((written[f"{part} labels"] + 1).tobytes())
    return written


@pytest.mark.parametrize("unlabeled", [True, False])
def test_stl10_is_read_from_torchvisions_folder(tmp_path, no_checksums, unlabeled):
    written = write_stl10(tmp_path)
    data = stl10(str(tmp_path), download=False, unlabeled=unlabeled)
    for part, split in (("train", data.bank), ("test", data.query)):
        assert np.array_equal(fetch_all(split).numpy(), written[part])
        assert split.labels.tolist() == written[f"{part} labels"].tolist()
    assert (data.train is data.bank) == (not unlabeled)
    if unlabeled:
        assert np.array_equal(fetch_all(data.train).numpy(), np.concatenate([written["train"], written["unlabeled"]]))
        assert data.train.labels.tolist() == [*written["train labels"].tolist(), -1, -1, -1, -1]


@pytest.mark.parametrize("source", [fashion_mnist, cifar10, cifar100, stl10])
def test_missing_files_are_explained(tmp_path, monkeypatch, source):
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "missing")
    with pytest.raises(DataError) as error:
        source(str(tmp_path / "nothing"), download=False)
    for text in (source.__name__, str(tmp_path / "nothing"), "data.root=", "data.download is false", "--smoke"):
        assert text in str(error.value)
    assert error.value.exit_code == 3


def test_a_failed_download_gives_the_reason(tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"(?s)the download failed: no network here.*data\.root=.*--smoke"):
        cifar10(str(tmp_path))
