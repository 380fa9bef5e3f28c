"""The labels of some training images alone: a share of each class, or those of a list; evaluation keeps all of them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from image_files import fetch_all, write_images
from reptk.core.errors import DataError
from reptk.data import Data, folder, generated
from reptk.data.fingerprint import differences, fingerprint
from reptk.data.labels.label_selection import select_labels, without_label_selection

pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


@pytest.fixture(scope="module")
def data() -> Data:
    """200 images in 8 classes, the bank among them, and 20 more without a label."""
    data = generated(classes=8, size=8, train=220, bank=40, query=20)
    labels = data.train.labels.clone()
    labels[200:] = -1
    train = replace(data.train, labels=labels)
    return replace(data, train=train, bank=train)


def labeled(data: Data) -> set[int]:
    return set((data.train.labels >= 0).nonzero()[:, 0].tolist())


def counts(labels: Tensor) -> list[int]:
    return torch.bincount(labels[labels >= 0], minlength=8).tolist()


# A share


@pytest.mark.parametrize(("share", "expected"), [(0.001, 1), (0.04, 1), (0.2, 5), (0.5, 12), (1.0, 25)])
def test_every_class_has_its_share_and_at_least_one(data: Data, share: float, expected: int) -> None:
    selected = select_labels(data, share)
    assert counts(selected.train.labels) == [expected] * 8
    kept = selected.train.labels >= 0
    assert torch.equal(selected.train.labels[kept], data.train.labels[kept])
    assert selected.train.images is data.train.images


def test_a_smaller_share_is_part_of_a_larger_one(data: Data) -> None:
    shares = [labeled(select_labels(data, share)) for share in (0.01, 0.1, 0.3, 0.5, 0.9, 1.0)]
    for smaller, larger in pairwise(shares):
        assert smaller < larger
    assert shares[-1] == labeled(data)


def test_the_share_is_a_function_of_the_seed(data: Data) -> None:
    torch.manual_seed(5)
    first = labeled(select_labels(data, 0.1, seed=1))
    assert labeled(select_labels(data, 0.1, seed=1)) == first
    assert labeled(select_labels(data, 0.1, seed=2)) != first


def test_bank_and_queries_keep_their_labels(data: Data) -> None:
    assert data.bank is data.train
    selected = select_labels(data, 0.1)
    assert selected.bank is data.bank
    assert selected.query is data.query
    assert "16 of 220 training images have a label (10 % of each class, seed 0)" in selected.protocol
    assert selected.summary[-1].endswith("bank and queries keep theirs")


def test_the_protocol_of_the_evaluation_is_that_of_all_labels(data: Data, tmp_path: Path) -> None:
    listed = tmp_path / "list; 2 (b).csv"
    listed.write_text("0\n1\n2\n3\n4\n5\n6\n7\n")
    for labelled in (0.1, str(listed), None):
        for only_labelled in (False, True):
            selected = select_labels(data, labelled, only_labelled=only_labelled)
            assert selected.protocol.startswith(f"{data.protocol}; ")
            assert without_label_selection(selected.protocol) == data.protocol
            limited = f"{selected.protocol}; at most 10 of each"
            assert without_label_selection(limited) == f"{data.protocol}; at most 10 of each"
    assert without_label_selection(data.protocol) == data.protocol


def test_the_labeled_images_may_be_all_that_trains(data: Data) -> None:
    selected = select_labels(data, 0.1, only_labelled=True)
    everything = select_labels(data, 0.1)
    numbers = torch.tensor(sorted(labeled(everything)))
    assert torch.equal(selected.train.labels, data.train.labels[numbers])
    assert torch.equal(fetch_all(selected.train), data.train.images.fetch(numbers))
    assert selected.bank is data.bank
    assert len(select_labels(data, None, only_labelled=True).train) == 200


def test_the_fingerprint_knows_the_labels(data: Data) -> None:
    before = fingerprint(select_labels(data, 0.1))
    assert differences(before, fingerprint(select_labels(data, 0.1))) == []
    assert differences(before, fingerprint(select_labels(data, 0.2))) == ["split train: other labels"]


def test_a_share_needs_labels(data: Data) -> None:
    unlabeled = replace(data, train=replace(data.train, labels=torch.full((220,), -1)))
    with pytest.raises(
        DataError, match=r"^data\.labelled=0\.1 is a share of the labels, and no training image has one"
    ):
        select_labels(unlabeled, 0.1)
    with pytest.raises(DataError, match=r"^data\.only_labelled=true leaves no image"):
        select_labels(unlabeled, None, only_labelled=True)
    assert select_labels(unlabeled, None) is unlabeled


# A list


def write(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_list_of_numbers_names_images(data: Data, tmp_path: Path) -> None:
    selected = select_labels(data, write(tmp_path / "list.txt", *map(str, range(10))))
    assert labeled(selected) == set(range(10))
    assert torch.equal(selected.train.labels[:10], data.train.labels[:10])


def test_a_table_of_numbers_may_have_other_labels(data: Data, tmp_path: Path) -> None:
    rows = [f"{number},class {(number + 1) % 8}" for number in range(16)]
    for headings in ([], ["number,label"], ["Index,Class"]):
        selected = select_labels(data, write(tmp_path / "table.csv", *headings, *rows))
        assert torch.equal(selected.train.labels[:16], (data.train.labels[:16] + 1) % 8)
        assert labeled(selected) == set(range(16))


@pytest.fixture
def photos(tmp_path: Path) -> Data:
    """Classes cat (4 images) and dog (3), in folders."""
    write_images(tmp_path / "photos", cat=4, dog=3)
    return folder(str(tmp_path / "photos"), size=8)


def test_images_are_named_by_the_end_of_their_path(photos: Data, tmp_path: Path) -> None:
    folder_path = tmp_path / "photos"
    ways = [
        ["cat/01.png", "dog/00.png"],
        ["photos/cat/01.png", str(folder_path / "dog" / "00.png")],
        ["../photos/cat/01.png", "../photos/./dog/00.png"],
        ["path", "cat/01.png", "dog/00.png"],
    ]
    for number, lines in enumerate(ways):
        selected = select_labels(photos, write(tmp_path / "lists" / f"{number}.txt", *lines))
        assert labeled(selected) == {1, 4}


def test_a_table_gives_labels_to_images_that_have_none(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", **{"": 6})
    data = folder(str(tmp_path / "photos"), size=8)
    assert data.classes == ()
    selected = select_labels(data, write(tmp_path / "table.csv", "file;class", "00.png;dog", "03.png;cat"))
    assert selected.classes == ("cat", "dog")
    assert selected.train.labels.tolist() == [1, -1, -1, 0, -1, -1]


MISTAKES = {
    "no file": (None, "data.labelled: there is no file {}; it takes a share such as 0.01, or a list of images"),
    "empty": ([""], "{} lists no images; write a path or a number a line"),
    "unknown": (
        ["cat/00.png", "dog/00.png", "cow/00.png", "12"],
        "data.labelled={} has 2 mistakes:\n  line 3: cow/00.png is not a training image\n  line 4: 12 is not a training image\n"
        "Training images are numbered from 0 to 6, or named such as {}/photos/cat/00.png",
    ),
    "one that is unknown": (
        ["cat/00.png", "dog/00.png", "cow/00.png"],
        "data.labelled={}, line 3: cow/00.png is not a training image. Training images are numbered from 0 to 6, or named such "
        "as {}/photos/cat/00.png",
    ),
    "several kinds": (
        [
            "cat/00.png,cta",
            ",dog",
            "00.png,dog",
            "cat/01.png,cat",
            "cat/01.png,dog",
            "7,cat",
            "8,cow",
            "dog/00.png,dog",
        ],
        "data.labelled={} has 7 mistakes:\n  line 1: there is no class 'cta'; did you mean 'cat'?\n  line 2: there is no path\n"
        "  line 3: 00.png may be 2 training images, such as {}/photos/cat/00.png and {}/photos/dog/00.png\n"
        "  line 5: cat/01.png is listed with two classes\n  line 6: 7 is not a training image\n  and 2 more\n"
        "The classes are cat, dog. Fill it in, or remove the line. Write more of the path. Remove one of the lines. Training "
        "images are numbered from 0 to 6, or named such as {}/photos/cat/00.png",
    ),
    "ambiguous": (
        ["00.png"],
        "data.labelled={}, line 1: 00.png may be 2 training images, such as {}/photos/cat/00.png and {}/photos/dog/00.png. "
        "Write more of the path",
    ),
    "a class without a label": (
        ["cat/00.png", "cat/01.png"],
        "data.labelled={} lists no image of 1 of 2 classes: dog; list at least one image of each",
    ),
    "no such class": (
        ["path,label", "cat/00.png,cta"],
        "data.labelled={}, line 2: there is no class 'cta'; did you mean 'cat'? The classes are cat, dog",
    ),
    "two classes": (
        ["cat/00.png,cat", "cat/00.png,dog"],
        "data.labelled={}, line 2: cat/00.png is listed with two classes. Remove one of the lines",
    ),
    "no path": (
        ["path,label", ",cat"],
        "data.labelled={}, line 2: there is no path. Fill it in, or remove the line",
    ),
}


@pytest.mark.parametrize(("lines", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_explained(lines: list[str] | None, message: str, photos: Data, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    if lines is not None:
        write(file, *lines)
    with pytest.raises(DataError) as error:
        select_labels(photos, str(file))
    assert str(error.value) == message.replace("{}", str(file), 1).replace("{}", str(tmp_path))


def test_a_listed_image_without_a_class_is_explained(data: Data, tmp_path: Path) -> None:
    file = write(tmp_path / "list.txt", "0", "210")
    with pytest.raises(
        DataError, match=r"line 2: 210 has no label in the data set\. Write its class into a second column"
    ):
        select_labels(data, file)


@pytest.mark.parametrize(
    ("row", "message"),
    [("{}", "is not a training image. Training images are numbered"), ("0,{}", "there is no class '7777")],
)
def test_a_number_of_thousands_of_digits_is_no_number(row: str, message: str, data: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        select_labels(data, write(tmp_path / "list.csv", row.format("7" * 5000)))
    assert len(str(error.value)) < 500
