"""reptk embed --out FOLDER on several ranks: the parts of one process."""

import contextlib
import io
import time
from pathlib import Path

import pytest
import torch
from rank_processes import run_on_ranks

import reptk
from embedding_inputs import run_command
from killed_processes import flip_bit, hidden_names
from parts_of_embeddings import embed_in_parts
from reptk.core import distributed
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings
from reptk.embeddings.encoding import embed_images

pytestmark = [pytest.mark.usefixtures("one_thread", "caches")]


def _embed_on_rank(rank: int, encoder: Path, data: Path, out: Path) -> None:
    embed_in_parts(encoder, data, out)
    for path in out.glob("part-*"):
        (out.parent / f"rank {rank} knows {path.name}").touch()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_writes_the_same_bits(
    world_size: int, photos: Path, encoder_run: Path, tmp_path: Path
) -> None:
    expected, _ = embed_in_parts(encoder_run, photos, tmp_path / "one")
    out = tmp_path / "several"
    embed_in_parts(encoder_run, photos, out)
    # One part is missing, and one damaged: another number of ranks completes what one process has begun.
    (out / "part-000000.safetensors").unlink()
    flip_bit(out / "part-000002.safetensors", -1)
    run_on_ranks(_embed_on_rank, world_size, encoder_run, photos, out)
    actual = Embeddings.load(out)
    assert torch.equal(actual.vectors[:], expected.vectors[:])
    assert list(actual.ids) == list(expected.ids)
    assert len(list(tmp_path.glob("rank*"))) == 3 * world_size
    assert hidden_names(out) == []


@pytest.mark.slow
def test_ranks_of_a_data_set_in_memory(encoder_run: Path, tmp_path: Path) -> None:
    data = {"name": "generated", "train": 48, "bank": 40, "query": 20, "classes": 4, "size": 32}
    run_on_ranks(_embed_in_memory, 2, encoder_run, data, tmp_path / "emb")
    expected = reptk.embed(encoder_run, data, batch_size=10)
    actual = Embeddings.load(tmp_path / "emb")
    assert torch.equal(actual.vectors[:], expected.vectors)
    assert list(actual.ids) == list(expected.ids)


def _embed_in_memory(rank: int, encoder: Path, data: dict, out: Path) -> None:
    reptk.embed(encoder, data, out=out, images_per_part=20, batch_size=10)


def test_several_processes_do_not_write_one_file(
    photos: Path, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["embed", encoder_run, "--data", photos, "--out", tmp_path / "e.safetensors"]
    assert "name a folder, e.g. --out emb" in run_command(command, capsys, exit_code=2)


def _embed_a_folder_that_differs(rank: int, encoder: Path, data: Path, out: Path) -> None:
    if rank == 1:
        data = data / "cats"
    with (
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(DataError, match=r"listed different images \(12, 4\)"),
    ):
        embed_in_parts(encoder, data, out)


@pytest.mark.slow
def test_ranks_that_see_other_images_do_not_begin(photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    run_on_ranks(_embed_a_folder_that_differs, 2, encoder_run, photo_folder, tmp_path / "emb")
    assert not list((tmp_path / "emb").glob("part*"))


def _embed_while_one_rank_takes_long(rank: int, encoder: Path, data: Path, out: Path) -> None:
    open_images = embed_images.open_images

    def open_slowly(*arguments: object) -> object:
        if rank == 0:
            time.sleep(3)
        return open_images(*arguments)

    embed_images.open_images = open_slowly
    distributed.set_timeout(1.0, torch.device("cpu"))
    embed_in_parts(encoder, data, out)


@pytest.mark.slow
def test_ranks_wait_for_the_one_that_lists_the_images(photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    run_on_ranks(_embed_while_one_rank_takes_long, 2, encoder_run, photo_folder, tmp_path / "emb")
    assert len(Embeddings.load(tmp_path / "emb")) == 12
