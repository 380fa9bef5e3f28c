"""ImageNet-100: 100 classes selected from a folder of synsets; missing ones are counted."""

import re
from pathlib import Path

import pytest

from image_files import fetch_all, relative_paths, same_data, write_image
from reptk.core.errors import DataError
from reptk.data import imagenet100
from reptk.data.sources.imagenet100 import read_synsets

SYNSETS = read_synsets()


def write_imagenet(root: Path, synsets: list[str]) -> Path:
    """Write two training images and one validation image of each synset."""
    content = write_image(root / "one.png").read_bytes()
    for part, count in (("train", 2), ("val", 1)):
        for name in synsets:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                (root / part / name / f"{name}_{number}.JPEG").write_bytes(content)
    return root


def test_there_are_100_synsets():
    assert len(SYNSETS) == len(set(SYNSETS)) == imagenet100.classes == 100
    assert all(re.fullmatch(r"n\d{8}", name) for name in SYNSETS)


@pytest.mark.parametrize("extra", [[], ["n00000001", "n99999999", "n01440764"]], ids=["ready", "within ImageNet-1k"])
def test_the_classes_are_selected_from_a_folder_of_synsets(tmp_path, extra):
    data = imagenet100(str(write_imagenet(tmp_path, sorted([*SYNSETS, *extra]))))
    assert data.classes == SYNSETS
    assert data.bank is data.train
    for split, part, count in ((data.train, "train", 2), (data.query, "val", 1)):
        assert split.labels.bincount().tolist() == [count] * 100
        folders = [Path(path).parts[:2] for path in relative_paths(split, tmp_path)]
        assert folders == [(part, data.classes[label]) for label in split.labels.tolist()]


@pytest.mark.parametrize(
    ("part", "count", "message"),
    [("val", 3, "val/ lacks 3 of the 100"), ("train", 1, "train/ lacks 1 of the 100"), ("val", 100, "val/ lacks 100")],
)
def test_missing_classes_are_counted(tmp_path, part, count, message):
    write_imagenet(tmp_path, SYNSETS)
    for name in SYNSETS[:count]:
        (tmp_path / part / name).rename(tmp_path / f"gone_{name}")
    with pytest.raises(DataError, match=f"(?s){message}.*data.root=/path/to/imagenet.*--smoke"):
        imagenet100(str(tmp_path))


def test_classes_without_images_are_counted(tmp_path):
    write_imagenet(tmp_path, SYNSETS)
    for path in (tmp_path / "val" / SYNSETS[7]).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"val/ lacks 1 of the 100"):
        imagenet100(str(tmp_path))


@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "missing"])
def test_a_missing_folder_says_what_it_has_to_hold(tmp_path, is_empty):
    root = tmp_path / "imagenet"
    if is_empty:
        root.mkdir()
    with pytest.raises(DataError, match="(?s)" + re.escape(str(root)) + ".*data.root=/path/to/imagenet100.*--smoke"):
        imagenet100(str(root))


def test_the_cache_holds_the_same_images(tmp_path):
    root = str(write_imagenet(tmp_path / "imagenet", SYNSETS))
    cached = imagenet100(root, size=8, cache=str(tmp_path / "cache"))
    assert same_data(imagenet100(root, size=8), cached)
    assert fetch_all(cached.train).shape == (200, 3, 8, 8)
