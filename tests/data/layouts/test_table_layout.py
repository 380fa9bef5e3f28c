"""Tables of images as training data: splits, classes, and what is refused."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from image_files import fetch_all, relative_paths, same_data, write_images
from reptk.core.errors import DataError
from reptk.data import Data, folder

pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


def table_data(root: Path, text: str, **options: object) -> Data:
    (root / "t.csv").write_text(text, encoding="utf-8")
    return folder(str(root / "t.csv"), size=8, **options)


def lines_of(root: Path) -> list[str]:
    """Return a line `path,class` for each image below a folder, in no useful order."""
    paths = sorted((path.relative_to(root) for path in root.rglob("*.png")), key=lambda path: path.name + str(path))
    return [f"{path},{path.parts[0]}\n" for path in paths]


def colored(root: Path) -> None:
    """Make all images different."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (9, 9), (number, 2 * number, 255 - number)).save(path)


def test_a_table_equals_the_folder_that_it_lists(tmp_path):
    write_images(tmp_path, cat=7, cat__old=4, cat__a__b=3, dog=6)
    colored(tmp_path)
    by_table = table_data(tmp_path, "path,label\n" + "".join(lines_of(tmp_path)))
    by_folder = folder(str(tmp_path), size=8)
    assert same_data(by_table, by_folder)
    assert relative_paths(by_table.query, tmp_path) == relative_paths(by_folder.query, tmp_path)
    assert by_table.bank is by_table.train


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Training", "VALID", "test_set")])
def test_the_column_of_splits_in_any_spelling(tmp_path, train, val, test):
    write_images(tmp_path, **{"": 9})
    rows = [(train, "a"), (train, "b"), (val, "b"), (test, "a"), (train, ""), (val, ""), ("", "a"), ("unlabeled", "a")]
    text = "".join(f"{number:02}.png,{label},{split}\n" for number, (split, label) in enumerate(rows))
    data = table_data(tmp_path, "file,class,subset\n" + text)
    assert data.classes == ("a", "b")
    assert relative_paths(data.train, tmp_path) == ["00.png", "01.png", "04.png", "07.png"]
    assert data.train.labels.tolist() == [0, 1, -1, -1]
    assert relative_paths(data.bank, tmp_path) == ["00.png", "01.png"]
    assert relative_paths(data.query, tmp_path) == ["02.png"]
    assert data.query.labels.tolist() == [1]
    table = tmp_path / "t.csv"
    assert data.protocol == f"bank split {train} of {table}, queries split {val} of {table}"
    assert list(data.summary) == [
        f"{table}: 8 images, 2 classes of 2 (b) to 3 (a) images, median 2.5; 3 images without a class",
        f"  splits: {train} 3, {val} 2, {test} 1, in none 1, unlabeled 1",
        f"  not used in training: 1 in {test}, 1 in no split",
    ]


def test_a_test_split_without_labels_leaves_queries_to_be_held_out(tmp_path):
    write_images(tmp_path, **{"": 13})
    lines = [f"{number:02}.png,{'ab'[number % 2]},train\n" for number in range(10)]
    lines += [f"{number:02}.png,,test\n" for number in range(10, 13)]
    data = table_data(tmp_path, "path,label,split\n" + "".join(lines))
    assert relative_paths(data.query, tmp_path) == ["08.png", "09.png"]
    assert len(data.train) == 8
    assert "  test has no labels, so every 5th image of each class is a query" in data.summary


def test_one_split_is_used_as_if_there_were_no_column(tmp_path):
    write_images(tmp_path, **{"": 10})
    lines = [f"{number:02}.png,{'ab'[number % 2]},test\n" for number in range(10)]
    data = table_data(tmp_path, "path,label,split\n" + "".join(lines))
    assert relative_paths(data.query, tmp_path) == ["08.png", "09.png"]


@pytest.mark.parametrize("labels", ["auto", "none"])
def test_tables_without_labels_are_for_training_without(tmp_path, labels):
    write_images(tmp_path, **{"": 4})
    text = "path\n" + "".join(f"{number:02}.png\n" for number in range(4))
    if labels == "none":
        text = "path,label\n" + "".join(f"{number:02}.png,{number % 2}\n" for number in range(4))
    data = table_data(tmp_path, text, labels=labels)
    assert data.train.labels.tolist() == [-1] * 4
    assert (data.bank, data.query, data.classes) == (None, None, ())


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    write_images(tmp_path, **{"": 3})
    assert table_data(tmp_path, "00.png,10\n01.png,9\n02.png,10\n").classes == ("9", "10")


def test_rows_that_repeat_an_image_are_read_once(tmp_path):
    write_images(tmp_path, **{"": 2})
    data = table_data(tmp_path, "00.png,a\n01.png,b\n./00.png,a\n")
    assert relative_paths(data.train, tmp_path) == ["00.png", "01.png"]
    assert "  repeated: 1 row; each image is read once" in data.summary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,split\n00.png,a,train\n01.png,b,fold 3\n", "line 3: 'fold 3' is no split; write train, val"),
        ("path,label\n00.png,a\n\n00.png,b\n", "line 4: 00.png has the label 'b' here and 'a' on line 2"),
        ("path,split\n00.png,train\n./00.png,val\n", "line 3: ./00.png has the split 'val' here and 'train' on line 2"),
        ("path,label,split\n00.png,a,val\n01.png,a,test\n", "splits test, val|splits val, test.*write train into"),
        (
            "path,label,split\n00.png,a,train\n01.png,b,train\n02.png,c,val\n",
            "split val of .*t.csv has classes that split train of .*t.csv lacks: c",
        ),
        ("path,label\n", "only headings"),
    ],
)
def test_what_training_cannot_use_is_refused(tmp_path, text, message):
    write_images(tmp_path, **{"": 3})
    with pytest.raises(DataError, match=message):
        table_data(tmp_path, text)


def test_labels_folders_needs_labels(tmp_path):
    write_images(tmp_path, **{"": 3})
    with pytest.raises(DataError, match=r"has no labels; add a column such as label"):
        table_data(tmp_path, "00.png\n01.png\n", labels="folders")
    assert table_data(tmp_path, "00.png,a\n01.png,a\n", labels="folders").classes == ("a",)


@pytest.mark.parametrize("cache", [False, True])
def test_missing_files_are_skipped_like_damaged_ones(tmp_path, cache):
    write_images(tmp_path / "photos", **{"": 12})
    text = "".join(f"photos/{number:02}.png,{'ab'[number % 2]}\n" for number in range(13))
    data = table_data(tmp_path, text, cache=str(tmp_path / "cache") if cache else False)
    assert "  missing: 1 file, the first: " + str(tmp_path / "photos" / "12.png") in data.summary
    everything = torch.arange(len(data.train))
    assert fetch_all(data.train).shape == (len(data.train), 3, 8, 8)
    [reason] = data.train.images.unreadable(everything).values()
    assert reason.endswith("12.png: there is no such file")
    if cache:
        write_images(tmp_path / "photos", **{"": 13})
        restored = table_data(tmp_path, text, cache=str(tmp_path / "cache"))
        assert restored.train.images.unreadable(everything) == {}


def test_a_missing_file_stops_a_run_that_stops(tmp_path):
    write_images(tmp_path, **{"": 1})
    data = table_data(tmp_path, "00.png,a\n01.png,b\n", on_error="stop")
    with pytest.raises(DataError, match=r"01\.png: there is no such file"):
        fetch_all(data.train)
    with pytest.raises(DataError, match=r"cannot read .*01\.png"):
        table_data(tmp_path, "00.png,a\n01.png,b\n", on_error="stop", cache=str(tmp_path / "cache"))


def test_paths_of_a_table_are_relative_to_its_folder(tmp_path, monkeypatch):
    write_images(tmp_path, cat=1, dog=1)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "t.csv").write_text(f"../cat/00.png,cat\n{tmp_path}/dog/00.png,dog\n")
    monkeypatch.chdir(tmp_path / "lists")
    for root in ("t.csv", str(tmp_path / "lists" / "t.csv")):
        data = folder(root, size=8)
        assert len(fetch_all(data.train)) == 2
        assert sorted(os.path.realpath(data.train.images.path(number)) for number in range(2)) == [
            str(tmp_path / "cat" / "00.png"),
            str(tmp_path / "dog" / "00.png"),
        ]


def test_a_missing_table_suggests_the_nearest(tmp_path):
    (tmp_path / "photos.csv").touch()
    with pytest.raises(DataError, match=r"no folder .*photo\.csv.*did you mean .*photos\.csv"):
        folder(str(tmp_path / "photo.csv"))
