"""reptk embed, as a command."""

import shutil
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import run_command
from reptk.embeddings import Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_the_command_equals_the_function(
    photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "e.safetensors"
    printed = run_command(["embed", encoder_run, "--data", photo_folder, "--out", out, "--half"], capsys)
    assert "12 embeddings of" in printed
    by_command = Embeddings.load(out)
    by_function = reptk.embed(photo_folder, encoder=encoder_run, half=True)
    assert torch.equal(by_command.vectors, by_function.vectors)
    for about in (by_command.about, by_function.about):
        del about["created"], about["seconds"]
    assert by_command.about == by_function.about


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
    expected = reptk.embed(photo_folder, encoder=encoder_run)
    assert torch.allclose(embeddings.vectors, expected.vectors, atol=1e-5)
    assert list(embeddings.ids) == list(expected.ids)
    assert embeddings.labels.tolist() == expected.labels.tolist()
    assert embeddings.about["skipped"]["count"] == 7
    assert "05-0.jpg" in run_command([*arguments, "--strict", "--force"], capsys, exit_code=3)
    assert len(Embeddings.load(out)) == 12, "the old file is still complete"
