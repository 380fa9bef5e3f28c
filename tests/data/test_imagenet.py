"""ImageNet in the folders in which it is distributed: the same data set from each, and what is missing is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from image_files import relative_paths, write_image
from reptk.core.errors import DataError
from reptk.data import Data, folder, imagenet, imagenet100
from reptk.data.sources.imagenet100 import read_synsets

SYNSETS = ("n01440764", "n01443537", "n01484850")
VAL_LABELS = [2, 0, 1, 0, 2]
"""Of validation images 1 to 5, indices in `SYNSETS`."""


def write_train(train: Path, subfolder: str = ".", synsets: tuple[str, ...] = SYNSETS) -> None:
    for name in synsets:
        for number in range(2):
            write_image(train / name / subfolder / f"{name}_{number}.JPEG")


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}"


def write_flat_val(val: Path) -> None:
    for number in range(1, len(VAL_LABELS) + 1):
        write_image(val / f"{val_name(number)}.JPEG")


def write_torchvision(root: Path) -> None:
    write_train(root / "train")
    for number, label in enumerate(VAL_LABELS, 1):
        write_image(root / "val" / SYNSETS[label] / f"{val_name(number)}.JPEG")


def write_kaggle_labels(root: Path) -> None:
    lines = ["ImageId,PredictionString"]
    lines += [f"{val_name(number)},{SYNSETS[label]} 1 2 3 4 " for number, label in enumerate(VAL_LABELS, 1)]
    (root / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")


def write_kaggle(root: Path) -> None:
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    write_train(images / "train")
    write_flat_val(images / "val")
    write_image(images / "test" / "ILSVRC2012_test_00000001.JPEG")
    write_kaggle_labels(root)


def write_devkit(devkit: Path) -> None:
    devkit.mkdir(parents=True)
    ids = {0: 7, 1: 3, 2: 1000}
    entries = [(ids[index], name, "words", 0) for index, name in enumerate(SYNSETS)]
    types = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    scipy.io.savemat(devkit / "meta.mat", {"synsets": np.array(entries, dtype=types)})
    text = "".join(f"{ids[label]}\n" for label in VAL_LABELS)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text(text)


def write_original(root: Path) -> None:
    write_train(root / "train")
    write_flat_val(root / "val")
    write_devkit(root / "ILSVRC2012_devkit_t12" / "data")


def write_kaggle_100(root: Path) -> None:
    for part, name in zip(("train.X1", "train.X2", "train.X4"), SYNSETS, strict=True):
        write_train(root / part, synsets=(name,))
    for number, label in enumerate(VAL_LABELS, 1):
        write_image(root / "val.X" / SYNSETS[label] / f"{val_name(number)}.JPEG")
    (root / "Labels.json").write_text("{}")


def write_tiny(root: Path) -> None:
    tiny = root / "tiny-imagenet-200"
    write_train(tiny / "train", "images")
    lines = []
    for number, label in enumerate(VAL_LABELS):
        write_image(tiny / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{SYNSETS[label]}\t0\t0\t1\t1\n")
    (tiny / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(tiny / "test" / "images" / "test_0.JPEG")


DISTRIBUTIONS = [write_torchvision, write_kaggle, write_original, write_kaggle_100, write_tiny]


def check_labels(data: Data) -> None:
    assert data.classes == SYNSETS
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.bank is data.train
    assert data.query.labels.tolist() == sorted(VAL_LABELS)
    numbers = [int(Path(path).stem[-8:].removeprefix("val_")) for path in relative_paths(data.query, Path("/"))]
    first = min(numbers)
    assert [VAL_LABELS[number - first] for number in numbers] == sorted(VAL_LABELS)


@pytest.mark.parametrize("write", DISTRIBUTIONS)
def test_every_distribution_is_the_same_data_set(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    data = imagenet(str(tmp_path), size=8)
    check_labels(data)
    assert "6 training, 5 validation images, 3 synsets" in data.summary[0]


@pytest.mark.parametrize("inner", ["ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_folders_may_be_named_directly(inner: str, tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    check_labels(imagenet(str(tmp_path / inner), size=8))


def test_kaggles_imagenet100_is_a_folder_of_splits(tmp_path: Path) -> None:
    write_kaggle_100(tmp_path)
    data = folder(str(tmp_path), size=8)
    assert data.classes == SYNSETS
    assert (len(data.train), len(data.query)) == (6, 5)


def test_imagenet100_is_selected_from_kaggles_imagenet(tmp_path: Path) -> None:
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    lines = ["ImageId,PredictionString"]
    content = write_image(tmp_path / "one.png").read_bytes()
    for number, name in enumerate([*read_synsets(), "n99999999"], 1):
        for path in (images / "train" / name / f"{name}_0.JPEG", images / "val" / f"{val_name(number)}.JPEG"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        lines.append(f"{val_name(number)},{name} 1 2 3 4")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(lines))
    data = imagenet100(str(tmp_path), size=8)
    assert data.classes == read_synsets()
    assert data.query.labels.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("LOC_val_solution.csv", None, "not sorted into folders, and their labels are missing"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1\n",
            "no label for 4 of 5",
        ),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nx,cat\n",
            "line 2: expected an image, a comma and a synset",
        ),
    ],
)
def test_missing_labels_are_named(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        imagenet(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("meta.mat", None, "meta.mat is missing"),
        ("meta.mat", b"no table", "as the devkit's table of synsets"),
        ("ILSVRC2012_validation_ground_truth.txt", b"7\nx\n", "line 2: 'x' is no number of a synset"),
    ],
)
def test_a_damaged_devkit_is_named(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    write_original(tmp_path)
    path = tmp_path / "ILSVRC2012_devkit_t12" / "data" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        imagenet(str(tmp_path))


def test_a_folder_without_imagenet_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "cats" / "0.png")
    with pytest.raises(DataError, match="no ImageNet in"):
        imagenet(str(tmp_path))


@pytest.mark.parametrize("write", [write_original, write_tiny])
def test_folder_points_to_this_data_set(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    root = tmp_path / "tiny-imagenet-200"
    with pytest.raises(DataError, match=r"data\.name=imagenet"):
        folder(str(root if root.is_dir() else tmp_path))
