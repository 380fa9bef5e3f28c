"""Runs that exist already: not overwritten, resumed, refused if they are damaged."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from faulty_inputs import FOLDER, IMAGE_COUNT, TINY, error_message, folder_content
from reptk.cli import main as cli_main
from reptk.config import load
from reptk.recipe import main
from reptk.training.run_status import write_status

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
    write_status(finished, "interrupted")
    return finished


def test_folder_with_a_run_is_not_changed(faulty_folder, finished, capsys):
    before = folder_content(faulty_folder)
    assert main(["tiny.toml", "--out", "runs/tiny/1", "loss.temperature=0.7"]) == 2
    assert error_message(capsys.readouterr().err).startswith(
        "runs/tiny/1 was started with another recipe. Choose another --out"
    )
    assert folder_content(faulty_folder) == before


def test_second_run_has_the_next_number(finished):
    assert main(["tiny.toml"]) == 0
    assert read_status("runs/tiny/2")["status"] == "finished"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["runs/tiny/1", "--resume"], ["tiny", "--resume"], ["--resume", "tiny"]),
        *(["tiny.toml", "--out", "runs/tiny/1", "--resume"], ["tiny.toml", "--out", "runs/tiny/1"]),
    ],
)
def test_finished_run_is_not_resumed(faulty_folder, finished, capsys, arguments):
    before = folder_content(faulty_folder)
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.out == "already complete: runs/tiny/1/results.json. To train for longer: train.epochs=2\n"
    assert output.err == ""
    assert folder_content(faulty_folder) == before


def test_finished_run_is_trained_on_for_more_epochs(finished, capsys):
    assert main(["runs/tiny/1", "--resume", "train.epochs=3"]) == 0
    printed = capsys.readouterr().out
    assert "train.epochs=3 instead of 1: the learning rate follows the cosine of 3 epochs from here, epoch 1" in printed
    assert "resumed after step 2" in printed
    assert read_status()["status"] == "finished"
    assert json.loads((finished / "results.json").read_text())["protocol"]["epochs"] == 3
    # The run is now one of three epochs.
    assert main(["runs/tiny/1", "--resume"]) == 0
    assert capsys.readouterr().out.startswith("already complete")


def test_epochs_that_are_trained_cannot_be_taken_back(faulty_folder, finished, capsys):
    assert main(["runs/tiny/1", "--resume", "train.epochs=2"]) == 0
    before = folder_content(faulty_folder)
    status_before = (finished / "status.json").read_bytes()
    for status in ("finished", "interrupted"):
        write_status(finished, status)
        assert main(["runs/tiny/1", "--resume", "train.epochs=1"]) == 2
        assert "runs/tiny/1 has trained for 2 epochs, and train.epochs=1 is fewer" in capsys.readouterr().err
    (finished / "status.json").write_bytes(status_before)
    assert folder_content(faulty_folder) == before


def test_finished_run_without_a_checkpoint_cannot_be_trained_on(finished, capsys):
    shutil.rmtree(finished / "checkpoints")
    assert main(["runs/tiny/1", "--resume", "train.epochs=3"]) == 2
    assert "holds no checkpoint to resume from" in capsys.readouterr().err
    assert read_status()["status"] == "finished"


def test_a_finished_run_writes_its_model_again(finished, capsys):
    weights = (finished / "model" / "model.safetensors").read_bytes()
    metrics = json.loads((finished / "results.json").read_text())["metrics"]
    shutil.rmtree(finished / "model")
    resume = "python -m reptk.recipe runs/tiny/1 --resume"
    for command in (
        ["evaluate", "runs/tiny/1"],
        ["embed", "runs/tiny/1", "--data", "digits", "--out", "e.safetensors"],
    ):
        assert cli_main(command) == 3
        assert error_message(capsys.readouterr().err).endswith(f"write it again from the last checkpoint: {resume}")
    assert main(["runs/tiny/1", "--resume"]) == 0
    assert "note: the run has finished, and model/ is missing" in capsys.readouterr().out
    assert (finished / "model" / "model.safetensors").read_bytes() == weights
    assert json.loads((finished / "results.json").read_text())["metrics"] == metrics


def test_a_finished_run_without_model_and_checkpoints_says_so(faulty_folder, finished, capsys):
    shutil.rmtree(finished / "model")
    shutil.rmtree(finished / "checkpoints")
    before = folder_content(faulty_folder)
    assert main(["runs/tiny/1", "--resume"]) == 2
    message = error_message(capsys.readouterr().err)
    assert message.startswith(
        "runs/tiny/1 has finished, and model/ cannot be written again, since there is no checkpoint"
    )
    assert folder_content(faulty_folder) == before


def test_finished_run_with_another_recipe_is_refused(finished, capsys):
    assert main(["runs/tiny/1", "--resume", "loss.temperature=0.7"]) == 2
    assert "loss.temperature" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--resume"], ["--resume", "auto"], ["--out", "runs/tiny/1"], ["--out", "runs/tiny/1", "--resume", "auto"]],
)
def test_run_is_resumed_by_the_file_of_its_recipe(interrupted, capsys, arguments):
    assert main(["tiny.toml", *arguments]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    assert read_status()["status"] == "finished"
    assert not Path("runs/tiny/2").exists()


def test_a_second_run_names_the_unfinished_one(interrupted, capsys):
    assert main(["tiny.toml"]) == 0
    assert (
        "note: runs/tiny/1 is an unfinished run of this recipe (interrupted, step 0); to resume it: --resume auto"
        in capsys.readouterr().out
    )
    assert read_status("runs/tiny/2")["status"] == "finished"


def test_auto_says_that_the_run_is_complete(faulty_folder, finished, capsys):
    before = folder_content(faulty_folder)
    assert main(["tiny.toml", "--resume", "auto"]) == 0
    assert "already complete: runs/tiny/1/results.json" in capsys.readouterr().out
    assert folder_content(faulty_folder) == before


def test_run_is_resumed_by_the_name_of_its_recipe(interrupted, capsys):
    assert main(["tiny", "--resume", "train.log_every_steps=1"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    assert read_status()["status"] == "finished"


def test_resuming_with_other_keys_lists_them(faulty_folder, interrupted, capsys):
    before = folder_content(faulty_folder)
    assert main(["runs/tiny/1", "--resume", "optim.lr=0.1", "loss.name=supcon", "train.workers=1"]) == 2
    head, *lines = error_message(capsys.readouterr().err).splitlines()
    assert head == "runs/tiny/1 was started with another recipe. Choose another --out, or resume it with its own:"
    assert [line.split(maxsplit=1) for line in lines] == [
        ["loss.form", "None in the run, 'out' now"],
        ["loss.name", "'simclr' in the run, 'supcon' now"],
        ["loss.temperature", "0.5 in the run, 0.1 now"],
        ["optim.lr", "0.05 in the run, 0.1 now"],
    ]
    assert folder_content(faulty_folder) == before


@pytest.mark.parametrize("overwritten", [False, True], ids=["cut", "overwritten"])
@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_damaged_checkpoints_never_begin_anew(interrupted, capsys, file, overwritten):
    for folder in (interrupted / "checkpoints").glob("step_*"):
        path = folder / file
        content = path.read_bytes()[:-10]
        if overwritten:
            content += b"0" * 10
        path.write_bytes(content)
    assert main(["runs/tiny/1", "--resume"]) == 3
    message = error_message(capsys.readouterr().err)
    assert message.startswith("no checkpoint in runs/tiny/1/checkpoints is intact.")
    assert "checkpoint runs/tiny/1/checkpoints/step_00000002 is damaged" in message


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(interrupted, capsys):
    (interrupted / "checkpoints" / "step_00000002" / "state.pt").write_bytes(b"")
    assert main(["runs/tiny/1", "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint runs/tiny/1/checkpoints/step_00000002 is damaged: state.pt has 0 bytes" in printed
    assert "resuming from step_00000000" in printed
    assert read_status()["status"] == "finished"


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
