"""Tables of Lance and saved data sets: versions, splits, rows in any order, and what is refused."""

from pathlib import Path

import pytest
import torch

from image_files import fetch_all
from lance_data_sets import write_lance
from parquet_data_sets import encoded_image
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data import folder
from reptk.data.decoding.decode import decode
from reptk.data.fingerprint import differences, fingerprint
from reptk.data.records import hugging_face_dataset, lance_table
from reptk.data.records.record_source import RecordSource

pyarrow = pytest.importorskip("pyarrow")

pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


def rows(numbers: range, **columns: list[object]) -> object:
    return pyarrow.table({"image": [encoded_image(number) for number in numbers], **columns})


def write_saved(path: Path, **splits: range) -> Path:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "ant"])})
    parts = {}
    for name, numbers in splits.items():
        columns = {
            "image": [{"bytes": encoded_image(number), "path": None} for number in numbers],
            "label": [number % 2 for number in numbers],
        }
        parts[name] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(path)
    return path


def source_of(path: Path) -> RecordSource:
    if hugging_face_dataset.is_hugging_face_dataset(path):
        return hugging_face_dataset.HuggingFaceDataset(path)
    return lance_table.LanceTable(path)


def test_a_version_of_a_table_is_what_it_was(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    path = write_lance(tmp_path / "x.lance", rows(range(12), label=list("ab") * 6, split=["train"] * 8 + ["val"] * 4))
    data = folder(str(path), size=8)
    before = fingerprint(data)
    pixels = fetch_all(data.train)
    assert data.train.labels.tolist() == [0, 1] * 4
    assert data.query.labels.tolist() == [0, 1] * 2
    assert "  Lance, version 1 (x.lance@1), 3 fragments, images in image, labels in label" in data.summary
    lance.dataset(str(path)).delete("label = 'a' and split = 'train'")
    write_lance(path, rows(range(20, 23), label=["c", "a", "b"], split=["train"] * 3), mode="append")
    assert torch.equal(fetch_all(data.train), pixels), "an open table does not change"
    assert torch.equal(fetch_all(folder(f"{path}@1", size=8).train), pixels)
    assert differences(before, fingerprint(folder(f"{path}@1", size=8))) == []
    latest = folder(str(path), size=8)
    assert latest.train.labels.tolist() == [1] * 4 + [2, 0, 1]
    assert torch.equal(fetch_all(latest.train)[4], decode(encoded_image(20), 8))
    assert " files added: " in differences(before, fingerprint(latest))[0]
    cached = folder(str(path), size=8, cache=str(tmp_path / "cache"))
    assert torch.equal(fetch_all(cached.train), fetch_all(latest.train))
    with pytest.raises(DataError, match=r"cannot open version 9 of .*x\.lance \(its versions are 1 to 3\)"):
        folder(f"{path}@9")


@pytest.mark.parametrize("kind", ["lance", "saved"])
def test_rows_come_as_they_are_asked_for(kind: str, tmp_path: Path) -> None:
    if kind == "lance":
        source = source_of(write_lance(tmp_path / "x.lance", rows(range(20))))
    else:
        source = source_of(write_saved(tmp_path / "x", train=range(9), test=range(9, 20)))
    numbers = [17, 3, 3, 0, 19, 3, 10]
    assert source.contents(numbers) == [encoded_image(number) for number in numbers]
    assert [source.find(source.image_id(number)) for number in range(20)] == list(range(20))
    assert source.find("elsewhere/3") is None
    assert len({source.location(number) for number in range(20)}) == 20


def test_splits_of_a_hugging_face_dataset(tmp_path: Path) -> None:
    root = write_saved(tmp_path / "x", train=range(10), validation=range(20, 24))
    data = folder(str(root), size=8)
    assert data.classes == ("cat", "ant"), "in the order of the features"
    assert data.train.labels.tolist() == [0, 1] * 5
    assert torch.equal(fetch_all(data.query)[1], decode(encoded_image(21), 8))
    assert data.protocol == f"bank split train of {root}, queries split validation of {root}"
    assert [path.name for path in data.train.images.files()] == ["data-00000-of-00001.arrow"] * 2
    single = folder(str(root / "train"), size=8)
    assert len(single.train) + len(single.query) == 10


@pytest.mark.parametrize("kind", ["lance", "saved"])
def test_images_that_are_missing_are_skipped(kind: str, tmp_path: Path) -> None:
    contents = [encoded_image(number) for number in range(20)]
    contents[4] = None
    contents[7] = b"no image"
    if kind == "lance":
        path = write_lance(tmp_path / "x.lance", pyarrow.table({"image": contents}))
    else:
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        datasets.disable_progress_bars()
        path = tmp_path / "x"
        datasets.Dataset.from_dict({"image": contents}).save_to_disk(path)
    data = folder(str(path), size=8)
    fetch_all(data.train)
    reasons = data.train.images.unreadable(torch.arange(20))
    assert sorted(reasons) == [4, 7]
    assert reasons[4].endswith("it holds no image")


def test_a_hugging_face_dataset_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(write_saved(tmp_path / "x", train=range(9)))
    import datasets

    monkeypatch.setattr(datasets.Dataset, "select_columns", None)
    assert source.contents([3]) == [encoded_image(3)], "the column was selected before"

    def fail(data_set: object, rows: object) -> None:
        raise pyarrow.ArrowInvalid("offset out of bounds")

    monkeypatch.setattr(datasets.Dataset, "__getitem__", fail)
    with pytest.raises(DataError, match=r"cannot read .*x as a data set of Hugging Face: offset out of bounds"):
        source.contents([3])


def test_a_table_of_lance_that_cannot_be_read_costs_no_image(tmp_path: Path) -> None:
    path = write_lance(tmp_path / "x.lance", rows(range(12)))
    data = folder(str(path), size=8, on_error="skip")
    (path / "data").rename(path / "away")
    with pytest.raises(DataError, match=r"cannot read .*x\.lance as a table of Lance"):
        fetch_all(data.train)
    (path / "away").rename(path / "data")
    assert len(fetch_all(data.train)) == len(data.train)
    assert data.train.images.unreadable(torch.arange(len(data.train))) == {}


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    path = write_lance(tmp_path / "x.lance", pyarrow.table({"text": ["a"], "number": [1]}))
    with pytest.raises(DataError, match=r"x\.lance has no column of images among text, number"):
        folder(str(path))
    for file in (path / "_versions").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(DataError, match="as a table of Lance"):
        folder(str(path))
    root = write_saved(tmp_path / "saved", train=range(3))
    next((root / "train").glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot open .*saved as a data set of Hugging Face"):
        folder(str(root))


@pytest.mark.parametrize(("name", "extra"), [("x.lance", "lance"), ("saved", "datasets")])
def test_without_the_package(name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    monkeypatch.setattr(lance_table, "find_spec", lambda name: None)
    monkeypatch.setattr(hugging_face_dataset, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=rf"pip install 'reptk\[{extra}\]'"):
        folder(str(tmp_path / name))
