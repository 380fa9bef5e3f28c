"""Data sets in Parquet files that hold the images: which rows are read, their splits and classes, and what is refused."""

import threading
from pathlib import Path

import pytest
import torch

from image_files import fetch_all, same_data, write_images
from parquet_data_sets import encoded_image, write_hub_data_set, write_shard
from reptk.core.errors import DataError
from reptk.data import Split, folder
from reptk.data.decoding.decode import decode
from reptk.data.loading.prefetch import prefetch
from reptk.data.records.parquet_shards import MAX_CACHED_BYTES, ParquetShards

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


def assert_holds(split: Split, numbers: list[int]) -> None:
    expected = torch.stack([decode(encoded_image(number), 8) for number in numbers])
    assert torch.equal(fetch_all(split), expected)


def test_shards_of_the_hub(tmp_path: Path) -> None:
    root = write_hub_data_set(tmp_path)
    data = folder(str(root), size=8)
    assert data.classes == ("cat", "ant", "bee"), "in the order of the hub's labels"
    assert_holds(data.train, list(range(12)))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert_holds(data.query, [20, 21, 22, 23])
    assert data.query.labels.tolist() == [0, 1, 2, 0]
    assert data.bank is data.train
    assert data.protocol == f"bank split train of {root}, queries split validation of {root}"
    assert list(data.summary) == [
        f"{root}: 19 images, 3 classes of 5 (ant) to 6 (cat) images, median 5; 3 images without a class",
        "  splits: test 3, train 12, validation 4",
        "  4 Parquet files, 8 row groups, images in image, labels in label",
        "  not used in training: 3 in test",
    ]
    assert data.train.images.path(0) is None


@pytest.mark.parametrize("cache", [False, True])
def test_a_folder_with_the_same_images_gives_the_same_data(tmp_path: Path, cache: bool) -> None:
    numbers = list(range(20))
    for number in numbers:
        path = tmp_path / "files" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image(number))
    shard = write_shard(tmp_path / "shards" / "all.parquet", numbers, ["ab"[number % 2] for number in numbers])
    by_folder = folder(str(tmp_path / "files"), size=8)
    options = {"cache": str(tmp_path / "cache")} if cache else {}
    for root in (shard, shard.parent):
        by_shards = folder(str(root), size=8, **options)
        assert by_shards.classes == by_folder.classes
        assert sorted(by_shards.train.labels.tolist()) == sorted(by_folder.train.labels.tolist())
        assert torch.equal(fetch_all(by_shards.query).sum(dim=(1, 2, 3)), torch.tensor(_sums([8, 9, 18, 19])))
        assert same_data(by_shards, folder(str(root), size=8, **options))


def _sums(numbers: list[int]) -> list[int]:
    return [int(decode(encoded_image(number), 8).sum()) for number in numbers]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "test-00000-of-00001-0123456789abcdef.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("train.parquet", "val.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train_0.parquet", "dev_0.parquet"),
    ],
)
def test_usual_names_of_shards(tmp_path: Path, names: tuple[str, str]) -> None:
    write_shard(tmp_path / names[0], range(4), [0, 1, 0, 1])
    write_shard(tmp_path / names[1], range(10, 12), [1, 0])
    data = folder(str(tmp_path), size=8)
    assert_holds(data.train, [0, 1, 2, 3])
    assert_holds(data.query, [10, 11])
    assert data.query.labels.tolist() == [1, 0]


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = write_shard(
        tmp_path / "t.parquet", range(4), [10, 9, 10, None], image_column="img", label_column="fine_label"
    )
    assert folder(str(path), size=8).classes == (), "fine_label is no usual heading"
    write_shard(path, range(4), [1, 0, 1, 0], image_column="img", label_column="fine_label", class_names=["x", "y"])
    assert folder(str(path), size=8).classes == ("x", "y")
    write_shard(path, range(4), [10, 9, 10, None], image_column="img", label_column="Category")
    data = folder(str(path), size=8)
    assert data.classes == ("9", "10")
    assert data.train.labels.tolist() == [1, 0, 1, -1]


def test_images_in_a_column_of_bytes(tmp_path: Path) -> None:
    columns = {"key": ["x", "y"], "jpg": [encoded_image(0), encoded_image(1)], "class": ["b", "a"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    data = folder(str(tmp_path / "t.parquet"), size=8)
    assert_holds(data.train, [0, 1])
    assert data.train.labels.tolist() == [1, 0]


def test_shards_without_labels(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "t.parquet", range(4), None)
    data = folder(str(path), size=8)
    assert data.train.labels.tolist() == [-1] * 4
    assert data.query is None
    with pytest.raises(DataError, match="has no labels; add a column such as label"):
        folder(str(path), labels="folders")
    assert folder(str(write_hub_data_set(tmp_path / "hub")), labels="none").train.labels.tolist() == [-1] * 12


@pytest.mark.parametrize("cache", [False, True])
def test_images_that_cannot_be_read_are_skipped(tmp_path: Path, cache: bool) -> None:
    images = [{"bytes": encoded_image(number), "path": None} for number in range(20)]
    images[3] = {"bytes": b"no image", "path": None}
    images[4] = {"bytes": None, "path": "elsewhere.png"}
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "t.parquet", row_group_size=7)
    options = {"cache": str(tmp_path / "cache")} if cache else {}
    data = folder(str(tmp_path / "t.parquet"), size=8, **options)
    pixels = fetch_all(data.train)
    unreadable = data.train.images.unreadable(torch.arange(20))
    assert sorted(unreadable) == [3, 4]
    assert unreadable[3].startswith(f"cannot read {tmp_path / 't.parquet'}, row 3 as an image")
    assert unreadable[4] == f"cannot read {tmp_path / 't.parquet'}, row 4: it holds no image"
    assert (pixels[3:5] == 0).all()
    assert torch.equal(pixels[5], decode(encoded_image(5), 8))
    with pytest.raises(DataError, match="row 3"):
        fetch_all(folder(str(tmp_path / "t.parquet"), size=8, on_error="stop").train)


def test_the_cache_is_built_again_for_shards_that_changed(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "t.parquet", range(4), None)
    for first in (0, 40):
        write_shard(path, range(first, first + 4), None)
        assert_holds(folder(str(path), size=8, cache=str(tmp_path / "cache")).train, list(range(first, first + 4)))


def test_few_row_groups_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "t.parquet", range(60), None, row_group_size=5)
    reads = []
    read_row_group = pyarrow.parquet.ParquetFile.read_row_group

    def count(self: object, group: int, columns: list[str]) -> object:
        reads.append(group)
        return read_row_group(self, group, columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", count)
    expected = [encoded_image(number) for number in range(60)]
    shards = ParquetShards([path])
    assert shards.num_groups == 12
    assert [shards.content(number) for number in range(60)] == expected
    assert reads == list(range(12)), "once each"
    assert shards.content(0) == expected[0]
    assert len(reads) == 12, "all are in memory"
    assert shards.num_bytes < MAX_CACHED_BYTES
    monkeypatch.setattr("reptk.data.records.parquet_shards.MAX_CACHED_BYTES", 1)
    reads.clear()
    shards = ParquetShards([path])
    for number in (0, 1, 59, 0):
        assert shards.content(number) == expected[number]
    assert reads == [0, 11, 0], "the latest one alone is in memory"


def test_threads_read_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptk.data.records.parquet_shards.MAX_CACHED_BYTES", 2000)
    write_shard(tmp_path / "a.parquet", range(100), None, row_group_size=4)
    write_shard(tmp_path / "b.parquet", range(100, 200), None, row_group_size=9)
    data = folder(str(tmp_path), size=8)
    expected = fetch_all(data.train)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    fetched = torch.empty_like(expected)
    for pixels, numbers in prefetch(data.train.images, order.split(32), workers=4):
        fetched[numbers] = pixels
    assert torch.equal(fetched, expected)
    assert threading.active_count() < 8


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["full/train-0.parquet", "small/train-0.parquet"], "train in several folders .*full, .*small.*; name one"),
        (["full/0.parquet", "small/1.parquet"], "one data set in several folders"),
        (["validation-0.parquet", "test-0.parquet"], "no images to train on in files such as train-00000-of-00001"),
    ],
)
def test_folders_that_are_not_one_data_set(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        write_shard(tmp_path / name, range(4), [0, 1, 0, 1])
    with pytest.raises(DataError, match=message):
        folder(str(tmp_path), size=8)


def test_missing_shards_are_noted(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-00001-of-00014.parquet", range(4), [0, 1, 0, 1])
    assert "  note: 1 of 14 files of train is here" in folder(str(tmp_path), size=8).summary


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "t.parquet", range(30), None)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot read .*t\.parquet as Parquet: .* Download it again"):
        folder(str(tmp_path))
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(DataError, match="it is a Git LFS pointer"):
        folder(str(tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.png"], "label": [1]}), path)
    with pytest.raises(DataError, match=r"no column of images among path, label\. A table of paths is read if"):
        folder(str(tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"image": [{"bytes": b""}], "label": [7]}).slice(0, 0), path)
    with pytest.raises(DataError, match="has no rows"):
        folder(str(tmp_path))
    write_shard(path, range(2), [0, 7], class_names=["a", "b"])
    with pytest.raises(DataError, match="has the label 7, and names of 2 classes"):
        folder(str(tmp_path))


def test_images_next_to_parquet_files_are_what_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "meta.parquet", range(2), None)
    data = folder(str(write_images(tmp_path, cat=2, dog=2)), size=8)
    assert len(data.train) == 4
    assert "  note: not read, because there are image files: 1 .parquet file" in data.summary


def test_a_column_of_splits(tmp_path: Path) -> None:
    images = [encoded_image(number) for number in range(8)]
    splits = ["train", "train", "test", None, "test", "train", "unlabeled", "train"]
    columns = {"image": images, "label": list("abaabbab"), "split": splits}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet", row_group_size=3)
    data = folder(str(tmp_path / "t.parquet"), size=8)
    assert_holds(data.train, [0, 1, 5, 7, 6])
    assert data.train.labels.tolist() == [0, 1, 1, 1, -1]
    assert_holds(data.query, [2, 4])
    assert "  splits: train 4, test 2, unlabeled 1, in none 1" in data.summary
    assert "  not used in training: 1 in no split" in data.summary
    columns["split"] = ["en", "fr"] * 4
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    data = folder(str(tmp_path / "t.parquet"), size=8)
    assert "  note: split is not read as splits, since it holds en, fr" in data.summary
    assert len(data.train) == 8


def test_a_pattern_of_parquet_files(tmp_path: Path) -> None:
    root = write_hub_data_set(tmp_path)
    assert len(folder(str(root / "data" / "train-{00000..00001}-of-00002.parquet"), size=8, holdout=9).train) == 12
