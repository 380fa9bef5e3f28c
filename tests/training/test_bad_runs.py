"""Mistakes that show when a run is under way, or in a run that is there already: one message, and nothing lost."""

import json
import shutil
from pathlib import Path

import pytest

from mistakes import FOLDER, TINY, error, everything, lay_out
from reptk.recipe import main
from reptk.training import run_folder


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, restored_registries):
    """A folder to work in, full of things to trip over; what a test registers there is restored_registries after it."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    return tmp_path


# Mistakes that show only when the run is under way: its folder says what happened.


def _status(folder: str = "runs/tiny/1") -> dict[str, str]:
    return json.loads(Path(folder, "status.json").read_text())


def test_a_corrupt_image_is_named(capsys):
    assert main(["tiny.toml", *FOLDER, "data.root=corrupt"]) == 3
    message = error(capsys.readouterr().err)
    assert message.startswith("cannot read corrupt/07.png as an image: ")
    assert message.endswith("Repair it, or take it out of the folder")
    assert _status() == {"status": "failed", "reason": f"DataError: {message}"}


def test_a_loss_that_is_not_a_number_is_named_with_its_step(capsys):
    assert main(["tiny.toml", "--plugin", "nan_loss.py", "loss.name=nan_loss"]) == 5
    message = error(capsys.readouterr().err)
    assert message.startswith(
        "the loss is nan at step 1 (lr 0.05); the embeddings are finite, so it arose in the loss 'nan_loss'"
    )
    assert _status() == {"status": "failed", "reason": f"NumericalError: {message}"}
    assert not Path("runs/tiny/1/results.json").exists()
    assert not Path("runs/tiny/1/checkpoints").exists()


def test_weights_that_diverge_are_told_from_a_bad_loss(capsys):
    assert main(["tiny.toml", "optim.lr=1e30"]) == 5
    message = error(capsys.readouterr().err)
    assert message.startswith("the loss is nan at step 2 (lr 1e+30); 32 of 32 rows of z hold NaN or infinity: 0, 1")
    assert "optim.lr" in message
    assert "optim.warmup_epochs" in message


def test_an_interruption_says_how_to_go_on(capsys):
    assert main(["tiny.toml", "--plugin", "interrupted_loss.py", "loss.name=interrupted_loss"]) == 130
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.endswith("interrupted. To go on: python -m reptk.recipe runs/tiny/1 --resume\n")
    assert _status() == {"status": "interrupted"}


def test_an_error_of_the_code_keeps_its_traceback_and_is_recorded():
    with pytest.raises(RuntimeError, match="out of luck"):
        main(["tiny.toml", "--plugin", "failing_loss.py", "loss.name=failing_loss"])
    assert _status() == {"status": "failed", "reason": "RuntimeError: out of luck"}


@pytest.mark.filterwarnings("always")
def test_k_beyond_the_bank_is_lowered_with_a_warning(capsys):
    assert main(["tiny.toml", "eval.knn.k=[1, 200]"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "warning: k = 200 is more than the bank offers; 20 is used instead\n"
    numbers = json.loads(Path("runs/tiny/1/results.json").read_text())["metrics"]["trained"]
    assert {"knn@1", "knn@20"} <= set(numbers)
    assert "knn@200" not in numbers


@pytest.mark.filterwarnings("ignore:k = 200 is more")
def test_a_run_without_evaluators_ends_well(place, capsys):
    (place / "tiny.toml").write_text(TINY.partition("[eval.knn]")[0])
    assert main(["tiny.toml"]) == 0


# Runs that are there already


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of TINY, to be copied."""
    place = tmp_path_factory.mktemp("finished")
    (place / "tiny.toml").write_text(TINY)
    assert main([str(place / "tiny.toml"), "--out", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture
def finished(place, finished_run):
    shutil.copytree(finished_run, place / "runs" / "tiny" / "1")
    return place / "runs" / "tiny" / "1"


@pytest.fixture
def interrupted(finished):
    run_folder.set_status(finished, "interrupted")
    return finished


def test_an_occupied_folder_is_left_alone(place, finished, capsys):
    before = everything(place)
    assert main(["tiny.toml", "--out", "runs/tiny/1"]) == 2
    assert error(capsys.readouterr().err) == (
        "runs/tiny/1 holds another run (tiny, finished). Choose another --out, or go on with it: "
        "python -m reptk.recipe runs/tiny/1 --resume"
    )
    assert everything(place) == before


def test_a_second_run_takes_the_next_number(finished):
    assert main(["tiny.toml"]) == 0
    assert _status("runs/tiny/2") == {"status": "finished"}


@pytest.mark.parametrize("arguments", [["runs/tiny/1"], ["tiny"], ["tiny.toml", "--out", "runs/tiny/1"]])
def test_a_finished_run_is_complete(place, finished, capsys, arguments):
    before = everything(place)
    assert main([*arguments, "--resume"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "already complete: runs/tiny/1/results.json\n"
    assert printed.err == ""
    assert everything(place) == before


def test_a_run_is_resumed_by_the_recipes_file(interrupted):
    assert main(["tiny.toml", "--resume"]) == 0
    assert _status() == {"status": "finished"}


def test_an_interrupted_run_is_resumed_by_its_name(interrupted, capsys):
    assert main(["tiny", "--resume", "train.log_every_steps=1"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    assert _status() == {"status": "finished"}


def test_resuming_with_other_keys_lists_them(place, interrupted, capsys):
    before = everything(place)
    assert main(["runs/tiny/1", "--resume", "optim.lr=0.1", "loss.name=supcon", "train.workers=1"]) == 2
    head, *lines = error(capsys.readouterr().err).splitlines()
    assert head == "runs/tiny/1 was started with another recipe; resume it with its own:"
    assert [line.split(maxsplit=1) for line in lines] == [
        ["loss.form", "None in the run, 'out' now"],
        ["loss.name", "'simclr' in the run, 'supcon' now"],
        ["loss.temperature", "0.5 in the run, 0.1 now"],
        ["optim.lr", "0.05 in the run, 0.1 now"],
    ]
    assert everything(place) == before


@pytest.mark.parametrize("flip", [False, True], ids=["cut", "flipped"])
@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_refused(interrupted, capsys, file, flip):
    path = interrupted / "checkpoints" / "step_00000002" / file
    content = path.read_bytes()[:-10]
    path.write_bytes(content + b"0" * 10 if flip else content)
    assert main(["runs/tiny/1", "--resume"]) == 3
    assert "checkpoint runs/tiny/1/checkpoints/step_00000002 is damaged" in error(capsys.readouterr().err)
