"""reptk export, reptk search and reptk index --verify with addresses of stores."""

import re
from pathlib import Path

import pytest

from embedding_inputs import run_command
from store_servers import QDRANT_PLUGIN

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_a_store_is_searched_as_the_file(
    address: str,
    store_name: str,
    photo_folder: Path,
    photo_embeddings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    plugin = []
    if store_name == "qdrant":
        plugin = ["--plugin", QDRANT_PLUGIN]
    printed = run_command(["export", photo_embeddings, "--to", address, *plugin], capsys)
    assert "12 embeddings of 64 values by test_vit" in printed
    html = tmp_path / "found.html"
    query = [photo_folder / "cats" / "00.png", "--id", "ünï/02.png", "--k", "3"]
    printed = run_command(["search", address, *query, "--html", html, *plugin], capsys)
    expected = run_command(["search", photo_embeddings, *query, "--no-html"], capsys)
    assert "12 images, by test_vit" in printed
    assert printed.splitlines()[1:9] == expected.splitlines()[1:9]
    assert "the same file" in printed
    assert html.read_text().count("data:image/") == 8
    printed = run_command(["index", "--verify", address, "--k", "5", *plugin], capsys)
    assert re.search(r"recall@5 100\.0 % \(\d\d\.\d to 100\.0\) against exact search, 12 queries", printed)
    assert "not stores" in run_command(["search", address, "--duplicates", *plugin], capsys, exit_code=2)
    assert "--force" in run_command(["export", photo_embeddings, "--to", address, *plugin], capsys, exit_code=2)


def test_recall_of_a_file(photo_embeddings: Path, capsys: pytest.CaptureFixture) -> None:
    printed = run_command(["index", "--verify", photo_embeddings], capsys)
    assert "Flat (exact)" in printed
    assert "recall@10 100.0 %" in printed


SECRET = "postgresql://me:geheim@127.0.0.1:1/db"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["export", "EMBEDDED", "--to", "photos.lance"], 2, "no address of a store"),
        (["export", "EMBEDDED", "--to", "mysql://me:geheim@host/db"], 2, "no store 'mysql'"),
        (["export", "lance:x", "--to", "lance:y"], 2, "a file or folder of embeddings is exported"),
        (["export", "gone.safetensors", "--to", "lance:y"], 3, "no file of embeddings"),
        (["export", "EMBEDDED", "EMBEDDED", "--to", SECRET], 2, "unrecognized arguments"),
        (["export", "EMBEDDED", SECRET, "--to", "lance:y"], 2, "unrecognized arguments"),
        (["index"], 2, "which embeddings"),
        (["index", "--verify", "gone.index"], 3, "no index gone.index"),
        (["index", "--verify", "EMBEDDED", "--out", "x"], 2, "--verify measures an index that is there"),
        (["index", "--verify", "EMBEDDED", "--k", "0"], 2, "at least 1"),
        (["index", SECRET, "--out", "x"], 2, "reptk index --verify postgresql://me:***@127.0.0.1:1/db"),
        (["search", SECRET], 2, "search postgresql://me:***@127.0.0.1:1/db for what?"),
        (["search", SECRET, "--duplicates"], 2, "not stores"),
        (["embed", "test_resnet", "--data", "digits", "--out", SECRET], 2, "--out is a file"),
    ],
)
def test_mistakes_are_one_message_without_a_password(
    arguments: list[str],
    exit_code: int,
    message: str,
    photo_embeddings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lance")
    monkeypatch.chdir(tmp_path)
    arguments = [str(photo_embeddings) if argument == "EMBEDDED" else argument for argument in arguments]
    printed = run_command(arguments, capsys, exit_code=exit_code)
    assert message in printed
    assert "geheim" not in printed
    assert len(printed.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_down_is_one_message(photo_embeddings: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("psycopg")
    for arguments in (
        ["export", photo_embeddings, "--to", SECRET],
        ["search", SECRET, "--id", "3", "--no-html"],
        ["index", "--verify", SECRET],
    ):
        printed = run_command(arguments, capsys, exit_code=4)
        assert re.match(r"error: no connection to postgresql://me:\*\*\*@127\.0\.0\.1:1/db: ", printed)
        assert "geheim" not in printed
        assert len(printed.strip().splitlines()) == 1
