"""A folder of images and ImageNet-100: what is found, how it is split, what is said about the rest."""

import os
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from image_files import BLUE, RED, fetched, fill, paths, put
from reptk.core.errors import DataError
from reptk.data import folder, imagenet100

# The small folders made here say so themselves; what is said is tested where it matters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:no class of .* is held out"),
    pytest.mark.filterwarnings("ignore:.*skipped"),
]


# A folder of one's own


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

SYNSETS = (files("reptk.data.sources") / "imagenet100.txt").read_text().split()


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


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    fill(tmp_path, cat=1, dog=1)
    (tmp_path / "cat" / "empty.jpg").touch()
    (tmp_path / "dog" / "phone.HEIC").write_bytes(b"x")
    skipped = "skipped 1 .heic files, which Pillow does not read, 1 empty files or broken links"
    with pytest.warns(UserWarning, match=skipped), pytest.warns(UserWarning, match="so none is held out"):
        folder(str(tmp_path))
