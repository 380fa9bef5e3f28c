"""Tar shards in WebDataset's layout: which images are read, their splits and classes, the index, and what is refused."""

import errno
import gzip
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from image_files import fetch_all, same_data, write_images
from parquet_data_sets import encoded_image
from reptk.core import mapped_arrays
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data import Split, folder
from reptk.data.decoding.decode import decode
from reptk.data.fingerprint import differences, fingerprint
from reptk.data.loading.prefetch import prefetch
from reptk.data.records.tar_index import open_index
from reptk.data.records.tar_members import read_shard
from tar_data_sets import write_samples, write_tar

pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def assert_holds(split: Split, numbers: list[int]) -> None:
    expected = torch.stack([decode(encoded_image(number), 8) for number in numbers])
    assert torch.equal(fetch_all(split), expected)


def write_data_set(root: Path) -> Path:
    """Two shards for training (12 images) and one for validation (4)."""
    write_samples(root / "train-000000.tar", range(7), [0, 1, 2, 0, 1, 2, 0])
    write_samples(root / "train-000001.tar", range(7, 12), [1, 2, 0, 1, 2])
    write_samples(root / "val-000000.tar", range(20, 24), [0, 1, 2, 0])
    return root


def test_a_folder_of_shards(tmp_path: Path) -> None:
    root = write_data_set(tmp_path / "shards")
    data = folder(str(root), size=8)
    assert data.classes == ("0", "1", "2")
    assert_holds(data.train, list(range(12)))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert_holds(data.query, [20, 21, 22, 23])
    assert data.query.labels.tolist() == [0, 1, 2, 0]
    assert data.bank is data.train
    assert data.protocol == f"bank split train of {root}, queries split val of {root}"
    assert data.summary[:2] == (
        f"{root}: 16 images, 3 classes of 5 (1) to 6 (0) images, median 5",
        "  splits: train 12, val 4",
    )
    assert data.summary[2].startswith("  3 tar shards, 51.2 kB, index in ")
    assert data.summary[3] == "  labels from .cls files"
    assert data.train.images.path(0) is None
    assert [path.name for path in data.train.images.files()] == [
        "train-000000.tar",
        "train-000001.tar",
        "val-000000.tar",
    ]


@pytest.mark.parametrize("pattern", ["train-{000000..000001}.tar", "train-*.tar", "{train-000000,train-000001}.tar"])
def test_patterns_of_shards(tmp_path: Path, pattern: str) -> None:
    root = write_data_set(tmp_path / "shards")
    data = folder(str(root / pattern), size=8, holdout=2)
    assert len(data.train) + len(data.query) == 12
    assert data.protocol.startswith(f"split train of {root / pattern}: bank the training images, queries every 2th")
    both = folder(str(root / "{train,val}-*.tar"), size=8)
    assert same_data(both, folder(str(root), size=8))


def test_missing_shards_of_a_pattern_are_counted(tmp_path: Path) -> None:
    root = write_data_set(tmp_path)
    with pytest.raises(
        DataError, match=r"2 files that .* \(data\.root\) names do not exist: .*train-000002\.tar, .*000003"
    ):
        folder(str(root / "train-{000000..000003}.tar"))
    with pytest.raises(DataError, match="matches no file"):
        folder(str(root / "test-*.tar"))
    with pytest.raises(
        DataError, match=r"1 alternative of .* \(data\.root\) without a file: \S*/vall-\*\.tar; correct"
    ):
        folder(str(root / "{train,vall}-*.tar"))


@pytest.mark.parametrize("pattern", ["{train-000000,train-000001}.tar", "train-*.tar", "train-00000?.tar"])
def test_folders_whose_names_hold_brackets(tmp_path: Path, pattern: str) -> None:
    root = write_data_set(tmp_path / "set[1]")
    data = folder(str(root / pattern), size=8, holdout=2)
    assert len(data.train) + len(data.query) == 12


@pytest.mark.parametrize("cache", [False, True])
def test_a_folder_with_the_same_images_gives_the_same_data(tmp_path: Path, cache: bool) -> None:
    members = []
    for number in range(20):
        name = f"{'ab'[number // 10]}/{number:02}.png"
        members.append((name, encoded_image(number)))
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image(number))
    write_tar(tmp_path / "shards" / "0.tar", members[:7])
    write_tar(tmp_path / "shards" / "1.tar", members[7:])
    options = {"cache": str(tmp_path / "cache")} if cache else {}
    assert same_data(folder(str(tmp_path / "shards"), size=8, **options), folder(str(tmp_path / "files"), size=8))


def test_labels_in_json_and_in_folders(tmp_path: Path) -> None:
    samples = [("a", {"label": 3, "caption": "x"}), ("b", {"class_name": "dog"}), ("c", {"caption": "x"})]
    members = []
    for number, (key, values) in enumerate(samples):
        members += [(f"{key}.json", json.dumps(values).encode()), (f"{key}.jpg", encoded_image(number))]
    data = folder(str(write_tar(tmp_path / "json.tar", members)), size=8)
    assert data.classes == ("3", "dog")
    assert data.train.labels.tolist() == [0, 1, -1]
    names = [
        "./pets/train/cat/1.png",
        "./pets/train/cat/old/2.png",
        "./pets/train/dog/3.png",
        "./pets/train/unlabeled/4.png",
    ]
    data = folder(str(write_tar(tmp_path / "f.tar", [(name, encoded_image(0)) for name in names])), size=8)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, -1]
    with pytest.raises(DataError, match="has no labels; add files such as 000017"):
        folder(str(write_samples(tmp_path / "none.tar", range(3))), labels="folders")


def test_files_of_a_sample_may_lie_apart(tmp_path: Path) -> None:
    images = [(f"{number}.png", encoded_image(number)) for number in range(3)]
    classes = [(f"{number}.cls", str(number % 2).encode()) for number in range(3)]
    data = folder(str(write_tar(tmp_path / "t.tar", images + classes)), size=8)
    assert_holds(data.train, [0, 1, 2])
    assert data.train.labels.tolist() == [0, 1, 0]


def test_long_names_and_other_files(tmp_path: Path) -> None:
    name = f"{'f' * 90}/{'n' * 120}é.png"
    members = [("README", b"x"), (name, encoded_image(0)), ("._1.png", b"x"), ("1.left.png", encoded_image(1))]
    data = folder(str(write_tar(tmp_path / "t.tar", members)), size=8)
    assert_holds(data.train, [0, 1])
    assert "  not read: 1 file that belong to no image" in data.summary


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_archives(tar_format: int, tmp_path: Path) -> None:
    """With folders, names of 99 to 200 letters, and names that are not in ASCII."""
    names = [
        "cat/1.png",
        f"cat/{'n' * 91}.png",
        f"cat/{'n' * 92}.png",
        f"dog/{'d' * 100}/{'n' * 90}.png",
        "dog/\u00e9.png",
    ]
    with tarfile.open(tmp_path / "t.tar", "w", format=tar_format) as archive:
        for folder_name in ("cat", "dog"):
            member = tarfile.TarInfo(folder_name)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(encoded_image(number))
            archive.addfile(member, io.BytesIO(encoded_image(number)))
    data = folder(str(tmp_path / "t.tar"), size=8)
    assert_holds(data.train, [0, 1, 2, 3, 4])
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    index = open_index([tmp_path / "t.tar"])
    assert [index.key(number) for number in range(5)] == [name.removesuffix(".png") for name in names]


def test_the_index_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    root = write_data_set(tmp_path / "shards")
    first = folder(str(root), size=8)
    assert "indexing 3 shards" in capsys.readouterr().err
    monkeypatch.setattr(tarfile, "open", None)
    assert same_data(first, folder(str(root), size=8))
    assert capsys.readouterr().err == ""
    [index] = (tmp_path / "caches" / "reptk").iterdir()
    pixels = fetch_all(first.train)
    (index / "records.bin").unlink()
    (index / "records.bin").write_bytes(b"x")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert torch.equal(pixels, fetch_all(folder(str(root), size=8).train)), "a damaged index is built again"


def test_changed_shards_are_refused(tmp_path: Path) -> None:
    root = write_data_set(tmp_path / "shards")
    data = folder(str(root), size=8)
    before = fingerprint(data)
    write_samples(root / "train-000000.tar", range(30), [0] * 30)
    os.utime(root / "val-000000.tar", (1, 1))
    with pytest.raises(DataError) as caught:
        folder(str(root), size=8)
    message = str(caught.value)
    assert message.startswith("2 shards changed since they were indexed:\n  ")
    assert "train-000000.tar has 71,680 bytes, and had 20,480" in message
    assert "val-000000.tar was written again" in message
    [index] = (tmp_path / "caches" / "reptk").iterdir()
    assert f"delete {index}; the index is then built again" in message
    for file in index.iterdir():
        file.unlink()
    again = folder(str(root), size=8)
    assert len(again.train) == 35
    [changed, *_] = differences(before, fingerprint(again))
    assert changed.startswith("2 files changed: train-000000.tar, val-000000.tar")


def test_a_shard_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "t.tar", range(4))
    data = folder(str(path), size=8, on_error="stop")
    write_samples(path, range(30))
    with pytest.raises(DataError, match=r"t\.tar has changed since it was indexed: it has .* bytes, and had"):
        fetch_all(data.train)


def test_a_shard_that_is_written_over_while_it_is_open(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "t.tar", range(20))
    data = folder(str(path), size=8, on_error="skip")
    fetch_all(data.train)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\0" * size)
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"t\.tar has changed since it was indexed: it was written again"):
        fetch_all(data.train)
    assert data.train.images.unreadable(torch.arange(len(data.train))) == {}


@pytest.mark.parametrize("function", ["open", "pread"])
def test_a_disk_that_fails_for_a_moment_costs_no_image(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_samples(tmp_path / "t.tar", range(20))
    data = folder(str(path), size=8, on_error="skip", holdout=20)
    expected = fetch_all(folder(str(path), size=8, on_error="skip", holdout=20).train)

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("reptk.core.file_retries.WAITS_SECONDS", (0.0,))
        patched.setattr(os, function, fail)
        with pytest.raises(EnvironmentProblem, match=r"cannot read .*t\.tar, 0000: Input/output error.*Start again"):
            data.train.images.fetch(torch.arange(3))
    assert torch.equal(fetch_all(data.train), expected)
    assert data.train.images.unreadable(torch.arange(len(data.train))) == {}


def test_all_problems_of_all_shards_are_one_message(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    whole = write_samples(root / "00.tar", range(20)).read_bytes()
    (root / "01.tar").write_bytes(whole[: len(whole) // 2 + 700])
    (root / "02.tar.gz").write_bytes(gzip.compress(whole))
    (root / "03.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (root / "04.tar").write_bytes(b"no archive" * 100)
    (root / "05.tar").write_bytes(b"")
    write_tar(root / "06.tar", [("a.png", encoded_image(0)), ("b.png", encoded_image(1)), ("a.png", encoded_image(2))])
    write_tar(root / "07.tar", [("a.png", encoded_image(0)), ("a.jpg", encoded_image(1))])
    (root / "08.tar").write_bytes(whole.rstrip(b"\0")[:-4000].ljust(10240, b"\0")[: 512 * 6])
    (root / "09.tar").write_bytes(whole + whole)
    with pytest.raises(DataError) as caught:
        folder(str(root))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"10 shards ({root}/00.tar to 09.tar) cannot be indexed:"
    expected = [
        "01.tar is truncated",
        "02.tar.gz is compressed with gzip (gunzip): unpack it",
        "03.tar is a Git LFS pointer",
        "04.tar is no tar archive",
        "05.tar is empty",
        "06.tar has a.png twice: keys tell samples apart",
        "07.tar has several images of the sample a (.png, .jpg)",
        "08.tar is truncated",
        "09.tar has more files after the mark at its end",
    ]
    for line, text in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"  {root}/{text}"), line
    assert not list((tmp_path / "caches").rglob("records.bin")), "nothing half written"


def test_samples_without_an_image(tmp_path: Path) -> None:
    good = [(f"{number}.png", encoded_image(number)) for number in range(18)]
    lacking = [("x.cls", b"1"), ("y.json", b"{}"), ("z.png", b"")]
    path = write_tar(tmp_path / "t.tar", good + lacking)
    with pytest.warns(UserWarning, match=r"skipped 3 samples without an image: x in .*t\.tar, y in"):
        data = folder(str(path), size=8)
    assert len(data.train) == 18
    with pytest.raises(DataError, match="3 samples of 7 have no image: x in"):
        folder(str(write_tar(tmp_path / "few.tar", good[:4] + lacking)), size=8)
    with pytest.raises(DataError, match="hold no images; a sample has files of one name"):
        folder(str(write_tar(tmp_path / "none.tar", [("README", b"x")])), size=8)


def test_labels_that_cannot_be_read(tmp_path: Path) -> None:
    unreadable = {"a.cls": b"\xff\xfe", "b.json": b"[1", "c.json": b"[1]", "d.json": b'"' + b"x" * (1 << 20) + b'"'}
    members = [("x.png", encoded_image(9)), ("x.cls", b"cat"), ("y.png", encoded_image(8)), ("y.cls", b"dog")]
    for number, (name, content) in enumerate(unreadable.items()):
        members += [(name, content), (f"{name[0]}.png", encoded_image(number))]
    path = write_tar(tmp_path / "t.tar", members)
    data = folder(str(path), size=8)
    assert data.train.labels.tolist() == [0, 1, -1, -1, -1, -1]
    assert_holds(data.train, [9, 8, 0, 1, 2, 3])
    expected = (
        f"  note: 4 files of labels cannot be read: {path} has a.cls, which is not a number or a name in UTF-8; "
        f"{path} has b.json, which is not JSON; {path} has c.json, which is not a JSON object; ..."
    )
    assert expected in data.summary
    assert len(folder(str(path), size=8, labels="none").train) > 0
    for _ in range(2):  # from an index that is there, too
        with pytest.raises(
            DataError, match=r"data\.labels is 'folders', but 4 files of labels cannot be read: .*a\.cls"
        ):
            folder(str(path), size=8, labels="folders")


def header_of(name: str, size: bytes, kind: bytes) -> bytes:
    """Return a header of an archive that says the size in these 12 bytes."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [b"-0000001000\0", b"-0000000001\0", b"\xff" * 11 + b"\0", b"-0000002000\0"])
@pytest.mark.parametrize("kind", [b"0", b"5", b"x"])
def test_an_archive_that_sends_its_reader_back_is_refused(size: bytes, kind: bytes, tmp_path: Path) -> None:
    good = write_tar(tmp_path / "good.tar", [("a.png", b"x" * 512)]).read_bytes()
    (tmp_path / "t.tar").write_bytes(good[:1024] + header_of("b.png", size, kind) + good)
    with pytest.raises(DataError, match=r"t\.tar (is truncated or damaged|has a\.png twice)"):
        folder(str(tmp_path / "t.tar"))


def test_images_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    members = [(f"{number:02}.png", encoded_image(number)) for number in range(20)]
    members[3] = ("03.png", b"no image")
    data = folder(str(write_tar(tmp_path / "t.tar", members)), size=8)
    fetch_all(data.train)
    [(number, reason)] = data.train.images.unreadable(torch.arange(20)).items()
    assert number == 3
    assert reason.startswith(f"cannot read {tmp_path / 't.tar'}, 03 as an image")


def test_threads_read_from_more_shards_than_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptk.data.records.tar_shards.MAX_OPEN_SHARDS", 2)
    for shard in range(9):
        write_samples(tmp_path / f"{shard}.tar", range(10 * shard, 10 * shard + 10))
    data = folder(str(tmp_path), size=8)
    expected = fetch_all(data.train)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    fetched = torch.empty_like(expected)
    for pixels, numbers in prefetch(data.train.images, order.split(32), workers=4):
        fetched[numbers] = pixels
    assert torch.equal(fetched, expected)
    open_files = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert sum(path.parent == tmp_path and path.suffix == ".tar" for path in open_files) <= 2


def test_processes_that_start_together_build_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_data_set(tmp_path / "shards")
    read = []

    def count(path: Path, advance: object) -> object:
        read.append(path.name)
        return read_shard(path, advance)

    monkeypatch.setattr("reptk.data.records.tar_index_build.read_shard", count)
    with ThreadPoolExecutor(4) as pool:
        indices = list(pool.map(open_index, [sorted(root.iterdir())] * 4))
    assert sorted(read) == ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
    assert [index.key(15) for index in indices] == ["0023"] * 4


def test_arrays_that_are_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_data_set(tmp_path / "shards")
    expected = folder(str(root), size=8), folder(str(root / "train-*.tar"), size=8, holdout=3)
    monkeypatch.setattr(mapped_arrays, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(mapped_arrays, "CHUNK", 5)
    mapped = folder(str(root), size=8), folder(str(root / "train-*.tar"), size=8, holdout=3)
    for data, same in zip(mapped, expected, strict=True):
        assert isinstance(data.train.images._sources._records.numbers, np.memmap)
        assert same_data(data, same)
    assert same_data(folder(str(write_images(tmp_path / "f", a=9, b=9)), size=8), folder(str(tmp_path / "f"), size=8))
    assert not any(path.is_file() for path in (tmp_path / "caches" / "reptk").iterdir()), "the files have no names"


def test_a_full_disk_for_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its space on the disk, writing to a mapped array would end the process."""

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mapped_arrays, "MAX_BYTES_IN_MEMORY", 0)
    assert isinstance(mapped_arrays.zeros(9, np.int64), np.memmap)
    monkeypatch.setattr(os, "posix_fallocate", fail)
    array = mapped_arrays.zeros(9, np.int64)
    assert not isinstance(array, np.memmap)
    assert array.tolist() == [0] * 9


def test_no_folder_for_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_samples(tmp_path / "t.tar", range(4))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="XDG_CACHE_HOME"):
        folder(str(path), size=8)


def test_tar_and_parquet_files_together(tmp_path: Path) -> None:
    write_samples(tmp_path / "t.tar", range(4))
    (tmp_path / "t.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match="1 Parquet file and 1 tar shard; name those to read by a pattern"):
        folder(str(tmp_path))
    assert len(folder(str(tmp_path / "*.tar"), size=8).train) == 4
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match="names 1 file of 2 that are no shards"):
        folder(str(tmp_path / "*.t[ax]*"))
