"""A folder of the user's images: which files are read, how they are split, and what is said about the others."""

import os
import re

import pytest
import torch
from PIL import Image

from image_files import BLUE, RED, fetch_all, relative_paths, write_image, write_images
from reptk.core.errors import DataError
from reptk.data import folder
from reptk.data.decoding.decode import HAS_HEIF
from reptk.data.decoding.raw_photograph import HAS_RAW
from reptk.data.layouts.folder_scan import SkippedFiles

# The small folders of these tests cause these warnings; the tests of the warnings check them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:no class of .* is held out"),
    pytest.mark.filterwarnings("ignore:.*skipped"),
]


# Splits


def test_every_fifth_image_of_each_class_is_held_out(tmp_path):
    data = folder(str(write_images(tmp_path, cat=11, dog=4, eel=1)), size=8)
    assert data.classes == ("cat", "dog", "eel")
    assert relative_paths(data.query, tmp_path) == ["cat/04.png", "cat/09.png"]
    assert data.query.labels.tolist() == [0, 0]
    assert data.train.labels.tolist() == [0] * 9 + [1] * 4 + [2]
    assert data.bank is data.train
    assert not {*relative_paths(data.train, tmp_path)} & {*relative_paths(data.query, tmp_path)}
    assert len(data.train) + len(data.query) == 16


def test_held_out_images_are_the_same_again_and_after_images_were_added(tmp_path):
    write_images(tmp_path, cat=11, dog=5)
    before = folder(str(tmp_path))
    assert relative_paths(folder(str(tmp_path)).query, tmp_path) == relative_paths(before.query, tmp_path)
    write_image(tmp_path / "cat" / "99.png")
    write_images(tmp_path, asp=7)
    after = relative_paths(folder(str(tmp_path)).query, tmp_path)
    assert [path for path in after if "asp" not in path] == relative_paths(before.query, tmp_path)


def test_holdout_sets_which_images_are_held_out(tmp_path):
    data = folder(str(write_images(tmp_path, cat=4, dog=5)), holdout=2)
    assert relative_paths(data.query, tmp_path) == ["cat/01.png", "cat/03.png", "dog/01.png", "dog/03.png"]


def test_images_are_decoded_at_the_requested_size(tmp_path):
    write_image(tmp_path / "a" / "0.png", RED)
    write_image(tmp_path / "b" / "0.png", BLUE, size=(300, 20))
    data = folder(str(tmp_path), size=24)
    pixels = fetch_all(data.train)
    assert pixels.shape == (2, 3, 24, 24)
    assert pixels[:, :, 12, 12].tolist() == [list(RED), list(BLUE)]
    assert data.train.images.fetch(torch.tensor([], dtype=torch.long)).shape == (0, 3, 24, 24)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "query"])
def test_train_and_evaluation_folders_are_the_splits(tmp_path, name):
    write_images(tmp_path, train__cat=6, train__dog=5, **{f"{name}__cat": 2, f"{name}__dog": 1})
    data = folder(str(tmp_path))
    assert data.train.labels.tolist() == [0] * 6 + [1] * 5
    assert data.bank is data.train
    assert relative_paths(data.query, tmp_path) == [f"{name}/cat/00.png", f"{name}/cat/01.png", f"{name}/dog/00.png"]
    assert data.query.labels.tolist() == [0, 0, 1]


def test_an_evaluation_folder_that_lacks_a_class_has_the_labels_of_train(tmp_path):
    write_images(tmp_path, train__ant=1, train__bee=1, train__cat=1, val__bee=1, val__cat=2)
    assert folder(str(tmp_path)).query.labels.tolist() == [1, 2, 2]


def test_an_evaluation_folder_with_one_class_is_used(tmp_path):
    data = folder(str(write_images(tmp_path, train__ant=1, train__bee=1, val__bee=2)))
    assert data.query is not None
    assert data.query.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    "counts", [{"val__ant": 1, "val__fly": 1}, {"val__fly": 1}], ids=["with other classes", "alone"]
)
def test_an_evaluation_class_that_train_lacks_is_named(tmp_path, counts):
    write_images(tmp_path, train__ant=1, train__bee=1, **counts)
    with pytest.raises(DataError, match=r"has classes that .*train lacks: fly"):
        folder(str(tmp_path))


# Labels


def test_the_first_folder_is_the_class_at_any_depth(tmp_path):
    write_images(tmp_path, cat=1, cat__tabby__old=2, dog__2020__05__01=1)
    data = folder(str(tmp_path))
    assert dict(zip(relative_paths(data.train, tmp_path), data.train.labels.tolist(), strict=True)) == {
        "cat/00.png": 0,
        "cat/tabby/old/00.png": 0,
        "cat/tabby/old/01.png": 0,
        "dog/2020/05/01/00.png": 1,
    }


@pytest.mark.parametrize("counts", [{"": 3}, {"one_class": 3}, {"": 2, "one_class": 1}, {"unlabeled": 3}], ids=str)
def test_images_without_two_class_folders_are_unlabeled(tmp_path, counts):
    data = folder(str(write_images(tmp_path, **counts)))
    assert data.train.labels.tolist() == [-1] * 3
    assert (data.bank, data.query, data.classes) == (None, None, ())


def test_labels_none_ignores_class_folders(tmp_path):
    data = folder(str(write_images(tmp_path, cat=6, dog=6)), labels="none")
    assert data.train.labels.tolist() == [-1] * 12
    assert data.query is None


def test_labels_folders_accepts_a_single_class(tmp_path):
    data = folder(str(write_images(tmp_path, cat=6)), labels="folders")
    assert (len(data.train), len(data.query), data.classes) == (5, 1, ("cat",))


def test_labels_folders_needs_class_folders(tmp_path):
    with pytest.raises(DataError, match="no class folder"):
        folder(str(write_images(tmp_path, **{"": 3})), labels="folders")


@pytest.mark.parametrize("name", ["unlabeled", "unlabelled"])
def test_unlabeled_images_are_trained_on_and_not_in_the_bank(tmp_path, name):
    write_images(tmp_path, cat=6, dog=1, **{"": 2, name: 7, f"{name}__deep": 1})
    data = folder(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert (data.train.labels == -1).sum() == 10
    assert len(data.train) == 16
    assert sorted(data.bank.labels.tolist()) == [0] * 5 + [1]
    assert relative_paths(data.query, tmp_path) == ["cat/04.png"]
    paths = relative_paths(data.train, tmp_path)
    labeled = [path for path, label in zip(paths, data.train.labels, strict=True) if label >= 0]
    assert relative_paths(data.bank, tmp_path) == labeled


# Files


def test_junk_is_skipped(tmp_path):
    write_images(tmp_path, cat=1, dog=1)
    for name in (".cache", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.thumbs", "dog/@eaDir", "lost+found"):
        write_image(tmp_path / name / "junk.png")
    write_image(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "cat" / "._00.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00")
    (tmp_path / "cat" / "zero.jpg").touch()
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "cat" / "itself.jpg").symlink_to(tmp_path / "cat" / "itself.jpg")
    (tmp_path / "cat" / "folder.jpg").mkdir()
    (tmp_path / "empty_class").mkdir()
    data = folder(str(tmp_path))
    assert relative_paths(data.train, tmp_path) == ["cat/00.png", "dog/00.png"]
    assert data.classes == ("cat", "dog")


def test_skipped_files_are_counted(tmp_path):
    write_images(tmp_path, cat=1, dog=1)
    (tmp_path / "cat" / "empty.jpg").touch()
    (tmp_path / "dog" / "page.psd").write_bytes(b"x")
    skipped = "skipped 1 .psd file, which are not read: convert them to PNG; 1 empty file"
    with pytest.warns(UserWarning, match=skipped), pytest.warns(UserWarning, match="so none is held out"):
        folder(str(tmp_path))


def test_a_cycle_of_links_is_followed_once(tmp_path):
    write_images(tmp_path, cat=2, dog=1)
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "dog" / "here").symlink_to(tmp_path / "dog")
    assert relative_paths(folder(str(tmp_path)).train, tmp_path) == ["cat/00.png", "cat/01.png", "dog/00.png"]


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path):
    elsewhere = write_images(tmp_path / "elsewhere", dogs=2)
    root = write_images(tmp_path / "root", cat=1)
    (root / "dog").symlink_to(elsewhere / "dogs")
    (root / "cat" / "linked.png").symlink_to(write_image(elsewhere / "x.png"))
    data = folder(str(root))
    assert relative_paths(data.train, root) == ["cat/00.png", "cat/linked.png", "dog/00.png", "dog/01.png"]
    assert len(fetch_all(data.train)) == 4


def test_extensions_in_capitals_are_images(tmp_path):
    names = ["0.PNG", "1.JPG", "2.JpEg", "3.WebP", "4.TIF", "5.bmp", "6.GIF", "7.ppm", "8.JFIF", "9.avif"]
    names += ["a.TGA", "b.jp2", "c.apng", "d.mpo", "e.jpe", "f.j2k", "g.pnm"]
    for name in names:
        write_image(tmp_path / name)
    data = folder(str(tmp_path), size=8)
    assert relative_paths(data.train, tmp_path) == names
    assert (fetch_all(data.train)[:, 0] > 240).all()


def test_photographs_of_phones_are_read_or_counted(tmp_path):
    write_images(tmp_path, cat=1)
    if HAS_HEIF:
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(Image.new("RGB", (16, 16), RED)).save(tmp_path / "cat" / "phone.HEIC")
        data = folder(str(tmp_path), size=8)
        assert (fetch_all(data.train)[:, 0] > 240).all()
        assert len(data.train) == 2
    else:
        (tmp_path / "cat" / "phone.HEIC").write_bytes(b"x")
        with pytest.warns(SkippedFiles, match=r"1 \.heic file, which need pip install 'reptk\[heif\]'"):
            folder(str(tmp_path))


def test_raw_photographs_are_read_or_counted(tmp_path):
    write_images(tmp_path, cat=1)
    for name in ("a.CR2", "00.nef", "c.NEF"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    if HAS_RAW:
        data = folder(str(tmp_path))
        assert len(data.train) == 4
        assert "  note: next to an image of the same name: 1 raw photograph; both are read" in data.summary
    else:
        skipped = r"1 \.cr2 file, which are raw .*; 2 \.nef files, .* need pip install 'reptk\[raw\]'"
        with pytest.warns(SkippedFiles, match=skipped):
            folder(str(tmp_path))


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
def test_any_name_that_the_file_system_accepts_is_read(tmp_path, name):
    write_image(tmp_path / "0first" / "0.png", BLUE)
    try:
        write_image(tmp_path / name, RED)
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    data = folder(str(tmp_path), size=8)
    assert data.classes == ("0first", name.split("/")[0])
    assert fetch_all(data.train)[:, :, 4, 4].tolist() == [list(BLUE), list(RED)]
    assert relative_paths(data.train, tmp_path)[1] == name


# Wrong folders


def test_an_empty_folder_lists_the_extensions(tmp_path):
    with pytest.raises(DataError, match=re.escape(str(tmp_path)) + r" .*it is empty; images are .*\.apng .*\.webp"):
        folder(str(tmp_path))


def test_a_folder_without_images_lists_what_it_holds(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "table.csv").touch()
    (tmp_path / "README").touch()
    with pytest.raises(DataError, match=r"there are files of \.csv, README"):
        folder(str(tmp_path))


def test_a_missing_folder_suggests_the_nearest(tmp_path):
    (tmp_path / "my_photos").mkdir()
    with pytest.raises(DataError, match=re.escape(f"did you mean {tmp_path / 'my_photos'}?")):
        folder(str(tmp_path / "my_fotos"))
    with pytest.raises(DataError, match=re.escape(f"the nearest folder that exists is {tmp_path}")):
        folder(str(tmp_path / "quite" / "different"))


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    path = write_image(tmp_path / "one.png")
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*is a file"):
        folder(str(path))


# Links and unreadable folders


def test_a_class_folder_that_is_a_link_to_another_counts(tmp_path):
    write_images(tmp_path, cat=2)
    (tmp_path / "kitten").symlink_to(tmp_path / "cat")
    assert relative_paths(folder(str(tmp_path)).train, tmp_path) == [
        "cat/00.png",
        "cat/01.png",
        "kitten/00.png",
        "kitten/01.png",
    ]


def test_class_folders_of_splits_may_be_links(tmp_path):
    pool = write_images(tmp_path / "pool", a=1, b=1, c=1)
    root = tmp_path / "root"
    for split, names in (("train", "abc"), ("val", "ab")):
        (root / split).mkdir(parents=True)
        for name in names:
            (root / split / name).symlink_to(pool / name)
    data = folder(str(root))
    assert data.classes == ("a", "b", "c")
    assert relative_paths(data.query, root) == ["val/a/00.png", "val/b/00.png"]


def test_folders_that_link_to_each_other_come_to_an_end(tmp_path):
    names = [f"class_{number}" for number in range(12)]
    write_images(tmp_path, **dict.fromkeys(names, 1))
    for name in names:
        for other in names:
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    assert len(folder(str(tmp_path), holdout=1000).train) == 12 * 12


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    write_images(tmp_path, cat=1, dog=1, locked=1)
    scandir = os.scandir

    def refuse_locked(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_locked)
    with pytest.warns(SkippedFiles, match="1 folder that cannot be opened: .*locked"):
        data = folder(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert any("locked" in line for line in data.summary)


def test_a_test_folder_without_classes_leaves_queries_to_be_held_out(tmp_path):
    """As in many competitions, whose test labels are secret."""
    write_images(tmp_path, train__cats=5, train__dogs=5, test=7)
    data = folder(str(tmp_path), size=8)
    assert relative_paths(data.query, tmp_path / "train") == ["cats/04.png", "dogs/04.png"]
    assert len(data.train) == 8
    assert any(
        "test has no class folders, so every 5th image of each class is a query" in line for line in data.summary
    )
    with pytest.raises(DataError, match=r"no class of .* has the 9 images"):
        folder(str(tmp_path), size=8, holdout=9)
