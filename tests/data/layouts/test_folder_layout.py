"""What the folders below a folder of images mean: splits, classes, or neither."""

import os

import pytest

from image_files import relative_paths, write_images
from reptk.core.errors import DataError
from reptk.data import folder
from reptk.data.layouts.folder_layout import read_folder_layout
from reptk.data.layouts.image_layout import class_names

pytestmark = [
    pytest.mark.filterwarnings("ignore:no class of .* is held out"),
    pytest.mark.filterwarnings("ignore:.*skipped"),
]


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [
        ("train", "val"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "VAL"),
        ("Training", "Validation"),
        ("train", "dev"),
        ("train2017", "val2017"),
        ("train_set", "test_set"),
    ],
)
def test_split_folders_in_any_spelling_are_splits(tmp_path, train, evaluation):
    write_images(tmp_path, **{f"{train}/a": 3, f"{train}/b": 3, f"{evaluation}/a": 1, f"{evaluation}/b": 2})
    layout = read_folder_layout(tmp_path, "auto")
    assert layout.has_splits
    assert class_names(layout.files) == ("a", "b")
    data = folder(str(tmp_path))
    assert data.classes == ("a", "b")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert relative_paths(data.query, tmp_path) == [f"{evaluation}/{name}.png" for name in ("a/00", "b/00", "b/01")]


def test_a_class_named_train_is_a_class(tmp_path):
    write_images(tmp_path, bus=10, car=10, train=10, test=10)
    layout = read_folder_layout(tmp_path, "auto")
    assert not layout.has_splits
    assert class_names(layout.files) == ("bus", "car", "test", "train")
    assert len(layout.files) == 40
    data = folder(str(tmp_path))
    assert data.classes == ("bus", "car", "test", "train")
    assert len(data.train) + len(data.query) == 40
    assert any("test, train count as classes" in line for line in data.summary)


def test_folders_without_images_do_not_make_a_split_a_class(tmp_path):
    write_images(tmp_path, train__a=1, train__b=1, val__a=1)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances.json").write_text("{}")
    assert read_folder_layout(tmp_path, "auto").has_splits


def test_the_evaluation_folder_with_labels_is_preferred(tmp_path):
    write_images(tmp_path, train__a=1, train__b=1, val=3, test__a=1, test__b=1)
    data = folder(str(tmp_path))
    assert relative_paths(data.query, tmp_path) == ["test/a/00.png", "test/b/00.png"]
    assert "  not used in training: 3 in val" in data.summary


def test_a_validation_folder_is_preferred_to_a_test_folder(tmp_path):
    write_images(tmp_path, train__a=1, train__b=1, VAL__a=1, VAL__b=1, Test__a=1, Test__b=1)
    assert relative_paths(folder(str(tmp_path)).query, tmp_path) == ["VAL/a/00.png", "VAL/b/00.png"]


def test_unlabeled_images_next_to_the_splits_are_trained_on(tmp_path):
    write_images(tmp_path, train__a=2, train__b=2, test__a=1, test__b=1, unlabeled=5)
    data = folder(str(tmp_path))
    assert data.train.labels.tolist() == [0, 0, 1, 1] + [-1] * 5
    assert data.bank.labels.tolist() == [0, 0, 1, 1]


def test_several_train_folders_are_one_split(tmp_path):
    write_images(tmp_path, train__a=2, Training__b=2, val__a=1, val__b=1)
    data = folder(str(tmp_path))
    assert data.train.labels.sort().values.tolist() == [0, 0, 1, 1]
    assert len(data.query) == 2


@pytest.mark.parametrize("name", ["Train", "training", "test", "VAL"])
def test_a_single_split_folder_is_used_in_place_of_the_root(tmp_path, name):
    data = folder(str(write_images(tmp_path, **{f"{name}/a": 5, f"{name}/b": 5})))
    assert data.classes == ("a", "b")
    assert (len(data.train), len(data.query)) == (8, 2)


@pytest.mark.parametrize("empty_folder", [None, "Train"])
def test_splits_without_training_images_are_refused(tmp_path, empty_folder):
    write_images(tmp_path, val__a=1, val__b=1)
    if empty_folder is None:
        write_images(tmp_path, test__a=1)
    else:
        (tmp_path / empty_folder).mkdir()
    with pytest.raises(DataError, match=r"no images to train on .* data\.root=.*/val"):
        folder(str(tmp_path))


def test_the_summary_counts_what_was_read(tmp_path):
    write_images(tmp_path, train__cat=6, train__dog=2, val__cat=1)
    assert list(folder(str(tmp_path)).summary) == [
        f"{tmp_path}: 9 images, 2 classes of 2 (dog) to 7 (cat) images, median 4.5",
        "  splits: train 8, val 1",
    ]


def test_a_single_folder_that_holds_the_classes_is_named(tmp_path):
    data = folder(str(write_images(tmp_path, flowers__rose=2, flowers__tulip=2)))
    assert data.classes == ()
    assert (
        f"  note: everything is in flowers; its folders are splits or classes for {tmp_path / 'flowers'}"
        in data.summary
    )


def test_images_of_deep_folders_are_counted(tmp_path):
    data = folder(str(write_images(tmp_path, train__cat__old=2, train__cat=1, train__dog__a__b=1, val__cat=1)))
    assert "  note: in folders within those of the classes: 3 images, which belong to these classes" in data.summary


# Splits within classes


def test_splits_within_class_folders_are_splits(tmp_path):
    write_images(tmp_path, cat__train=3, cat__test=1, dog__train=2, dog__test=2)
    layout = read_folder_layout(tmp_path, "auto")
    assert layout.has_splits
    data = folder(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert relative_paths(data.train, tmp_path) == [
        *(f"cat/train/{number:02}.png" for number in range(3)),
        *(f"dog/train/{number:02}.png" for number in range(2)),
    ]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert relative_paths(data.query, tmp_path) == ["cat/test/00.png", "dog/test/00.png", "dog/test/01.png"]
    assert data.bank is data.train
    assert data.protocol == f"bank {tmp_path}/*/train, queries {tmp_path}/*/test"
    assert list(data.summary) == [
        f"{tmp_path}: 8 images, 2 classes of 4 images each",
        "  splits: train 5, test 3",
        "  note: every folder is a class that holds the same splits (train, test), so these are the splits",
    ]


def test_a_class_may_have_an_empty_split(tmp_path):
    write_images(tmp_path, cat__Train=3, cat__val=1, dog__Train=2)
    (tmp_path / "dog" / "val").mkdir()
    assert relative_paths(folder(str(tmp_path)).query, tmp_path) == ["cat/val/00.png"]


def test_unlabeled_images_next_to_classes_with_splits(tmp_path):
    write_images(tmp_path, cat__train=2, cat__val=1, dog__train=2, dog__val=1, unlabeled__x=3, **{"": 1})
    data = folder(str(tmp_path))
    assert data.train.labels.tolist() == [0, 0, 1, 1, -1, -1, -1]
    assert "  not used in training: 1 in no split" in data.summary


@pytest.mark.parametrize(
    "counts",
    [
        {"cat__train": 3, "cat__test": 2, "dog__train": 3},
        {"cat__train": 3, "cat__test": 2, "dog__train": 3, "dog__test": 1, "dog__old": 1},
        {"cat__train": 3, "cat__test": 2, "dog__train": 3, "dog__test": 1, "dog": 1},
        {"cat__train": 3, "cat__test": 2, "dog__train": 3, "dog__test": 1, "eel": 1},
        {"cat__train": 3, "dog__train": 3},
        {"cat__val": 3, "cat__test": 2, "dog__val": 3, "dog__test": 2},
        {"cat__train": 3, "cat__test": 2, "dog__Train": 3, "dog__Test": 1},
    ],
    ids=str,
)
def test_classes_that_do_not_all_hold_the_same_splits_are_just_classes(tmp_path, counts):
    layout = read_folder_layout(write_images(tmp_path, **counts), "auto")
    assert not layout.has_splits
    assert len(layout.files) == sum(counts.values())
    assert class_names(layout.files) == tuple(sorted({name.partition("__")[0] for name in counts}))


def test_splits_come_before_splits_within_them(tmp_path):
    write_images(tmp_path, train__val=2, train__train=2, test__train=1, test__val=1)
    assert class_names(read_folder_layout(tmp_path, "auto").parts["train"]) == ("train", "val")


def test_links_out_of_the_folder_are_followed_and_counted(tmp_path):
    write_images(tmp_path / "elsewhere", dog=2)
    root = write_images(tmp_path / "root", cat=2)
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (root / "cat" / "more.png").symlink_to(tmp_path / "elsewhere" / "dog" / "00.png")
    (root / "cat" / "inside.png").symlink_to("00.png")
    layout = read_folder_layout(root, "auto")
    assert len(layout.files) == 6
    assert [line for line in layout.details if "followed" in line] == [f"  note: followed out of {root}: 2 links"]
    assert not any("followed" in line for line in read_folder_layout(tmp_path / "elsewhere", "auto").details)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_devices_and_pipes_are_skipped(tmp_path):
    root = write_images(tmp_path, cat=2, dog=2)
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "endless.png").symlink_to("/dev/zero")
    layout = read_folder_layout(root, "auto")
    assert len(layout.files) == 4
    assert "  skipped: 2 devices and pipes" in layout.details
