"""reptk embed --out FOLDER: parts of shards and of tables, which change as a whole."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import reptk
from drawn_data_sets import write_parquet_data_set
from embedding_inputs import draw_image, run_command
from image_files import encode_png
from lance_data_sets import write_lance
from parts_of_embeddings import embed_in_parts, part_inodes, write_tars
from reptk.core.errors import DataError
from reptk.core.user_folders import cache_folder
from reptk.data.records.parquet_shards import ParquetShards
from reptk.data.records.tar_shards import TarShards
from reptk.embeddings import Embedder, Embeddings
from reptk.embeddings.files import parts_manifest
from tar_data_sets import write_tar

pytestmark = [pytest.mark.usefixtures("one_thread", "caches")]


def test_a_shard_is_a_part(encoder_run: Path, tmp_path: Path, encoded: list[int]) -> None:
    (tmp_path / "data").mkdir()
    root = write_parquet_data_set(tmp_path / "data")
    expected = reptk.embed(encoder_run, root, batch_size=3)
    encoded.clear()
    actual, printed = embed_in_parts(encoder_run, root, tmp_path / "emb", batch_size=8, images_per_part=8)
    assert "3 parts to write" in printed
    assert list(actual.ids) == list(expected.ids)
    assert torch.equal(actual.labels, expected.labels)
    torch.testing.assert_close(actual.vectors[:], expected.vectors, atol=1e-6, rtol=0)
    shards = [part["shard"]["name"] for part in json.loads((tmp_path / "emb" / "manifest.json").read_text())["parts"]]
    assert shards == [f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    # One shard is new, one has changed, and one is gone.
    shutil.copy(root / "train-00000-of-00001.parquet", root / "dev-00000-of-00001.parquet")
    os.utime(root / "validation-00000-of-00001.parquet", (1, 1))
    (root / "test-00000-of-00001.parquet").unlink()
    encoded.clear()
    actual, printed = embed_in_parts(encoder_run, root, tmp_path / "emb", batch_size=8, images_per_part=8)
    assert (
        "1 part of 8 embeddings verified, 2 parts to write, 11 images to embed; 1 shard changed, 1 removed" in printed
    )
    assert sorted(encoded) == [3, 8]
    again = reptk.embed(encoder_run, root)
    assert sorted(actual.ids) == sorted(again.ids)


def _touch(shard: Path) -> None:
    """Change the time of modification of a tar shard, and let it be indexed again."""
    os.utime(shard, (1, 1))
    shutil.rmtree(cache_folder())


def test_a_part_for_each_tar_of_a_pattern(
    encoder_run: Path, tmp_path: Path, encoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    write_tars(shards, range(3))
    command = ["embed", encoder_run, "--data", f"{shards}/*/*.tar", "--out", emb, "--batch-size", 4, "--workers", 0]
    assert "3 parts to write, 12 images to embed" in run_command(command, capsys)
    expected = reptk.embed(encoder_run, f"{shards}/*/*.tar", batch_size=4)
    actual = Embeddings.load(emb)
    assert list(actual.ids) == list(expected.ids)
    assert torch.equal(actual.vectors[:], expected.vectors)
    assert torch.equal(actual.labels, expected.labels)
    encoded.clear()
    write_tars(shards, range(3, 5))
    assert "3 parts of 12 embeddings verified, 2 parts to write, 8 images" in run_command(command, capsys)
    # The same tars as a folder, and in another place.
    shards.rename(tmp_path / "moved")
    command[3] = tmp_path / "moved"
    assert "5 parts of 20 embeddings verified, 0 parts to write" in run_command(command, capsys)
    assert encoded == [4, 4]


def test_a_large_shard_is_divided(encoder_run: Path, tmp_path: Path, encoded: list[int]) -> None:
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    write_tars(shards, range(2))
    actual, printed = embed_in_parts(encoder_run, shards, emb, images_per_part=3)
    assert "4 parts to write, 8 images to embed" in printed
    expected = reptk.embed(encoder_run, shards)
    assert list(actual.ids) == list(expected.ids)
    torch.testing.assert_close(actual.vectors[:], expected.vectors, atol=1e-6, rtol=0)
    records = json.loads((emb / "manifest.json").read_text())["parts"]
    assert [(record["shard"]["name"], record["shard"]["rows"]) for record in records] == [
        ("a/000.tar", [0, 2]),
        ("a/000.tar", [2, 4]),
        ("b/000.tar", [0, 2]),
        ("b/000.tar", [2, 4]),
    ]
    # Parts that are there stay, wherever another number would divide the shards.
    (emb / "part-000001.safetensors").unlink()
    encoded.clear()
    _, printed = embed_in_parts(encoder_run, shards, emb, images_per_part=1)
    assert "3 parts of 6 embeddings verified, 2 parts to write, 2 images to embed" in printed
    assert sum(encoded) == 2
    _touch(shards / "b" / "000.tar")
    actual, printed = embed_in_parts(encoder_run, shards, emb)
    assert "3 parts of 4 embeddings verified, 1 part to write, 4 images to embed; 1 shard changed" in printed
    assert sorted(actual.ids) == sorted(expected.ids)
    assert len(part_inodes(emb)) == 4


def test_an_interruption_leaves_no_parts_of_shards_as_they_were(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    write_tars(shards, range(2))
    embed_in_parts(encoder_run, shards, emb)
    _touch(shards / "a" / "000.tar")
    with monkeypatch.context() as patch:
        patch.setattr(parts_manifest, "write_manifest", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed_in_parts(encoder_run, shards, emb)
    assert len(part_inodes(emb)) == 3
    _, printed = embed_in_parts(encoder_run, shards, emb)
    assert "2 parts of 8 embeddings verified, 0 parts to write" in printed
    assert sorted(part_inodes(emb)) == ["part-000001.safetensors", "part-000002.safetensors"]


def test_a_shard_that_changes_while_it_is_read_is_no_complete_part(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    write_tars(shards, range(1))
    write_tar(shards / "a" / "000.tar", [("0-9.png", b"no image")], "a")
    embed_images = Embedder.embed_images

    def change(self: Embedder, images: torch.Tensor) -> torch.Tensor:
        os.utime(shards / "a" / "000.tar", (1, 1))
        return embed_images(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed_images", change)
        with pytest.raises(DataError, match=r"000\.tar has changed since it was listed.*the same command goes on"):
            embed_in_parts(encoder_run, shards, emb)
    assert part_inodes(emb) == {}
    _touch(shards / "a" / "000.tar")
    embeddings, _ = embed_in_parts(encoder_run, shards, emb)
    assert len(embeddings) == 4


def test_images_are_not_skipped_because_a_disk_does_not_answer(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_parquet_data_set(tmp_path)
    cause = OSError(errno.EIO, "Input/output error")

    def fail(self: ParquetShards, group: int) -> None:
        raise DataError("cannot read this group") from cause

    monkeypatch.setattr(ParquetShards, "_read_group", fail)
    with pytest.raises(DataError, match="cannot read this group"):
        embed_in_parts(encoder_run, root, tmp_path / "emb")
    cause = OSError("Corrupt snappy compressed data.")  # as pyarrow says it
    with pytest.raises(DataError, match="none of 13 images can be embedded"):
        embed_in_parts(encoder_run, root, tmp_path / "emb")


def test_ids_of_images_in_shards_are_read_with_the_images_alone(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    write_tars(shards, range(2))
    image_id = TarShards.image_id
    numbers: list[int] = []

    def count(self: TarShards, number: int) -> str:
        numbers.append(number)
        return image_id(self, number)

    monkeypatch.setattr(TarShards, "image_id", count)
    embed_in_parts(encoder_run, shards, emb)
    assert sorted(numbers) == list(range(8))
    numbers.clear()
    embed_in_parts(encoder_run, shards, emb)
    assert numbers == []


def test_a_table_of_lance_that_has_changed(encoder_run: Path, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    pyarrow = pytest.importorskip("pyarrow")
    contents = [encode_png(draw_image(number)) for number in range(12)]
    path, emb = tmp_path / "photos.lance", tmp_path / "emb"
    table = pyarrow.table({"image": contents, "number": list(range(12))})
    write_lance(path, table)

    def assert_is_up_to_date() -> None:
        actual, _ = embed_in_parts(encoder_run, path, emb)
        expected = reptk.embed(encoder_run, path)
        assert sorted(actual.ids) == sorted(expected.ids)
        order = [expected.row_of(image_id) for image_id in actual.ids]
        torch.testing.assert_close(actual.vectors[:], expected.vectors[order], atol=1e-6, rtol=0)
        classes = [actual.class_of(row) for row in range(len(actual))]
        assert classes == [expected.class_of(row) for row in order]

    assert_is_up_to_date()
    _, printed = embed_in_parts(encoder_run, path, emb)
    assert "3 parts of 12 embeddings verified, 0 parts to write" in printed
    # Rows of the first fragment, which shifts the numbers of all others.
    lance.dataset(str(path)).delete("number < 2")
    assert_is_up_to_date()
    lance.dataset(str(path)).add_columns({"label": "cast(number % 2 as string)"})
    assert_is_up_to_date()
    lance.dataset(str(path), version=1).restore()
    assert_is_up_to_date()


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
