"""Data sets that come with packages or by download: uint8 images, labels and fixed splits; bad files are named."""

import functools
import gzip
import pickle
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import BLUE, GREEN, RED, WHITE, fetched
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data import (
    Data,
    InMemory,
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    generated,
    photos,
    stl10,
)
from reptk.data.sources import fashion_mnist as fashion_mnist_module
from reptk.data.sources import photos as photos_module

needs_scikit_image = pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")
needs_debian_fashion = pytest.mark.skipif(
    not fashion_mnist_module.DEBIAN_FOLDER.is_dir(),
    reason=f"no {fashion_mnist_module.DEBIAN_FOLDER} (Debian: dataset-fashion-mnist)",
)


def same(one: Data, other: Data) -> bool:
    splits = [(getattr(one, name), getattr(other, name)) for name in ("train", "bank", "query")]
    return one.classes == other.classes and all(
        torch.equal(a.labels, b.labels) and torch.equal(fetched(a), fetched(b)) for a, b in splits
    )


# Images that come with Python packages


@functools.cache
def the_photos() -> Data:
    return photos()


@needs_scikit_image
def test_photos_have_18_classes_of_150_and_50_patches():
    data = the_photos()
    assert data.bank is data.train
    assert fetched(data.train).shape == (2700, 3, 32, 32)
    assert fetched(data.query).shape == (900, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [150] * 18
    assert data.query.labels.bincount().tolist() == [50] * 18
    assert len(data.classes) == photos.classes == 18
    assert list(data.classes) == sorted(data.classes)


@needs_scikit_image
def test_photos_are_the_same_at_every_call():
    torch.manual_seed(1)
    assert same(photos(), the_photos())


def test_photos_take_no_pixel_for_both_splits(monkeypatch):
    """Two colours a picture, meeting at 60 %: a patch across the edge, or filtered across it, would have a third."""
    pictures, colours = {}, {"narrow": (WHITE, RED), "odd": (GREEN, BLUE), "wide": (RED, BLUE)}
    for name, (width, height) in {"wide": (640, 427), "odd": (211, 303), "narrow": (90, 400)}.items():
        left, right = colours[name]
        pictures[name] = Image.new("RGB", (width, height), left)
        pictures[name].paste(right, (round(width * 0.6), 0, width, height))
    monkeypatch.setattr(photos_module, "load_photographs", lambda: pictures)
    data = photos()
    for split, side in ((data.train, 0), (data.query, 1)):
        expected = torch.tensor([colours[data.classes[label]][side] for label in split.labels.tolist()])
        assert (fetched(split) == expected[:, :, None, None]).all()


def test_photos_of_one_side_do_not_depend_on_the_other(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (2, 200, 300, 3), dtype=np.uint8)
    mixed = noise[0].copy()
    mixed[:, round(300 * 0.6) :] = noise[1][:, round(300 * 0.6) :]
    made = []
    for pixels in (noise[0], noise[1], mixed):
        monkeypatch.setattr(photos_module, "load_photographs", lambda pixels=pixels: {"noise": Image.fromarray(pixels)})
        made.append(photos())
    first, second, left_of_first = made
    assert torch.equal(fetched(left_of_first.train), fetched(first.train))
    assert torch.equal(fetched(left_of_first.query), fetched(second.query))
    assert not torch.equal(fetched(first.query), fetched(second.query))


def test_photos_without_scikit_image_say_what_to_install(monkeypatch):
    monkeypatch.setattr(photos_module, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=re.escape("pip install 'reptk[demo]'")):
        photos()


def test_digits_are_scikit_learns_in_order():
    from sklearn.datasets import load_digits

    raw, data = load_digits(), digits()
    pixels = torch.from_numpy(np.floor(raw.images * 255 / 16 + 0.5).astype(np.uint8))
    assert (len(data.train), len(data.query)) == (1000, 797)
    assert data.bank is data.train
    assert data.train.labels.tolist() + data.query.labels.tolist() == raw.target.tolist()
    assert torch.equal(torch.cat([fetched(data.train), fetched(data.query)]), pixels[:, None].expand(-1, 3, -1, -1))
    assert (pixels.amin(), pixels.amax()) == (0, 255)
    assert same(data, digits())


@pytest.mark.parametrize("train", [10, 1796])
def test_digits_are_cut_where_asked(train):
    data = digits(train)
    assert (len(data.train), len(data.query)) == (train, 1797 - train)


@pytest.mark.parametrize("train", [0, 9, 1797])
def test_digits_need_images_on_both_sides(train):
    with pytest.raises(ValueError, match=f"train must be 10 to 1796, got {train}"):
        digits(train)


def test_generated_images_are_the_same_at_every_call_and_differ_between_splits():
    data = generated(classes=3, size=8, train=7, bank=6, query=5)
    assert same(data, generated(classes=3, size=8, train=7, bank=6, query=5))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [fetched(split).shape for split in (data.train, data.bank, data.query)] == [(n, 3, 8, 8) for n in (7, 6, 5)]
    assert not torch.equal(fetched(data.train)[:5], fetched(data.query))


def test_grey_images_are_shown_in_three_equal_channels():
    pixels = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    images = InMemory(pixels).fetch(torch.tensor([4, 0]))
    assert torch.equal(images, torch.cat([pixels[[4, 0]]] * 3, dim=1))


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4).byte(), torch.zeros(2, 2, 4, 4).byte()]
)
def test_images_in_memory_are_uint8_in_one_or_three_channels(pixels):
    with pytest.raises(ValueError, match="images must be uint8"):
        InMemory(pixels)


# Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def write_fashion(root: Path, ending: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    written = {}
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 7), ("t10k", 3)):
        written[f"{part}-images-idx3"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        written[f"{part}-labels-idx1"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, values in written.items():
        packed = gzip.compress(idx(values)) if ending else idx(values)
        (root / f"{name}-ubyte{ending}").write_bytes(packed)
    return written


@pytest.fixture
def no_debian_files(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "nowhere")


@needs_debian_fashion
def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path):
    data = fashion_mnist(str(tmp_path), download=False)
    assert (len(data.train), len(data.query)) == (60_000, 10_000)
    assert data.bank is data.train
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.query.labels.bincount().tolist() == [1000] * 10
    assert data.train.images.fetch(torch.tensor([0])).shape == (1, 3, 28, 28)
    assert data.train.images.pixels.float().mean() == pytest.approx(0.2860 * 255, abs=0.05)
    assert data.classes[data.train.labels[0]] == "boot"


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files_packed_or_not(tmp_path, no_debian_files, place, ending):
    written = write_fashion(tmp_path / place, ending)
    data = fashion_mnist(str(tmp_path), download=False)
    for part, split in (("train", data.train), ("t10k", data.query)):
        assert np.array_equal(fetched(split).numpy(), np.repeat(written[f"{part}-images-idx3"][:, None], 3, axis=1))
        assert split.labels.tolist() == written[f"{part}-labels-idx1"].tolist()


def test_fashion_mnist_in_root_comes_before_debians(tmp_path):
    write_fashion(tmp_path)
    assert len(fashion_mnist(str(tmp_path), download=False).train) == 7


DAMAGE = {
    "cut": lambda content: content[:-20],
    "empty": lambda content: b"",
    "a web page": lambda content: b"<!doctype html>" + content,
    "an overwritten middle": lambda content: content[:60] + bytes(40) + content[100:],
}


@pytest.mark.parametrize("damage", ["cut", "empty", "a web page"])
def test_damaged_idx_files_are_named(tmp_path, no_debian_files, damage):
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(path))):
        fashion_mnist(str(tmp_path), download=False)


@pytest.mark.parametrize(
    "damage",
    ["empty", "cut", "a web page", "an overwritten middle"],
)
def test_damaged_gzipped_files_are_named(tmp_path, no_debian_files, damage):
    write_fashion(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(path))):
        fashion_mnist(str(tmp_path), download=False)


def test_fashion_mnist_wants_a_label_for_every_image(tmp_path, no_debian_files):
    write_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(6, dtype=np.uint8)))
    with pytest.raises(DataError, match="7 images but 6 labels"):
        fashion_mnist(str(tmp_path), download=False)


def test_fashion_mnist_with_labels_in_the_place_of_images(tmp_path, no_debian_files):
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(np.zeros(7, dtype=np.uint8)))
    with pytest.raises(DataError, match=re.escape(str(path))):
        fashion_mnist(str(tmp_path), download=False)


# CIFAR and STL-10, read by torchvision


@pytest.fixture
def no_checksums(monkeypatch):
    """Let torchvision take any content of the files for the published one."""
    for module in ("cifar", "stl10"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )


def write_cifar(root: Path, key: str) -> dict[str, np.ndarray]:
    """torchvision's layout with two images a file; returns images (n, 3, 32, 32) and labels of both splits."""
    rng = np.random.default_rng(0)
    hundred = key == "fine_labels"
    home = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    home.mkdir(parents=True)
    trains = ["train"] if hundred else [f"data_batch_{number}" for number in range(1, 6)]
    written = {}
    for part, names in (("train", trains), ("test", ["test" if hundred else "test_batch"])):
        rows = rng.integers(0, 256, (len(names), 2, 3072), dtype=np.uint8)
        labels = rng.integers(0, 100 if hundred else 10, (len(names), 2))
        for name, row, label in zip(names, rows, labels, strict=True):
            (home / name).write_bytes(pickle.dumps({"data": row, key: label.tolist()}))
        written[part] = rows.reshape(-1, 3, 32, 32)
        written[f"{part} labels"] = labels.ravel()
    names = [f"class {number}" for number in range(100 if hundred else 10)]
    meta = ("meta", "fine_label_names") if hundred else ("batches.meta", "label_names")
    (home / meta[0]).write_bytes(pickle.dumps({meta[1]: names}))
    return written


@pytest.mark.parametrize(("read", "key", "classes"), [(cifar10, "labels", 10), (cifar100, "fine_labels", 100)])
def test_cifar_is_read_from_torchvisions_folder(tmp_path, no_checksums, read, key, classes):
    written = write_cifar(tmp_path, key)
    data = read(str(tmp_path), download=False)
    for part, split in (("train", data.train), ("test", data.query)):
        assert np.array_equal(fetched(split).numpy(), written[part])
        assert split.labels.tolist() == written[f"{part} labels"].tolist()
    assert data.bank is data.train
    assert data.classes == tuple(f"class {number}" for number in range(classes))
    assert read.classes == classes


def test_cifar_files_of_another_checksum_are_refused(tmp_path):
    write_cifar(tmp_path, "labels")
    with pytest.raises(DataError, match="cifar10"):
        cifar10(str(tmp_path), download=False)


def write_stl10(root: Path) -> dict[str, np.ndarray]:
    """torchvision's layout: images by column, classes from 1; returns images as seen and classes from 0."""
    rng = np.random.default_rng(0)
    home = root / "stl10_binary"
    home.mkdir(parents=True)
    written = {}
    for part, count in (("train", 3), ("test", 2), ("unlabeled", 4)):
        written[part] = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (home / f"{part}_X.bin").write_bytes(written[part].transpose(0, 1, 3, 2).tobytes())
        written[f"{part} labels"] = rng.integers(0, 10, count, dtype=np.uint8)
        (home / f"{part}_y.bin").write_bytes((written[f"{part} labels"] + 1).tobytes())
    return written


@pytest.mark.parametrize("unlabeled", [True, False])
def test_stl10_is_read_from_torchvisions_folder(tmp_path, no_checksums, unlabeled):
    written = write_stl10(tmp_path)
    data = stl10(str(tmp_path), download=False, unlabeled=unlabeled)
    for part, split in (("train", data.bank), ("test", data.query)):
        assert np.array_equal(fetched(split).numpy(), written[part])
        assert split.labels.tolist() == written[f"{part} labels"].tolist()
    assert (data.train is data.bank) == (not unlabeled)
    if unlabeled:
        assert np.array_equal(fetched(data.train).numpy(), np.concatenate([written["train"], written["unlabeled"]]))
        assert data.train.labels.tolist() == [*written["train labels"].tolist(), -1, -1, -1, -1]


@pytest.mark.parametrize("read", [fashion_mnist, cifar10, cifar100, stl10])
def test_what_is_missing_says_where_to_put_it_and_how_to_do_without(tmp_path, no_debian_files, read):
    with pytest.raises(DataError) as caught:
        read(str(tmp_path / "nothing"), download=False)
    for text in (read.__name__, str(tmp_path / "nothing"), "data.root=", "data.download is false", "--smoke"):
        assert text in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_download_that_fails_says_why(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"(?s)the download failed: no network here.*data\.root=.*--smoke"):
        cifar10(str(tmp_path))
