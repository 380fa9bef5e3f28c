"""reptk embed, as a command."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import draw_image, run_command
from reptk.embeddings import Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_the_command_equals_the_function(
    photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "e.safetensors"
    printed = run_command(["embed", encoder_run, "--data", photo_folder, "--out", out, "--half"], capsys)
    assert "12 embeddings of" in printed
    by_command = Embeddings.load(out)
    by_function = reptk.embed(encoder_run, photo_folder, half=True)
    assert torch.equal(by_command.vectors, by_function.vectors)
    for metadata in (by_command.metadata, by_function.metadata):
        del metadata["created"], metadata["seconds"]
    assert by_command.metadata == by_function.metadata


def test_commands_of_the_next_step_can_be_copied(
    photo_folder: Path,
    encoder_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run_command(["embed", encoder_run, "--data", photo_folder, "--out", "my photos.safetensors"], capsys)
    assert "reptk index 'my photos.safetensors' --out 'my photos.index'" in printed
    printed = run_command(["index", "my photos.safetensors", "--out", "my photos.index"], capsys)
    assert "reptk search 'my photos.index' query.jpg" in printed


def test_the_runs_own_data_by_default(encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "own.safetensors"
    run_command(["embed", encoder_run, "--split", "query", "--out", out], capsys)
    assert len(Embeddings.load(out)) == 97


def test_an_override_after_data_names_the_data_set(
    encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "other.safetensors"
    run_command(["embed", encoder_run, "--data", "data.name=digits", "--split", "query", "--out", out], capsys)
    assert len(Embeddings.load(out)) == 797


def test_unreadable_images_are_skipped(
    photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mixed, out = tmp_path / "mixed", tmp_path / "e.safetensors"
    shutil.copytree(photo_folder, mixed)
    for number in range(7):
        (mixed / "cats" / f"05-{number}.jpg").write_bytes(b"no image")
    arguments = ["embed", encoder_run, "--data", mixed, "--out", out]
    printed = run_command(arguments, capsys)
    assert "skipped: 7, because" in printed
    assert "and 2 more" in printed
    assert "05-0.jpg" in printed
    embeddings = Embeddings.load(out)
    expected = reptk.embed(encoder_run, photo_folder)
    assert torch.allclose(embeddings.vectors, expected.vectors, atol=1e-5)
    assert list(embeddings.ids) == list(expected.ids)
    assert embeddings.labels.tolist() == expected.labels.tolist()
    assert embeddings.metadata["skipped"]["count"] == 7
    assert "05-0.jpg" in run_command([*arguments, "--strict", "--force"], capsys, exit_code=3)
    assert len(Embeddings.load(out)) == 12, "the old file is still complete"


def test_the_command_says_what_is_read_before_it_starts(
    encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number, name in enumerate(["Train/a/0.png", "Train/b/0.png", "Test/a/0.png"]):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(number).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "Test" / "page.psd").write_bytes(b"x")
    printed = run_command(
        ["embed", encoder_run, "--data", tmp_path / "photos", "--out", tmp_path / "e.safetensors"], capsys
    )
    assert printed.splitlines()[:3] == [
        f"{tmp_path / 'photos'}: 3 images, 2 classes of 1 (b) to 2 (a) images, median 1.5",
        "  splits: Test 1, Train 2",
        "  skipped: 1 .psd file, which are not read: convert them to PNG",
    ]


def test_a_table_with_unknown_columns(encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw_image(0).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("File;Target;width\na.png;cat;3\n")
    out = tmp_path / "e.safetensors"
    printed = run_command(["embed", encoder_run, "--data", tmp_path / "t.csv", "--out", out], capsys)
    assert "columns not read: width" in printed
    assert Embeddings.load(out).classes == ("cat",)


def test_a_folder_that_is_called_like_a_number(
    encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("2024").mkdir()
    draw_image(0).save("2024/a.png")
    run_command(["embed", encoder_run, "data.name=folder", "data.root=2024", "--out", "e.safetensors"], capsys)
    assert list(Embeddings.load("e.safetensors").ids) == ["a.png"]


def test_names_that_are_not_utf8_are_embedded(encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        root.mkdir()
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    draw_image(0).save(root / "a.png")
    (root / os.fsdecode(b"br\xfbl\xe9.jpg")).write_bytes(b"no image")
    out = tmp_path / "e.safetensors"
    printed = run_command(["embed", encoder_run, "--data", root, "--out", out], capsys)
    assert "br\\xfbl\\xe9.jpg" in printed
    assert Embeddings.load(out).metadata["root"] == str(root)
