"""Where images come from: memory, tables, folders, data sets."""

import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import reptk
from drawn_data_sets import draw_square, write_parquet_data_set, write_tar_shards
from embedding_inputs import draw_image
from lance_data_sets import write_lance
from reptk import Encoder
from reptk.core import rng
from reptk.core.errors import DataError, ReptkError
from reptk.data import Data, InMemory, Split
from reptk.data.decoding.resize import WHOLE_SQUARES
from reptk.data.records.tar_shards import TarShards
from reptk.embeddings.encoding.image_sources import distinct_splits, from_table
from reptk.embeddings.viewing.embedding_images import EmbeddingImages
from tar_data_sets import write_tar

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_images_that_splits_share_are_embedded_once() -> None:
    images = torch.randint(0, 256, (9, 3, 4, 4), generator=rng.generator("splits"), dtype=torch.uint8)
    train = Split(InMemory(images[:6]), torch.arange(6))
    query = Split(InMemory(images[6:]), torch.arange(3))
    part_of_train = Split(InMemory(images[2:5].clone()), torch.arange(3))
    partly_new = Split(InMemory(images[4:8]), torch.arange(4))
    for bank, expected in (
        (train, ["train", "query"]),
        (part_of_train, ["train", "query"]),
        (partly_new, ["train", "query", "bank"]),
        (None, ["train", "query"]),
    ):
        assert list(distinct_splits(Data(train, bank, query, (), ""))) == expected


def test_images_in_memory(encoder_run: Path) -> None:
    images = torch.stack([torch.from_numpy(np.array(draw_image(number))).permute(2, 0, 1) for number in range(3)])
    embeddings = reptk.embed(Encoder.from_run(encoder_run), images)
    assert torch.allclose(embeddings.vectors, Encoder.from_run(encoder_run).embed(images), atol=1e-6)
    with pytest.raises(DataError, match="uint8"):
        reptk.embed(encoder_run, images.float())


TABLES = {
    "positions": 'b.png,cat,x\n"c,ü.png",dog,y\n',
    "headings": 'id,label,path,more\nx,cat,b.png,1\ny,dog,"c,ü.png",2\n',
    "byte order mark": '\ufeffpath,label,id\r\nb.png,cat,x\r\n"c,ü.png",dog,y\r\n\r\n',
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_a_table_of_images(text: str, encoder_run: Path, tmp_path: Path) -> None:
    for name in ("b.png", "c,ü.png"):
        draw_image(len(name)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    embeddings = reptk.embed(encoder_run, tmp_path / "t.csv")
    assert list(embeddings.ids) == ["x", "y"]
    assert list(embeddings.paths) == ["b.png", "c,ü.png"]
    assert embeddings.classes == ("cat", "dog")
    assert embeddings.file(1) == tmp_path / "c,ü.png"


def test_classes_that_are_numbers_are_ordered_by_value(encoder_run: Path, tmp_path: Path) -> None:
    for number in range(3):
        draw_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text(f"0.png,10\n{tmp_path}/1.png,\n2.png,9\n")
    embeddings = reptk.embed(encoder_run, tmp_path / "t.csv")
    assert embeddings.classes == ("9", "10")
    assert embeddings.labels.tolist() == [1, -1, 0]
    assert list(embeddings.ids) == ["0.png", f"{tmp_path}/1.png", "2.png"]
    assert embeddings.file(1) == tmp_path / "1.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("path,label\n", "lists no images"),
        ("a.png,b,c,d\n", "more than 3 columns"),
        (",cat\n", "without a path, the first on line 1"),
        ("a.png,c,x\nb.png,c,x\n", "the id 'x' twice"),
        ('a.png,"open\n', "as CSV"),
        ("a.png\nb.png\n", "none of 2 images can be embedded"),
    ],
)
def test_a_wrong_table_is_refused(text: str, message: str, encoder_run: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        reptk.embed(encoder_run, tmp_path / "t.csv")


def write_drawings(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(number).save(root / name)
    return root


def test_every_image_of_a_folder_with_splits_is_embedded(encoder_run: Path, tmp_path: Path) -> None:
    names = [f"{split}/{number}.png" for split in ("train", "val") for number in range(4)]
    embeddings = reptk.embed(encoder_run, write_drawings(tmp_path, *names))
    assert list(embeddings.paths) == names
    assert embeddings.classes == ()


@pytest.mark.parametrize("splits", [("Train", "Test"), ("training", "testing"), ("TRAIN", "VAL")])
def test_split_folders_are_not_classes(splits: tuple[str, str], encoder_run: Path, tmp_path: Path) -> None:
    names = [f"{split}/{name}/0.png" for split in splits for name in "ab"]
    embeddings = reptk.embed(encoder_run, write_drawings(tmp_path, *names))
    assert embeddings.classes == ("a", "b")
    assert dict(zip(embeddings.paths, embeddings.labels.tolist(), strict=True)) == dict(
        zip(names, [0, 1, 0, 1], strict=True)
    )


def test_a_class_of_the_test_images_alone_is_embedded(encoder_run: Path, tmp_path: Path) -> None:
    write_drawings(tmp_path, "train/a/0.png", "train/b/0.png", "test/c/0.png")
    assert reptk.embed(encoder_run, tmp_path).classes == ("a", "b", "c")


def test_a_class_named_train_is_embedded_as_a_class(encoder_run: Path, tmp_path: Path) -> None:
    write_drawings(tmp_path, *(f"{name}/{number}.png" for name in ("bus", "train", "test") for number in range(2)))
    embeddings = reptk.embed(encoder_run, tmp_path)
    assert embeddings.classes == ("bus", "test", "train")
    assert len(embeddings) == 6


def test_a_split_of_a_folder_can_be_embedded_alone(encoder_run: Path, tmp_path: Path) -> None:
    write_drawings(tmp_path, *(f"{split}/{name}/0.png" for split in ("Train", "Test") for name in "ab"))
    embeddings = reptk.embed(encoder_run, {"name": "folder", "root": str(tmp_path)}, split="query")
    assert list(embeddings.paths) == ["Test/a/0.png", "Test/b/0.png"]


def test_a_damaged_table_never_ends_in_a_traceback(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    good = "path;label;id\na.png;cät;1\nb.png;dög;2\n".encode("cp1252")
    num_read = 0
    for seed in range(100):
        draw = random.Random(seed)
        content = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        table.write_bytes(content)
        with suppress(ReptkError):
            source = from_table(table, size_px=8, jpeg="pillow", preprocessing=WHOLE_SQUARES)
            assert len(source) == len(source.groups[0].ids)
            num_read += 1
    assert 10 < num_read < 90


SPLIT_ROWS = "path,label,split\n0.png,a,Train\n1.png,b,val\n2.png,b,TEST\n3.png,a,extra\n4.png,,\n"


def write_split_table(folder: Path) -> Path:
    for number in range(5):
        draw_image(number).save(folder / f"{number}.png")
    (folder / "t.csv").write_text(SPLIT_ROWS)
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("split", "expected"),
    [("test", ["2.png"]), ("TEST", ["2.png"]), ("train", ["0.png"]), ("validation", ["1.png"]), ("extra", ["3.png"])],
)
def test_a_split_of_a_table(split: str, expected: list[str], encoder_run: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    embeddings = reptk.embed(encoder_run, write_split_table(tmp_path), split=split, report=lines.append)
    assert lines[-1] == f"  embedded: 1 image of the split {split}"
    assert list(embeddings.ids) == expected
    assert embeddings.classes == ("a", "b")
    everything = reptk.embed(encoder_run, tmp_path / "t.csv")
    row = list(everything.ids).index(expected[0])
    # Of another batch, so that values differ by rounding.
    assert torch.allclose(embeddings.vectors[0], everything.vectors[row], atol=1e-6)
    assert embeddings.labels[0] == everything.labels[row]


def test_a_split_that_a_table_lacks(encoder_run: Path, tmp_path: Path) -> None:
    table = write_split_table(tmp_path)
    splits = r"TEST \(1 image\), Train \(1 image\), extra \(1 image\), val \(1 image\)"
    with pytest.raises(DataError, match=f"has no split 'tset'; its splits are {splits}"):
        reptk.embed(encoder_run, table, split="tset")
    table.write_text("0.png\n1.png\n")
    with pytest.raises(DataError, match="has no splits, so there is no 'test'; leave --split out"):
        reptk.embed(encoder_run, table, split="test")


def test_a_split_of_a_folder(encoder_run: Path, tmp_path: Path) -> None:
    for number, name in enumerate(["train/a/0.png", "train/b/1.png", "Testing/b/2.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(number).save(tmp_path / name)
    embeddings = reptk.embed(encoder_run, tmp_path, split="test")
    assert list(embeddings.ids) == ["Testing/b/2.png"]
    assert embeddings.class_of(0) == "b"
    with pytest.raises(DataError, match=r"has no split 'dev'; its splits are Testing \(1 image\), train \(2 images\)"):
        reptk.embed(encoder_run, tmp_path, split="dev")


def test_the_splits_of_training_on_a_table(encoder_run: Path, tmp_path: Path) -> None:
    for number in range(10):
        draw_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text("".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(10)))
    assert list(reptk.embed(encoder_run, tmp_path / "t.csv", split="query").ids) == ["8.png", "9.png"]
    assert list(reptk.embed(encoder_run, tmp_path / "t.csv", split="train").ids) == [f"{n}.png" for n in range(8)]


def test_parquet_files_that_hold_images(encoder_run: Path, tmp_path: Path) -> None:
    root = write_parquet_data_set(tmp_path)
    embeddings = reptk.embed(encoder_run, root)
    assert list(embeddings.ids) == [
        *(f"test-00000-of-00001/{row}" for row in range(2)),
        *(f"train-00000-of-00001/{row}" for row in range(8)),
        *(f"validation-00000-of-00001/{row}" for row in range(3)),
    ]
    assert embeddings.paths is None
    assert embeddings.classes == ("0", "1")
    assert embeddings.labels.tolist() == [-1, -1, *([0, 1] * 4), 1, 0, 1]
    for row, number in enumerate([11, 12, *range(11)]):
        (tmp_path / "files").mkdir(exist_ok=True)
        draw_square(number).save(tmp_path / "files" / f"{row:02}.png")
    expected = reptk.embed(encoder_run, tmp_path / "files")
    assert torch.equal(embeddings.vectors, expected.vectors)
    assert embeddings.about["preprocessing"] == expected.about["preprocessing"]


def test_tar_shards(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    root = write_tar_shards(tmp_path / "shards")
    embeddings = reptk.embed(encoder_run, f"{root}/*.tar")
    assert list(embeddings.ids) == [
        *(f"test-000000/00{sample}" for sample in range(2)),
        *(f"train-{shard:06}/00{sample}" for shard in range(2) for sample in range(3)),
    ]
    assert embeddings.classes == ("a", "b")
    assert embeddings.labels.tolist() == [0, 1] * 4
    numbers = [6, 7, *range(6)]
    (tmp_path / "files").mkdir()
    for row, number in enumerate(numbers):
        draw_square(number).save(tmp_path / "files" / f"{row:02}.png")
    assert torch.equal(embeddings.vectors, reptk.embed(encoder_run, tmp_path / "files").vectors)
    test = reptk.embed(encoder_run, root, split="test")
    assert list(test.ids) == ["test-000000/000", "test-000000/001"]
    images = EmbeddingImages(embeddings)
    for row in range(8):
        assert images.data_uri(row) == images.data_uri_of_file(tmp_path / "files" / f"{row:02}.png")


def test_ids_of_tar_shards_are_not_searched_for_every_thumbnail(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    root = write_tar_shards(tmp_path / "shards")
    write_tar(root / "test-000000.tar", [("999.png", b"no image")], "a")
    embeddings = reptk.embed(encoder_run, root)
    assert len(embeddings) == 8
    find = TarShards.find
    searched: list[str] = []

    def count(self: TarShards, image_id: str) -> int | None:
        searched.append(image_id)
        return find(self, image_id)

    monkeypatch.setattr(TarShards, "find", count)
    images = EmbeddingImages(embeddings)
    assert len({images.data_uri(row) for row in range(8)} - {""}) == 8
    assert searched == ["train-000000/000"], "the first after the image that was skipped"


@pytest.mark.parametrize("package", ["lance", "datasets"])
def test_tables_on_disk(package: str, encoder_run: Path, tmp_path: Path) -> None:
    module = pytest.importorskip(package, reason=f"{package} is not installed")
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "files").mkdir()
    contents = []
    for number in range(6):
        draw_square(number).save(tmp_path / "files" / f"{number}.png")
        contents.append((tmp_path / "files" / f"{number}.png").read_bytes())
    splits = ["train"] * 4 + ["test"] * 2
    if package == "lance":
        root = tmp_path / "photos.lance"
        write_lance(root, pyarrow.table({"image": contents, "label": list("abcabc"), "split": splits}))
        expected_ids, name = [f"photos/{row}" for row in range(6)], f"{root}@1"
    else:
        root = tmp_path / "photos"
        module.disable_progress_bars()
        columns = {"image": contents, "label": list("abcabc"), "split": splits}
        module.Dataset.from_dict(columns).save_to_disk(root)
        expected_ids, name = [f"photos/{row}" for row in range(6)], str(root)
    embeddings = reptk.embed(encoder_run, name)
    assert sorted(embeddings.ids) == expected_ids
    assert embeddings.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(embeddings.vectors, reptk.embed(encoder_run, tmp_path / "files").vectors)
    assert list(reptk.embed(encoder_run, name, split="test").ids) == expected_ids[4:]
    images = EmbeddingImages(embeddings)
    assert images.data_uri(5) == images.data_uri_of_file(tmp_path / "files" / "5.png")


def test_splits_of_parquet_files(encoder_run: Path, tmp_path: Path) -> None:
    root = write_parquet_data_set(tmp_path)
    everything = reptk.embed(encoder_run, root)
    test = reptk.embed(encoder_run, root, split="test")
    assert list(test.ids) == ["test-00000-of-00001/0", "test-00000-of-00001/1"]
    assert torch.allclose(test.vectors, everything.vectors[:2], atol=1e-6)
    query = reptk.embed(encoder_run, root, split="query")
    assert list(query.ids) == ["query/0", "query/1", "query/2"]
    assert torch.allclose(query.vectors, everything.vectors[-3:], atol=1e-6)
    with pytest.raises(DataError, match=r"has no split 'dev2'; its splits are test-?.* \(2 images\), train"):
        reptk.embed(encoder_run, root, split="dev2")


def test_pages_show_the_images_of_parquet_files(encoder_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    embeddings = reptk.embed(encoder_run, write_parquet_data_set(folder))
    images = EmbeddingImages(embeddings)
    draw_square(11).save(tmp_path / "first.png")
    assert images.data_uri(0) == images.data_uri_of_file(tmp_path / "first.png")
    assert len({images.data_uri(row) for row in range(13)}) == 13
    (folder / "test-00000-of-00001.parquet").unlink()
    assert EmbeddingImages(embeddings).data_uri(0) == ""
