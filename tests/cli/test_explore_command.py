"""reptk explore and reptk search of a folder of images, as commands: messages, exit codes, and the end by Ctrl-C."""

import http.client
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from embedding_inputs import run_command
from reptk.embeddings.encoding import folder_cache
from reptk.explore import assets

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are stored in a folder of the test; compiled functions stay in the user's."""
    monkeypatch.setattr(folder_cache, "cache_folder", lambda: tmp_path / "caches")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ([], 2, "the following arguments are required: NAME"),
        (["gone"], 3, "there is no folder or file gone"),
        (["EMPTY"], 3, "holds neither images nor embeddings"),
        (["EMBEDDED", "--port", "0"], 2, "must be a number from 1 to 65535"),
        (["EMBEDDED", "--port", "99999"], 2, "must be a number from 1 to 65535"),
        (["EMBEDDED", "--map", "som"], 2, "--map must be one of pca, tsne, umap"),
        (["EMBEDDED", "--force"], 2, "embedded already"),
        (["PHOTOS", "--encoder", "no_such_model"], 2, "no_such_model"),
        (["PHOTOS", "--weights", "x.pth"], 2, "name it by --encoder"),
        (["postgresql://me:secret@localhost/images?table=photos"], 2, "not of stores"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str],
    exit_code: int,
    words: str,
    photo_folder: Path,
    photo_embeddings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "EMBEDDED": photo_embeddings, "PHOTOS": photo_folder}
    message = run_command(["explore", *(places.get(word, word) for word in arguments)], capsys, exit_code)
    assert words in message
    assert message.count("\n") == 1
    assert "secret" not in message


def test_without_plotly(monkeypatch: pytest.MonkeyPatch, photo_embeddings: Path, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(assets, "find_spec", lambda name: None)
    message = run_command(["explore", photo_embeddings], capsys, exit_code=4)
    assert "pip install 'reptk[explore]'" in message


def test_search_embeds_a_folder_once(
    photo_folder: Path, encoder_run: Path, encoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    query = photo_folder / "cats" / "00.png"
    command = ["search", photo_folder, query, "--encoder", encoder_run, "--k", "3", "--no-html", "--device", "cpu"]
    printed = run_command(command, capsys)
    assert re.search(r"1  1\.000  cats .*00\.png  \(the same file\)", printed)
    assert sum(encoded) == 12 + 1
    encoded.clear()
    again = run_command(command, capsys)
    assert again.splitlines()[-3:] == printed.splitlines()[-3:]
    assert sum(encoded) == 1, "the query alone"
    printed = run_command(
        ["search", photo_folder, "--duplicates", "--encoder", encoder_run, "--threshold", "0.9999", "--no-html"], capsys
    )
    assert "12 images" in printed


@pytest.mark.slow
def test_ctrl_c_ends_it(photo_embeddings: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reptk", "explore", str(photo_embeddings), "--no-browser", "--map", "pca"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        for line in process.stdout:
            if line.startswith("look at it: "):
                break
        port, token = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line).groups()
        cookie = {"Cookie": f"reptk-explore-{port}={token}"}
        with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)) as connection:
            connection.request("GET", "/image/0", headers=cookie)
            response = connection.getresponse()
            assert response.status == 200
            assert response.read().startswith(b"\xff\xd8"), "a JPEG"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors == ""
