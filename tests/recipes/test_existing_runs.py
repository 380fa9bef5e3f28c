"""Runs that exist already: not overwritten, resumed, refused if they are damaged."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from faulty_inputs import FOLDER, IMAGE_COUNT, TINY, error_message, folder_content
from reptk.config import load
from reptk.recipe import main
from reptk.training import run_folder

pytestmark = pytest.mark.usefixtures("one_thread", "faulty_folder")


def read_status(folder: str = "runs/tiny/1") -> dict[str, str]:
    return json.loads(Path(folder, "status.json").read_text())


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The folder of a finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY)
    assert main([str(folder / "tiny.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def finished(faulty_folder, finished_run):
    """A finished run in runs/tiny/1."""
    folder = faulty_folder / "runs" / "tiny" / "1"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture
def interrupted(finished):
    """An interrupted run in runs/tiny/1."""
    run_folder.set_status(finished, "interrupted")
    return finished


def test_folder_with_a_run_is_not_changed(faulty_folder, finished, capsys):
    before = folder_content(faulty_folder)
    assert main(["tiny.toml", "--out", "runs/tiny/1"]) == 2
    assert error_message(capsys.readouterr().err) == (
        "runs/tiny/1 holds another run (tiny, finished). Choose another --out, or go on with it: "
        "python -m reptk.recipe runs/tiny/1 --resume"
    )
    assert folder_content(faulty_folder) == before


def test_second_run_has_the_next_number(finished):
    assert main(["tiny.toml"]) == 0
    assert read_status("runs/tiny/2") == {"status": "finished"}


@pytest.mark.parametrize("arguments", [["runs/tiny/1"], ["tiny"], ["tiny.toml", "--out", "runs/tiny/1"]])
def test_finished_run_is_not_resumed(faulty_folder, finished, capsys, arguments):
    before = folder_content(faulty_folder)
    assert main([*arguments, "--resume"]) == 0
    output = capsys.readouterr()
    assert output.out == "already complete: runs/tiny/1/results.json. To train on: train.epochs=2\n"
    assert output.err == ""
    assert folder_content(faulty_folder) == before


def test_finished_run_is_trained_on_for_more_epochs(finished, capsys):
    assert main(["runs/tiny/1", "--resume", "train.epochs=3"]) == 0
    printed = capsys.readouterr().out
    assert "train.epochs=3 instead of 1: the learning rate follows the cosine of 3 epochs from here, epoch 1" in printed
    assert "resumed after step 2" in printed
    assert read_status() == {"status": "finished"}
    assert json.loads((finished / "results.json").read_text())["protocol"]["epochs"] == 3
    # The run is now one of three epochs.
    assert main(["runs/tiny/1", "--resume"]) == 0
    assert capsys.readouterr().out.startswith("already complete")


def test_epochs_that_are_trained_cannot_be_taken_back(faulty_folder, finished, capsys):
    assert main(["runs/tiny/1", "--resume", "train.epochs=2"]) == 0
    before = folder_content(faulty_folder)
    for status in ("finished", "interrupted"):
        run_folder.set_status(finished, status)
        assert main(["runs/tiny/1", "--resume", "train.epochs=1"]) == 2
        assert "runs/tiny/1 has trained for 2 epochs, and train.epochs=1 is fewer" in capsys.readouterr().err
    run_folder.set_status(finished, "finished")
    assert folder_content(faulty_folder) == before


def test_finished_run_without_a_checkpoint_cannot_be_trained_on(finished, capsys):
    shutil.rmtree(finished / "checkpoints")
    assert main(["runs/tiny/1", "--resume", "train.epochs=3"]) == 2
    assert "holds no checkpoint to go on from" in capsys.readouterr().err
    assert read_status() == {"status": "finished"}


def test_finished_run_with_another_recipe_is_refused(finished, capsys):
    assert main(["runs/tiny/1", "--resume", "loss.temperature=0.7"]) == 2
    assert "loss.temperature" in capsys.readouterr().err


def test_run_is_resumed_by_the_file_of_its_recipe(interrupted):
    assert main(["tiny.toml", "--resume"]) == 0
    assert read_status() == {"status": "finished"}


def test_run_is_resumed_by_the_name_of_its_recipe(interrupted, capsys):
    assert main(["tiny", "--resume", "train.log_every_steps=1"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    assert read_status() == {"status": "finished"}


def test_resuming_with_other_keys_lists_them(faulty_folder, interrupted, capsys):
    before = folder_content(faulty_folder)
    assert main(["runs/tiny/1", "--resume", "optim.lr=0.1", "loss.name=supcon", "train.workers=1"]) == 2
    head, *lines = error_message(capsys.readouterr().err).splitlines()
    assert head == "runs/tiny/1 was started with another recipe; resume it with its own:"
    assert [line.split(maxsplit=1) for line in lines] == [
        ["loss.form", "None in the run, 'out' now"],
        ["loss.name", "'simclr' in the run, 'supcon' now"],
        ["loss.temperature", "0.5 in the run, 0.1 now"],
        ["optim.lr", "0.05 in the run, 0.1 now"],
    ]
    assert folder_content(faulty_folder) == before


@pytest.mark.parametrize("overwritten", [False, True], ids=["cut", "overwritten"])
@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_damaged_checkpoint_is_refused(interrupted, capsys, file, overwritten):
    path = interrupted / "checkpoints" / "step_00000002" / file
    content = path.read_bytes()[:-10]
    if overwritten:
        content += b"0" * 10
    path.write_bytes(content)
    assert main(["runs/tiny/1", "--resume"]) == 3
    assert "checkpoint runs/tiny/1/checkpoints/step_00000002 is damaged" in error_message(capsys.readouterr().err)


def test_a_run_on_a_folder_whose_name_is_not_utf8_is_opened_again(faulty_folder, capsys):
    root = os.fsdecode(b"caf\xe9")
    try:
        for number in range(IMAGE_COUNT):
            path = Path(root, os.fsdecode(b"class\xff"), f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    overrides = [*FOLDER, f"data.root={root}", "data.labels=folders"]
    assert main(["tiny.toml", *overrides, "--out", "run"]) == 0
    assert f"caf\\xe9: {IMAGE_COUNT} images, 1 class" in capsys.readouterr().out
    assert main(["run", "--resume"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(["run", "--show"]) == 0
    assert 'root = "caf\\xe9"' in capsys.readouterr().out
    assert load("run").data["root"] == root
