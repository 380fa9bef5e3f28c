"""reptk index INDEX --add EMBEDDINGS: what is new goes into an index that exists."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import draw_image, needs_faiss, run_command
from reptk.core.errors import DataError, UsageError
from reptk.embeddings import Embeddings, Index, add_to_index
from reptk.neighbors import ApproximateIndex

pytestmark = [pytest.mark.usefixtures("one_thread")]


def rows_of(embeddings: Embeddings, rows: range) -> Embeddings:
    picked = list(rows)
    return Embeddings(
        embeddings.vectors[picked], [embeddings.ids[row] for row in picked], metadata=dict(embeddings.metadata)
    )


@needs_faiss
@pytest.mark.parametrize("kind", ["Flat", "IVF8,Flat", "HNSW8", "IVF8,PQ4"])
@pytest.mark.filterwarnings("ignore:.* centroids badly")
def test_all_rows_are_found_and_nothing_is_trained_again(
    kind: str, clustered: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reptk.index(rows_of(clustered, range(400)), out=tmp_path / "e.index", kind=kind)
    monkeypatch.delattr(ApproximateIndex, "build")
    # Some of them are in the index already.
    addition = add_to_index(tmp_path / "e.index", rows_of(clustered, range(300, 640)))
    assert (addition.num_added, addition.num_changed) == (240, 0)
    index = Index.open(tmp_path / "e.index", verify=True)
    assert list(index.embeddings.ids) == list(clustered.ids)
    assert torch.equal(index.embeddings.vectors, clustered.vectors)
    assert (index.kind, len(index)) == (kind, 640)
    assert index.recall > 0.8
    similarities, rows = index.search(clustered.vectors[::40], 1)
    assert rows.flatten().tolist() == list(range(0, 640, 40))
    torch.testing.assert_close(similarities, torch.ones(16, 1))


@needs_faiss
def test_added_rows_are_those_of_an_index_of_all(clustered: Embeddings, tmp_path: Path) -> None:
    """Where all lists are visited, a search returns rows that were added as if they had been there before."""
    reptk.index(rows_of(clustered, range(600)), out=tmp_path / "e.index", kind="IVF4,Flat")
    added = add_to_index(tmp_path / "e.index", clustered).index
    exact = Index(clustered)
    for actual, expected in zip(added.search(clustered.vectors, 5), exact.search(clustered.vectors, 5), strict=True):
        assert torch.equal(actual, expected)


def test_photos_that_are_new(photos: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    emb, index = tmp_path / "emb", tmp_path / "photos.index"
    embed = ["embed", encoder_run, "--data", photos, "--out", emb, "--images-per-part", 5]
    run_command(embed, capsys)
    run_command(["index", emb, "--out", index], capsys)
    before = (index / "manifest.json").read_bytes()
    assert "0 embeddings added" in run_command(["index", index, "--add", emb], capsys)
    assert (index / "manifest.json").read_bytes() == before
    (photos / "ants").mkdir()  # a class before all others
    for number in range(3):
        draw_image(90 + number).save(photos / "ants" / f"{number}.png")
    run_command(embed, capsys)
    printed = run_command(["index", index, "--add", emb], capsys)
    assert "3 embeddings added" in printed
    assert "photos.index: 15 embeddings of 64 values, Flat (exact)" in printed
    opened = Index.open(index, verify=True).embeddings
    full = reptk.embed(encoder_run, photos)
    assert sorted(opened.ids) == sorted(full.ids)
    for row in range(15):
        other = full.row_of(opened.ids[row])
        assert opened.class_of(row) == full.class_of(other)
        torch.testing.assert_close(opened.vectors[row], full.vectors[other], atol=1e-6, rtol=0)
        assert opened.file(row).is_file()
    printed = run_command(["search", index, photos / "ants" / "0.png", "--k", 1, "--no-html"], capsys)
    assert "(the same file)" in printed


def test_a_changed_image_keeps_its_vector_with_a_warning(clustered: Embeddings, tmp_path: Path) -> None:
    reptk.index(rows_of(clustered, range(20)), out=tmp_path / "e.index")
    vectors = clustered.vectors.clone()
    vectors[3] = -vectors[3]
    with pytest.warns(UserWarning, match=r"1 image of these embeddings has another vector than in .*--force"):
        addition = add_to_index(tmp_path / "e.index", rows_of(replace(clustered, vectors=vectors), range(21)))
    assert (addition.num_added, addition.num_changed) == (1, 1)
    assert torch.equal(addition.index.embeddings.vectors, clustered.vectors[:21])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"encoder": {"sha256": "b"}}, "embedded by different encoders"),
        (
            {"encoder": {"sha256": "a"}, "preprocessing": {"crop": 0.5}},
            "another way than the index: crop was 1, now 0.5",
        ),
        ({"encoder": {"sha256": "a"}, "root": "/there"}, "are below /here, those of these embeddings below /there"),
    ],
)
def test_other_embeddings_are_refused(about: dict, message: str, clustered: Embeddings, tmp_path: Path) -> None:
    old_about = {"encoder": {"sha256": "a"}, "preprocessing": {"crop": 1}, "root": "/here"}
    reptk.index(replace(clustered, metadata=old_about, paths=clustered.ids), out=tmp_path / "e.index")
    before = (tmp_path / "e.index" / "manifest.json").read_bytes()
    with pytest.raises(DataError, match=message):
        add_to_index(tmp_path / "e.index", replace(clustered, metadata={"root": "/here", **about}, paths=clustered.ids))
    assert (tmp_path / "e.index" / "manifest.json").read_bytes() == before


@needs_faiss
def test_an_index_of_somebody_else_is_read_on_request_only(
    clustered: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reptk.index(rows_of(clustered, range(600)), out=tmp_path / "e.index", kind="IVF4,Flat")
    clustered.save(tmp_path / "e.safetensors")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another home"))
    command = ["index", tmp_path / "e.index", "--add", tmp_path / "e.safetensors"]
    assert "was not built by you on this machine" in run_command(command, capsys, exit_code=3)
    assert "40 embeddings added" in run_command([*command, "--trust"], capsys)


@needs_faiss
@pytest.mark.filterwarnings("ignore:.* centroids badly")
def test_lists_on_the_disk_cannot_grow(clustered: Embeddings, tmp_path: Path) -> None:
    reptk.index(rows_of(clustered, range(600)), out=tmp_path / "e.index", kind="IVF4,Flat", on_disk=True)
    with pytest.raises(UsageError, match=r"are on the disk, and nothing can be added .* --on-disk --force"):
        add_to_index(tmp_path / "e.index", clustered)


def test_options_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "and where to?" in run_command(["index", "e.safetensors"], capsys, exit_code=2)
    assert "do not go with --add" in run_command(["index", "i", "--add", "e", "--out", "o"], capsys, exit_code=2)
    assert "is no index" in run_command(["index", tmp_path, "--add", "e"], capsys, exit_code=3)


@needs_faiss
def test_a_graph_that_cannot_grow_says_so(clustered: Embeddings) -> None:
    index = ApproximateIndex.build(clustered.vectors, "NSG8")
    with pytest.raises(UsageError, match="FAISS cannot add rows to 'NSG8'"):
        index.add(clustered.vectors[:3])


def test_two_processes_do_not_add_at_the_same_time(clustered: Embeddings, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "e.index"
    reptk.index(rows_of(clustered, range(20)), out=folder)
    with (folder / "manifest.json").open() as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process adds to"):
            add_to_index(folder, rows_of(clustered, range(30)))
    assert len(add_to_index(folder, rows_of(clustered, range(30))).index) == 30


def test_an_index_that_was_replaced_before_the_lock_is_not_added_to(
    clustered: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "e.index"
    reptk.index(rows_of(clustered, range(20)), out=folder)

    def try_lock(descriptor: int) -> bool:
        monkeypatch.undo()
        add_to_index(folder, rows_of(clustered, range(25)))
        return True

    # The function has the name of its module.
    monkeypatch.setattr(import_module("reptk.embeddings.retrieval.add_to_index"), "try_lock", try_lock)
    with pytest.raises(UsageError, match="another process adds to"):
        add_to_index(folder, rows_of(clustered, range(20, 30)))
    assert len(Index.open(folder)) == 25
