"""A command that is killed, or that fills the disk, leaves what was there or all that is new, and the next one goes on."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import both_formats, draw_image, make_embeddings, needs_pyarrow, unit_vectors
from killed_processes import hidden_names, kill_at_every_moment, run_with_full_disk
from reptk.cli import main
from reptk.embeddings import Embeddings, Index
from reptk.evaluate.predictions import Predictions

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

Command = list[object]


def run(command: Command) -> int:
    with redirect_stdout(io.StringIO()):
        return main([str(argument) for argument in command])


def check_killed(
    command: Command, prepare: Callable[[], object], read: Callable[[], object], folder: Path
) -> list[object]:
    """Kill a command at every moment. What is there must be as before, or as after a command that is not killed; the next
    command succeeds, and leaves nothing hidden. Returns what was there after each moment."""
    prepare()
    before = read()
    assert run(command) == 0
    after = read()
    assert before != after

    def run_in_child() -> None:
        assert run(command) == 0

    contents = []
    for moment, killed in kill_at_every_moment(prepare, run_in_child, folder):
        contents.append(read())
        assert contents[-1] in (before, after), f"at moment {moment}"
        assert killed or contents[-1] == after
        assert run(command) == 0
        assert read() == after
        assert hidden_names(folder) == []
    assert len(contents) > 5
    return contents


def check_full_disk(
    command: Command, target: Path, max_file_bytes: int, read: Callable[[], object], folder: Path
) -> None:
    before = read()
    message = run_with_full_disk(lambda: run(command), max_file_bytes)
    errors = [line for line in message.splitlines() if line.startswith("error: ")]
    assert message.splitlines()[-1:] == errors, message
    assert errors[0].startswith(f"error: the disk of {target} is full (File too large): "), message
    assert " free. " in errors[0]
    assert read() == before
    assert hidden_names(folder) == []


# embed


@both_formats
def test_embed(suffix: str, photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    command = ["embed", encoder_run, "--data", photo_folder, "--out", path, "--force"]

    def prepare() -> None:
        make_embeddings().save(path, force=True)

    def read() -> list[str]:
        return list(Embeddings.load(path, verify=True).ids)

    check_killed(command, prepare, read, tmp_path)
    prepare()
    check_full_disk(command, path, 1000, read, tmp_path)


@both_formats
def test_embed_of_a_new_file(suffix: str, photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    check_full_disk(["embed", encoder_run, "--data", photo_folder, "--out", path], path, 1000, path.exists, tmp_path)


@both_formats
def test_update(suffix: str, photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    path = tmp_path / f"e{suffix}"
    reptk.embed(encoder_run, photos, out=path)
    old = path.read_bytes()
    draw_image(99).save(photos / "cats" / "new.png")
    command = ["embed", encoder_run, "--data", photos, "--out", path, "--update"]

    def read() -> int:
        return len(Embeddings.load(path, verify=True))

    assert 13 in check_killed(command, lambda: path.write_bytes(old), read, tmp_path)
    path.write_bytes(old)
    check_full_disk(command, path, 1000, read, tmp_path)


def test_embed_killed_from_outside(encoder_run: Path, tmp_path: Path) -> None:
    """A process of its own, killed while it writes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(300):
        draw_image(number).save(photos / f"{number}.png")
    path = tmp_path / "e.safetensors"
    make_embeddings().save(path)
    old = path.read_bytes()
    code = "import sys; from reptk.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--data", photos, "--out", path, "--force", "--batch-size", "1", "--workers", "1"]
    command = [sys.executable, "-c", code, "embed", encoder_run, *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not hidden_names(tmp_path) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert path.read_bytes() == old
    assert hidden_names(tmp_path) != []
    make_embeddings(list("abc")).save(path, force=True)
    assert hidden_names(tmp_path) == []
    assert len(Embeddings.load(path)) == 3


# index


def test_index(tmp_path: Path) -> None:
    source = make_embeddings(list("abc")).save(tmp_path / "e.safetensors")
    folder = tmp_path / "e.index"
    command = ["index", source, "--out", folder, "--force"]

    def prepare() -> None:
        reptk.index(make_embeddings(list("vwxyz")), out=folder, force=True)

    def read() -> list[str]:
        return list(Index.open(folder, verify=True).embeddings.ids)

    check_killed(command, prepare, read, tmp_path)
    prepare()
    check_full_disk(command, folder, 20_000, read, tmp_path)


def test_a_new_index(tmp_path: Path) -> None:
    source = make_embeddings(list("abc")).save(tmp_path / "e.safetensors")
    folder = tmp_path / "e.index"

    def remove() -> None:
        if folder.exists():
            shutil.rmtree(folder)

    def read() -> int:
        return len(Index.open(folder, verify=True)) if folder.exists() else 0

    check_killed_new(["index", source, "--out", folder], remove, read, tmp_path)


def check_killed_new(command: Command, remove: Callable[[], object], read: Callable[[], object], folder: Path) -> None:
    """As `check_killed`, for a command that refuses to write over what is there: the next one may find its work done."""
    for _, killed in kill_at_every_moment(remove, lambda: run(command), folder):
        there = read()
        if not there:
            assert killed
            assert run(command) == 0
            assert hidden_names(folder) == []
            assert read()
    assert read() == there


# evaluate


@pytest.fixture
def labeled_embeddings(tmp_path: Path) -> Path:
    ids = [str(row) for row in range(40)]
    embeddings = Embeddings(unit_vectors(40), ids, labels=torch.arange(40) % 2, classes=("cat", "dog"))
    return embeddings.save(tmp_path / "e.safetensors")


def test_evaluate_into_a_file(labeled_embeddings: Path, tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    command = ["evaluate", labeled_embeddings, "--only", "knn", "eval.knn.k=[1,5]", "--out", path, "--force"]

    def read() -> list[str]:
        return list(json.loads(path.read_text()))

    check_killed(command, lambda: path.write_text("{}"), read, tmp_path)
    path.write_text("{}")
    check_full_disk(command, path, 100, read, tmp_path)


def test_evaluate_into_a_folder(labeled_embeddings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    command = ["evaluate", labeled_embeddings, "--only", "knn", "eval.knn.k=[1,5]", "--out", folder]

    def remove() -> None:
        if folder.exists():
            shutil.rmtree(folder)

    for _, killed in kill_at_every_moment(remove, lambda: run(command), tmp_path):
        if (folder / "results.json").exists():
            assert json.loads((folder / "results.json").read_text())["metrics"]
            assert len(Predictions.load(folder)) == 40
        next_command = command
        if (folder / "report.html").exists():
            assert (folder / "report.html").read_text().rstrip().endswith("</html>")
            next_command = ["report", folder]
        else:
            assert killed
        assert run(next_command) == 0
        assert hidden_names(folder) == []
    remove()
    check_full_disk(command, folder / "evaluation.safetensors", 100, (folder / "results.json").exists, tmp_path)


# search and views


@needs_pyarrow
def test_search(tmp_path: Path) -> None:
    vectors = unit_vectors(3)[[0, 1, 2, 0]]
    source = Embeddings(vectors, list("abcd")).save(tmp_path / "e.safetensors")
    path = tmp_path / "duplicates.csv"
    command = ["search", source, "--duplicates", "--threshold", "0.9", "--no-html", "--no-images"]
    command += ["--out", path, "--force"]
    check_killed(command, lambda: path.write_text("old"), path.read_text, tmp_path)
    path.write_text("old")
    check_full_disk(command, path, 100, path.read_text, tmp_path)


def test_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "views.png"
    command = ["views", "supcon_digits", "--smoke", "--images", "2", "--out", path]
    check_killed(command, lambda: path.write_bytes(b"old"), path.read_bytes, tmp_path)
    path.write_bytes(b"old")
    check_full_disk(command, path, 100, path.read_bytes, tmp_path)
