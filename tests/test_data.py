"""Data: every source gives uint8 images, labels and fixed splits; bad files are named; batches are a function of the step."""

import functools
import gzip
import os
import pickle
import re
import warnings
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from reptk.data import (
    Data,
    InMemory,
    Loader,
    Split,
    cifar10,
    cifar100,
    digits,
    embedded,
    fashion_mnist,
    folder,
    generated,
    imagenet100,
    photos,
    small,
    stl10,
)
from reptk.data.decode import decode
from reptk.errors import DataError, EnvironmentProblem

# The small folders made here say so themselves; what is said is tested where it matters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:no class of .* is held out"),
    pytest.mark.filterwarnings("ignore:.*passed over"),
]

needs_scikit_image = pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")
needs_debian_fashion = pytest.mark.skipif(
    not small.DEBIAN_FASHION_MNIST.is_dir(), reason=f"no {small.DEBIAN_FASHION_MNIST} (Debian: dataset-fashion-mnist)"
)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def fetched(split: Split) -> Tensor:
    return split.images.fetch(torch.arange(len(split)))


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
    monkeypatch.setattr(embedded, "_photographs", lambda: pictures)
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
        monkeypatch.setattr(embedded, "_photographs", lambda pixels=pixels: {"noise": Image.fromarray(pixels)})
        made.append(photos())
    first, second, left_of_first = made
    assert torch.equal(fetched(left_of_first.train), fetched(first.train))
    assert torch.equal(fetched(left_of_first.query), fetched(second.query))
    assert not torch.equal(fetched(first.query), fetched(second.query))


def test_photos_without_scikit_image_say_what_to_install(monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
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
    monkeypatch.setattr(small, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")


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


# A folder of one's own


def put(path: Path, colour: tuple[int, ...] = RED, size: tuple[int, int] = (10, 8), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def fill(root: Path, **counts: int) -> Path:
    """`counts` images in folders of these names (`__` for a level down), 00.png onwards."""
    for name, count in counts.items():
        for number in range(count):
            put(root / name.replace("__", "/") / f"{number:02}.png")
    return root


def paths(split: Split, root: Path) -> list[str]:
    return [str(split.images.path(number).relative_to(root)) for number in range(len(split))]


def test_a_folder_of_classes_holds_out_every_fifth_image_of_each(tmp_path):
    data = folder(str(fill(tmp_path, cat=11, dog=4, eel=1)), size=8)
    assert data.classes == ("cat", "dog", "eel")
    assert paths(data.query, tmp_path) == ["cat/04.png", "cat/09.png"]
    assert data.query.labels.tolist() == [0, 0]
    assert data.train.labels.tolist() == [0] * 9 + [1] * 4 + [2]
    assert data.bank is data.train
    assert not {*paths(data.train, tmp_path)} & {*paths(data.query, tmp_path)}
    assert len(data.train) + len(data.query) == 16


def test_the_held_out_images_are_the_same_again_and_after_images_were_added(tmp_path):
    fill(tmp_path, cat=11, dog=5)
    before = folder(str(tmp_path))
    assert paths(folder(str(tmp_path)).query, tmp_path) == paths(before.query, tmp_path)
    put(tmp_path / "cat" / "99.png")
    fill(tmp_path, asp=7)
    after = folder(str(tmp_path))
    assert [path for path in paths(after.query, tmp_path) if "asp" not in path] == paths(before.query, tmp_path)


def test_holdout_says_every_how_many_th(tmp_path):
    data = folder(str(fill(tmp_path, cat=4, dog=5)), holdout=2)
    assert paths(data.query, tmp_path) == ["cat/01.png", "cat/03.png", "dog/01.png", "dog/03.png"]


def test_images_of_a_folder_are_decoded_at_the_size_asked_for(tmp_path):
    put(tmp_path / "a" / "0.png", RED)
    put(tmp_path / "b" / "0.png", BLUE, size=(300, 20))
    data = folder(str(tmp_path), size=24)
    pixels = fetched(data.train)
    assert pixels.shape == (2, 3, 24, 24)
    assert pixels[:, :, 12, 12].tolist() == [list(RED), list(BLUE)]
    assert data.train.images.fetch(torch.tensor([], dtype=torch.long)).shape == (0, 3, 24, 24)


def test_the_class_is_the_first_folder_however_deep_the_image(tmp_path):
    fill(tmp_path, cat=1, cat__tabby__old=2, dog__2020__05__01=1)
    data = folder(str(tmp_path))
    assert dict(zip(paths(data.train, tmp_path), data.train.labels.tolist(), strict=True)) == {
        "cat/00.png": 0,
        "cat/tabby/old/00.png": 0,
        "cat/tabby/old/01.png": 0,
        "dog/2020/05/01/00.png": 1,
    }


@pytest.mark.parametrize("counts", [{"": 3}, {"one_class": 3}, {"": 2, "one_class": 1}, {"unlabeled": 3}], ids=str)
def test_images_without_two_class_folders_are_unlabelled(tmp_path, counts):
    data = folder(str(fill(tmp_path, **counts)))
    assert data.train.labels.tolist() == [-1] * 3
    assert (data.bank, data.query, data.classes) == (None, None, ())


def test_labels_none_leaves_class_folders_alone(tmp_path):
    data = folder(str(fill(tmp_path, cat=6, dog=6)), labels="none")
    assert data.train.labels.tolist() == [-1] * 12
    assert data.query is None


def test_labels_folders_takes_a_single_class(tmp_path):
    data = folder(str(fill(tmp_path, cat=6)), labels="folders")
    assert (len(data.train), len(data.query), data.classes) == (5, 1, ("cat",))


def test_labels_folders_wants_folders(tmp_path):
    with pytest.raises(DataError, match="no class folder"):
        folder(str(fill(tmp_path, **{"": 3})), labels="folders")


@pytest.mark.parametrize("name", ["unlabeled", "unlabelled"])
def test_unlabelled_images_beside_classes_train_and_are_not_searched(tmp_path, name):
    fill(tmp_path, cat=6, dog=1, **{"": 2, name: 7, f"{name}__deep": 1})
    data = folder(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert (data.train.labels == -1).sum() == 10
    assert len(data.train) == 16
    assert sorted(data.bank.labels.tolist()) == [0] * 5 + [1]
    assert paths(data.query, tmp_path) == ["cat/04.png"]
    labelled = [path for path, label in zip(paths(data.train, tmp_path), data.train.labels, strict=True) if label >= 0]
    assert paths(data.bank, tmp_path) == labelled


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "query"])
def test_train_and_evaluation_folders_are_the_splits(tmp_path, name):
    fill(tmp_path, train__cat=6, train__dog=5, **{f"{name}__cat": 2, f"{name}__dog": 1})
    data = folder(str(tmp_path))
    assert data.train.labels.tolist() == [0] * 6 + [1] * 5
    assert data.bank is data.train
    assert paths(data.query, tmp_path) == [f"{name}/cat/00.png", f"{name}/cat/01.png", f"{name}/dog/00.png"]
    assert data.query.labels.tolist() == [0, 0, 1]


def test_an_evaluation_folder_that_lacks_a_class_keeps_the_numbers_of_train(tmp_path):
    data = folder(str(fill(tmp_path, train__ant=1, train__bee=1, train__cat=1, val__bee=1, val__cat=2)))
    assert data.query.labels.tolist() == [1, 2, 2]


def test_an_evaluation_folder_of_one_class_is_evaluated(tmp_path):
    data = folder(str(fill(tmp_path, train__ant=1, train__bee=1, val__bee=2)))
    assert data.query is not None
    assert data.query.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    "counts",
    [
        {"val__ant": 1, "val__fly": 1},
        {"val__fly": 1},
    ],
    ids=["among others", "alone"],
)
def test_an_evaluation_class_that_train_lacks_is_named(tmp_path, counts):
    fill(tmp_path, train__ant=1, train__bee=1, **counts)
    with pytest.raises(DataError, match=r"has classes that .*train lacks: fly"):
        folder(str(tmp_path))


def test_junk_is_passed_over(tmp_path):
    fill(tmp_path, cat=1, dog=1)
    for name in (".cache", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.thumbs", "dog/@eaDir", "lost+found"):
        put(tmp_path / name / "junk.png")
    put(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "cat" / "._00.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00")
    (tmp_path / "cat" / "zero.jpg").touch()
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "cat" / "itself.jpg").symlink_to(tmp_path / "cat" / "itself.jpg")
    (tmp_path / "cat" / "folder.jpg").mkdir()
    (tmp_path / "empty_class").mkdir()
    data = folder(str(tmp_path))
    assert paths(data.train, tmp_path) == ["cat/00.png", "dog/00.png"]
    assert data.classes == ("cat", "dog")


def test_a_loop_of_links_is_walked_once(tmp_path):
    fill(tmp_path, cat=2, dog=1)
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "dog" / "here").symlink_to(tmp_path / "dog")
    assert paths(folder(str(tmp_path)).train, tmp_path) == ["cat/00.png", "cat/01.png", "dog/00.png"]


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", dogs=2)
    root = fill(tmp_path / "root", cat=1)
    (root / "dog").symlink_to(elsewhere / "dogs")
    (root / "cat" / "linked.png").symlink_to(put(elsewhere / "x.png"))
    data = folder(str(root))
    assert paths(data.train, root) == ["cat/00.png", "cat/linked.png", "dog/00.png", "dog/01.png"]
    assert len(fetched(data.train)) == 4


def test_extensions_in_capitals_are_images(tmp_path):
    names = ["0.PNG", "1.JPG", "2.JpEg", "3.WebP", "4.TIF", "5.bmp", "6.GIF", "7.ppm"]
    for name in names:
        put(tmp_path / name)
    data = folder(str(tmp_path), size=8)
    assert paths(data.train, tmp_path) == names
    assert (fetched(data.train)[:, 0] > 240).all()


@pytest.mark.parametrize(
    "name",
    [
        "日本/写真.png",
        "naïve café/é.png",
        "with space/a b.png",
        "line\nbreak/a\nb.png",
        os.fsdecode(b"caf\xe9/\xff.png"),
    ],
)
def test_any_name_a_file_system_takes_is_a_name(tmp_path, name):
    put(tmp_path / "0first" / "0.png", BLUE)
    try:
        put(tmp_path / name, RED)
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    data = folder(str(tmp_path), size=8)
    assert data.classes == ("0first", name.split("/")[0])
    assert fetched(data.train)[:, :, 4, 4].tolist() == [list(BLUE), list(RED)]
    assert paths(data.train, tmp_path)[1] == name


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=re.escape(str(tmp_path)) + r" .*it is empty; images are \.bmp .*\.webp"):
        folder(str(tmp_path))


def test_a_folder_without_images_says_what_is_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "table.csv").touch()
    (tmp_path / "README").touch()
    with pytest.raises(DataError, match=r"there are files of \.csv, README"):
        folder(str(tmp_path))


def test_a_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "my_photos").mkdir()
    with pytest.raises(DataError, match=re.escape(f"did you mean {tmp_path / 'my_photos'}?")):
        folder(str(tmp_path / "my_fotos"))
    with pytest.raises(DataError, match=re.escape(f"the nearest folder that exists is {tmp_path}")):
        folder(str(tmp_path / "quite" / "different"))


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    path = put(tmp_path / "one.png")
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*is a file"):
        folder(str(path))


# ImageNet-100

SYNSETS = (files("reptk.data") / "imagenet100.txt").read_text().split()


def fill_imagenet(root: Path, synsets: list[str]) -> Path:
    content = put(root / "one.png").read_bytes()
    for part, count in (("train", 2), ("val", 1)):
        for name in synsets:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                (root / part / name / f"{name}_{number}.JPEG").write_bytes(content)
    return root


def test_the_list_has_100_synsets():
    assert len(SYNSETS) == len(set(SYNSETS)) == imagenet100.classes == 100
    assert all(re.fullmatch(r"n\d{8}", name) for name in SYNSETS)


@pytest.mark.parametrize("extra", [[], ["n00000001", "n99999999", "n01440764"]], ids=["ready", "within ImageNet-1k"])
def test_imagenet100_is_picked_from_a_folder_of_synsets(tmp_path, extra):
    data = imagenet100(str(fill_imagenet(tmp_path, sorted([*SYNSETS, *extra]))))
    assert data.classes == tuple(SYNSETS)
    assert data.bank is data.train
    for split, part, count in ((data.train, "train", 2), (data.query, "val", 1)):
        assert split.labels.bincount().tolist() == [count] * 100
        named = [Path(path).parts[:2] for path in paths(split, tmp_path)]
        assert named == [(part, data.classes[label]) for label in split.labels.tolist()]


@pytest.mark.parametrize(
    ("part", "count", "message"),
    [("val", 3, "val/ lacks 3 of the 100"), ("train", 1, "train/ lacks 1 of the 100"), ("val", 100, "val/ lacks 100")],
)
def test_imagenet100_with_classes_missing_says_how_many(tmp_path, part, count, message):
    fill_imagenet(tmp_path, SYNSETS)
    for name in SYNSETS[:count]:
        (tmp_path / part / name).rename(tmp_path / f"gone_{name}")
    with pytest.raises(DataError, match=f"(?s){message}.*data.root=/path/to/imagenet.*--smoke"):
        imagenet100(str(tmp_path))


@pytest.mark.parametrize("make", [True, False], ids=["empty", "missing"])
def test_imagenet100_without_its_folder_says_what_it_wants(tmp_path, make):
    root = tmp_path / "imagenet"
    if make:
        root.mkdir()
    with pytest.raises(DataError, match="(?s)" + re.escape(str(root)) + ".*data.root=/path/to/imagenet100.*--smoke"):
        imagenet100(str(root))


# One file, one square


def halves(mode: str, left: object, right: object, size: tuple[int, int] = (40, 40)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def sixteen_bit(left: int, right: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.array([[left] * 20 + [right] * 20], dtype=np.uint16), 40, axis=0))


def palette() -> Image.Image:
    image = halves("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    return image


GREY = (128, 128, 128)
DECODED = {
    "RGB": ("a.png", halves("RGB", RED, BLUE), {}, RED, BLUE),
    "16-bit grey": ("a.png", sixteen_bit(0x8080, 0xFFFF), {}, GREY, WHITE),
    "16-bit grey in TIFF": ("a.tif", sixteen_bit(0, 0x8080), {}, (0, 0, 0), GREY),
    "CMYK": ("a.jpg", halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)), {}, RED, GREEN),
    "grey": ("a.png", halves("L", 128, 255), {}, GREY, WHITE),
    "1 bit": ("a.png", halves("1", 0, 1), {}, (0, 0, 0), WHITE),
    "palette": ("a.png", palette(), {}, RED, BLUE),
    "palette, transparent bytes": ("a.png", palette(), {"transparency": bytes([0, 255])}, WHITE, BLUE),
    "palette, transparent colour": ("a.gif", palette(), {"transparency": 1}, RED, WHITE),
    "RGBA": ("a.png", halves("RGBA", (*RED, 0), (*BLUE, 255)), {}, WHITE, BLUE),
    "RGBA, half": ("a.webp", halves("RGBA", (0, 0, 0, 127), (*BLUE, 255)), {"lossless": True}, GREY, BLUE),
    "grey with alpha": ("a.png", halves("LA", (7, 0), (128, 255)), {}, WHITE, GREY),
    "animation": (
        "a.gif",
        halves("RGB", RED, BLUE),
        {"save_all": True, "append_images": [halves("RGB", GREEN, GREEN)]},
        RED,
        BLUE,
    ),
}


@pytest.mark.parametrize("kind", DECODED)
def test_every_kind_of_file_shows_what_a_viewer_shows(tmp_path, kind):
    name, image, options, left, right = DECODED[kind]
    image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square = decode(tmp_path / name, 8)
    assert square.dtype == torch.uint8
    tolerance = 3 if name.endswith(".jpg") else 0
    for side, colour in ((square[:, :, 0], left), (square[:, :, -1], right)):
        torch.testing.assert_close(side.int(), torch.tensor(colour)[:, None].expand(3, 8).int(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_orientation_6_is_turned_upright(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    halves("RGB", RED, BLUE, size=(80, 40)).save(tmp_path / f"a.{ending}", exif=exif)
    square = decode(tmp_path / f"a.{ending}", 8)
    torch.testing.assert_close(square[:, 0].int(), torch.tensor(RED)[:, None].expand(3, 8).int(), atol=3, rtol=0)
    torch.testing.assert_close(square[:, -1].int(), torch.tensor(BLUE)[:, None].expand(3, 8).int(), atol=3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (7, 9)])
def test_tiny_and_narrow_images_fill_the_square(tmp_path, size):
    put(tmp_path / "a.png", GREEN, size=size)
    assert (decode(tmp_path / "a.png", 16) == torch.tensor(GREEN).view(3, 1, 1)).all()


def photograph() -> Image.Image:
    [home] = find_spec("sklearn").submodule_search_locations
    return Image.open(Path(home) / "datasets" / "images" / "china.jpg")


def test_a_photo_is_pillows_centre_square(tmp_path):
    photograph().save(tmp_path / "a.png")
    expected = ImageOps.fit(photograph(), (64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(decode(tmp_path / "a.png", 64), pil_to_tensor(expected))


def test_a_large_jpeg_read_at_less_than_its_size_is_as_sharp(tmp_path):
    photograph().resize((1280, 854)).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as whole:
        expected = pil_to_tensor(ImageOps.fit(whole, (300, 300), Image.Resampling.BILINEAR))
    assert (decode(tmp_path / "a.jpg", 300).float() - expected).abs().mean() < 1.5


UNREADABLE = {
    "truncated.jpg": lambda whole: whole[: len(whole) // 2],
    "page.jpg": lambda whole: b"<!doctype html><title>404</title>",
    "pointer.jpg": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "header.jpg": lambda whole: whole[:20],
    "empty.jpg": lambda whole: b"",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_named(tmp_path, name):
    photograph().save(tmp_path / "whole.jpg")
    (tmp_path / name).write_bytes(UNREADABLE[name]((tmp_path / "whole.jpg").read_bytes()))
    with pytest.raises(DataError, match=f"cannot read {re.escape(str(tmp_path / name))} as an image"):
        decode(tmp_path / name, 32)


@pytest.mark.parametrize("ending", ["png", "gif", "webp", "tif", "bmp"])
def test_a_cut_file_of_any_format_is_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    photograph().resize((200, 100)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=re.escape(str(path))):
        decode(path, 32)


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    put(tmp_path / "a.png", size=(40, 40))
    with pytest.raises(DataError, match=r"a\.png"):
        decode(tmp_path / "a.png", 8)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        decode(tmp_path / "gone.png", 8)


# Batches


def numbered(count: int) -> Split:
    """Images that show their number; labels that are ten times it."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Split(InMemory(pixels), torch.arange(count) * 10)


def order(loader: Loader, first: int, last: int) -> list[int]:
    return [number for batch in loader.batches(first, last) for number in batch[2].tolist()]


def same_batches(one: Loader, other: Loader, first: int, last: int) -> bool:
    pairs = zip(one.batches(first, last), other.batches(first, last), strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def test_a_batch_holds_images_with_their_labels_and_numbers():
    split = numbered(20)
    for images, labels, index in Loader(split, batch_size=6, seed=0).batches(0, 4):
        assert images.shape == (6, 3, 2, 2)
        assert torch.equal(images, split.images.fetch(index))
        assert torch.equal(labels, index * 10)


def test_the_order_is_a_function_of_seed_and_epoch():
    split, orders = numbered(20), {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            orders[seed, epoch] = order(Loader(split, batch_size=5, seed=seed), 4 * epoch, 4 * epoch + 4)
    assert len({tuple(numbers) for numbers in orders.values()}) == 6
    torch.manual_seed(5)
    assert order(Loader(split, batch_size=5, seed=1), 8, 12) == orders[1, 2]


def test_the_order_does_not_depend_on_the_batch_size():
    split = numbered(24)
    twos, sixes, whole = (order(Loader(split, batch_size=size, seed=3), 0, 24 // size) for size in (2, 6, 24))
    assert twos == sixes == whole


def test_an_epoch_has_no_image_twice_and_epochs_together_have_all():
    loader = Loader(numbered(20), batch_size=6, seed=0)
    assert loader.steps_per_epoch == 3
    epochs = [order(loader, 3 * epoch, 3 * epoch + 3) for epoch in range(6)]
    assert all(len(epoch) == len(set(epoch)) == 18 for epoch in epochs)
    assert set().union(*epochs) == set(range(20))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_parts_make_up_the_global_batch(world):
    split = numbered(30)
    whole = list(Loader(split, batch_size=8, seed=2).batches(0, 7))
    ranks = [list(Loader(split, batch_size=8, seed=2, rank=rank, world=world).batches(0, 7)) for rank in range(world)]
    for step, expected in enumerate(whole):
        joined = [torch.cat(parts) for parts in zip(*(batches[step] for batches in ranks), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, expected, strict=True))


def test_starting_at_a_step_is_skipping_the_steps_before():
    loader = Loader(numbered(20), batch_size=6, seed=0)
    whole = order(loader, 0, 8)
    for first in range(9):
        assert order(loader, first, 8) == whole[6 * first :]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(tmp_path):
    for number in range(12):
        put(tmp_path / "ab"[number % 2] / f"{number:02}.png", (20 * number, 0, 255))
    from_files = folder(str(tmp_path), size=8).train
    grey = digits().train
    for split, size in ((from_files, 4), (grey, 300)):
        alone, helped = (Loader(split, batch_size=size, seed=1, workers=workers) for workers in (0, 2))
        assert same_batches(alone, helped, 1, 7)
        assert not same_batches(alone, Loader(split, batch_size=size, seed=2), 1, 7)


@pytest.mark.parametrize("count", [2, 3, 5, 31, 100])
def test_too_few_images_suggest_a_batch_size_that_fits(count):
    split = numbered(count)
    with pytest.raises(DataError, match=rf"^{count} training images, .*is 256; use") as caught:
        Loader(split, batch_size=256, seed=0)
    fitting = int(re.search(r"train\.batch_size=(\d+)", str(caught.value)).group(1))
    assert Loader(split, batch_size=fitting, seed=0).steps_per_epoch >= 1


def test_a_single_image_fits_no_batch_and_none_is_suggested():
    with pytest.raises(DataError) as caught:
        Loader(numbered(1), batch_size=256, seed=0)
    assert "train.batch_size=" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_wherever_it_is_met(tmp_path, workers):
    fill(tmp_path, **{"": 5})
    (tmp_path / "bad.jpg").write_text("<!doctype html>")
    loader = Loader(folder(str(tmp_path), size=8).train, batch_size=2, seed=0, workers=workers)
    with pytest.raises(DataError, match=f"^cannot read {re.escape(str(tmp_path / 'bad.jpg'))} as an image"):
        list(loader.batches(0, 3))


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    fill(tmp_path, cat=1, dog=1)
    (tmp_path / "cat" / "empty.jpg").touch()
    (tmp_path / "dog" / "phone.HEIC").write_bytes(b"x")
    skipped = "passed over 1 .heic files, which Pillow does not read, 1 empty files or broken links"
    with pytest.warns(UserWarning, match=skipped), pytest.warns(UserWarning, match="so none is held out"):
        folder(str(tmp_path))
