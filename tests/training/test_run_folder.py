"""A run's folder: created, locked, resumed by the same command."""

import os
import re
import shutil
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reptk.config import Recipe, load, override, validate
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.data.fingerprint import Fingerprint
from reptk.training import checkpoint, find_run, run_folder
from reptk.training.run_folder import COMPLETE, NEW, RESUMED, OpenedRun, RunClaim
from reptk.training.run_status import write_status

DATA = Fingerprint({"train": {"images": 48, "labels": "a"}}, {"cat/1.png": "100,5", "cat/2.png": "200,6"}, "stat")


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def recipe(*overrides: str, **changes: Any) -> Recipe:
    table = {
        "name": "tiny",
        "data": {"name": "generated"},
        "views": {"name": "simclr_small"},
        "encoder": {"backbone": "test_resnet"},
        "method": {"name": "contrastive"},
        "loss": {"name": "tcl"},
        "optim": {"lr": 0.1},
        "train": {"epochs": 2, "batch_size": 16},
        "eval": {"knn": {"k": [1, 5]}},
    }
    return validate(override(table, overrides)).model_copy(update=changes)


# The folder of a new run


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def claims() -> Iterator[list[RunClaim]]:
    """Folders that are held until the end of the test."""
    held: list[RunClaim] = []
    yield held
    for claim in held:
        claim.release()


def open_run(
    recipe: Recipe,
    out: str | Path | None,
    resume: run_folder.Resume = None,
    data: Fingerprint = DATA,
    allowed: str = "",
) -> OpenedRun:
    """Open a folder as a process does that ends at once."""
    with RunClaim() as claim:
        return claim.open(
            recipe, out, resume=resume, data=data, steps_per_epoch=3, report=lambda text: None, allowed=[allowed]
        )


def finish(folder: Path) -> None:
    """Write what a run ends in, as empty files."""
    write_status(folder, "finished")
    (folder / "model").mkdir()
    for name in ("results.json", "model/model.safetensors", "model/config.json"):
        (folder / name).write_text("{}")


def test_folders_are_numbered(working_folder: Path) -> None:
    for number in (1, 2, 3):
        assert open_run(recipe(), None).folder == Path(f"runs/tiny/{number}")
    shutil.rmtree("runs/tiny/2")
    shutil.copytree("runs/tiny/1", "runs/tiny/10")
    Path("runs/tiny/notes").mkdir()
    assert find_run.newest("tiny") == Path("runs/tiny/10")
    assert open_run(recipe(), None).folder == Path("runs/tiny/11")
    assert open_run(recipe(name="other"), None).folder == Path("runs/other/1")


def test_many_starts_at_once_get_a_folder_each(working_folder: Path, claims: list[RunClaim]) -> None:
    folders = []

    def start() -> None:
        claim = RunClaim()
        claims.append(claim)
        folders.append(claim.open(recipe(), None, resume=None, data=DATA, steps_per_epoch=3, report=print).folder)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 8


def test_new_folder_contains_the_complete_recipe(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "deep" / "new", tmp_path / "empty"):
        assert open_run(recipe("loss.k1=7.0"), str(folder)) == OpenedRun(folder, NEW, 2, [])
        assert load(folder) == recipe("loss.k1=7.0")
        assert file_names(folder) == [".lock", "data.json", "data_files.txt.gz", "recipe.toml"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["data.json", "status.json", "metrics.jsonl", "results.json"])
def test_a_folder_with_a_pipe_is_refused(name: str, tmp_path: Path) -> None:
    """Somebody else's folder: whoever writes into a pipe waits for ever."""
    open_run(recipe(), tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(EnvironmentProblem, match=f"{name} is a named pipe, not a file"):
        open_run(recipe(), tmp_path / "run")


def test_folder_of_a_start_that_was_killed_is_used(working_folder: Path) -> None:
    """The recipe is written last."""
    for out in ("run", None):
        folder = open_run(recipe(), out).folder
        (folder / "recipe.toml").unlink()
        (folder / ".recipe.toml.999").write_text("half a rec")
        assert open_run(recipe(), out) == OpenedRun(folder, NEW, 2, [])


def test_folder_with_a_run_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = open_run(recipe("encoder.drop_path=0.1"), tmp_path / "mine").folder
    write_status(folder, "interrupted")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = recipe("loss.k1=7.0", "encoder.head_width=12", "train.workers=3", "encoder.drop_path=0.1")
    with pytest.raises(UsageError) as error:
        open_run(other, folder)
    first, *lines = str(error.value).splitlines()
    assert first == f"{folder} was started with another recipe. Choose another --out, or resume it with its own:"
    k1 = recipe().loss["k1"]
    assert [line.split(maxsplit=1) for line in lines] == [
        ["encoder.head_width", "None in the run, 12 now"],
        ["loss.k1", f"{k1!r} in the run, 7.0 now"],
    ]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        open_run(recipe(), tmp_path)
    assert file_names(tmp_path) == ["thesis.tex"]


def test_a_folder_may_have_to_be_new(tmp_path: Path) -> None:
    open_run(recipe(), tmp_path / "run", resume=False)
    with pytest.raises(UsageError, match=r"run holds a run \(tiny, unknown\)\. Choose another folder"):
        open_run(recipe(), tmp_path / "run", resume=False)


def test_plugin_files_are_copied_and_named_from_the_folder(tmp_path: Path) -> None:
    plugin = tmp_path / "somewhere" / "my_loss.py"
    plugin.parent.mkdir()
    plugin.write_text("# a loss\n")
    folder = open_run(recipe(plugins=(str(plugin), "reptk.plugins.dcl")), tmp_path / "run").folder
    plugin.write_text("# changed since\n")
    assert (folder / "plugins" / "my_loss.py").read_text() == "# a loss\n"
    written = tomllib.loads((folder / "recipe.toml").read_text())
    assert written["plugins"] == ["plugins/my_loss.py", "reptk.plugins.dcl"]
    assert str(tmp_path / "somewhere") not in (folder / "recipe.toml").read_text()


@pytest.mark.parametrize("out", ["file/run", "file", None])
def test_folder_that_cannot_be_created_is_refused(out: str | None, working_folder: Path) -> None:
    Path("file").write_text("")
    Path("runs").write_text("")
    with pytest.raises((EnvironmentProblem, UsageError), match=re.escape(out or "runs/")):
        open_run(recipe(), out)


def test_dangling_link_is_an_environment_problem(working_folder: Path) -> None:
    Path("runs").symlink_to("unmounted")
    with pytest.raises(EnvironmentProblem, match="runs"):
        open_run(recipe(), None)


# The folder of a run that is resumed


def test_the_same_recipe_goes_on_in_its_folder(tmp_path: Path) -> None:
    folder = open_run(recipe(), tmp_path / "run").folder
    may_change = ("train.workers=3", "train.device=cpu", "train.log_every_steps=1", "train.checkpoint_every_epochs=2")
    for equivalent in (recipe(), load(folder), recipe(*may_change), recipe(plugins=("elsewhere.py",))):
        for resume in (None, True, "auto"):
            assert open_run(equivalent, folder, resume) == OpenedRun(folder, RESUMED, 2, [])


def test_auto_goes_on_with_the_last_run_of_the_recipe_or_starts_one(working_folder: Path) -> None:
    assert open_run(recipe(), None, "auto") == OpenedRun(Path("runs/tiny/1"), NEW, 2, [])
    assert open_run(recipe("loss.k1=7.0"), None, "auto").folder == Path("runs/tiny/2")
    assert open_run(recipe(), None, "auto") == OpenedRun(Path("runs/tiny/1"), RESUMED, 2, [])
    assert find_run.unfinished_run_note(recipe()) == [
        "runs/tiny/1 is an unfinished run of this recipe (unknown, step 0); to resume it: --resume auto"
    ]
    finish(Path("runs/tiny/1"))
    assert find_run.unfinished_run_note(recipe()) == []
    assert open_run(recipe(), None, "auto").state == COMPLETE
    assert open_run(recipe(), None).folder == Path("runs/tiny/3")


def test_another_length_is_recorded_and_nothing_else(tmp_path: Path) -> None:
    folder = open_run(recipe(plugins=()), tmp_path / "run").folder
    before = (folder / "recipe.toml").read_text()
    opened = open_run(recipe("train.epochs=5", "train.workers=3"), folder)
    assert opened == OpenedRun(folder, RESUMED, 2, [])
    assert (folder / "recipe.toml").read_text() == before.replace("epochs = 2", "epochs = 5", 1)


def test_a_run_is_complete_only_with_all_epochs_of_the_recipe(tmp_path: Path) -> None:
    folder = open_run(recipe(), tmp_path / "run").folder
    assert not run_folder.is_complete(recipe(), folder)
    finish(folder)
    assert run_folder.is_complete(recipe(), folder)
    assert open_run(recipe(), folder).state == COMPLETE
    with pytest.raises(UsageError, match="holds no checkpoint"):
        run_folder.is_complete(recipe("train.epochs=3"), folder)
    with pytest.raises(UsageError, match="has trained for 2 epochs, and"):
        run_folder.is_complete(recipe("train.epochs=1"), folder)
    checkpoint.save(folder / "checkpoints", 6, {"step": 6})
    assert not run_folder.is_complete(recipe("train.epochs=3"), folder)


@pytest.mark.parametrize(
    ("path", "name"),
    [("results.json", "results.json"), ("model/model.safetensors", "model/"), ("model/config.json", "model/")],
)
def test_a_finished_run_that_lacks_an_output_is_not_complete(path: str, name: str, tmp_path: Path) -> None:
    folder = open_run(recipe(), tmp_path / "run").folder
    finish(folder)
    (folder / path).unlink()
    with pytest.raises(UsageError, match=f"has finished, and {name} cannot be written again, since there is no check"):
        run_folder.is_complete(recipe(), folder)
    checkpoint.save(folder / "checkpoints", 6, {"step": 6})
    assert not run_folder.is_complete(recipe(), folder)
    opened = open_run(recipe(), folder)
    assert opened.state == RESUMED
    assert opened.notes == [f"the run has finished, and {name} is missing: written again from the last checkpoint"]


def test_steps_of_the_checkpoint_limit_the_epochs_from_below(tmp_path: Path) -> None:
    folder = open_run(recipe(), tmp_path / "run").folder
    run_folder.check_epochs(folder, epochs=1, steps_per_epoch=3)
    checkpoint.save(folder / "checkpoints", 5, {"step": 5})
    run_folder.check_epochs(folder, epochs=2, steps_per_epoch=3)
    with pytest.raises(UsageError, match=r"has trained for 1\.66667 epochs, and train\.epochs=1 is fewer"):
        run_folder.check_epochs(folder, epochs=1, steps_per_epoch=3)


def test_nothing_to_resume_is_an_error(working_folder: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume in empty: there is no folder empty"):
        open_run(recipe(), "empty", True)
    with pytest.raises(UsageError, match="no run of tiny in runs/tiny"):
        find_run.newest("tiny")


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path: Path) -> None:
    folder = open_run(recipe(), tmp_path / "run").folder
    write_status(folder, "running", step=0)
    assert run_folder.lost_checkpoints(folder, None) == []
    write_status(folder, "running", step=40)
    with pytest.raises(DataError, match=r"says that step 40 was saved, but there is no checkpoint in"):
        run_folder.lost_checkpoints(folder, None)
    for step in (30, 40):
        checkpoint.save(folder / "checkpoints", step, {"step": step})
    assert run_folder.lost_checkpoints(folder, checkpoint.load_newest(folder / "checkpoints")) == []
    shutil.rmtree(folder / "checkpoints" / "step_00000040")
    assert run_folder.lost_checkpoints(folder, checkpoint.load_newest(folder / "checkpoints")) == [
        "status.json says that step 40 was saved; it is gone, resuming from step_00000030"
    ]


# The data of a run that is resumed


CHANGES = {
    "a file was added": (DATA._replace(files={**DATA.files, "cat/3.png": "1,1"}), "1 file added: cat/3.png"),
    "a file was removed": (DATA._replace(files={"cat/1.png": "100,5"}), "1 file removed: cat/2.png"),
    "a file was replaced": (
        DATA._replace(files={"cat/1.png": "100,5", "cat/2.png": "300,9"}),
        "1 file changed: cat/2.png",
    ),
    "another order": (DATA._replace(files=dict(reversed(DATA.files.items()))), "the same files in another order"),
    "other labels": (
        DATA._replace(splits={"train": {"images": 48, "labels": "b"}}),
        "split train: other labels",
    ),
    "fewer images": (
        DATA._replace(splits={"train": {"images": 47, "labels": "b"}}),
        "split train: 48 images before, 47 images now",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_is_refused_unless_it_is_allowed(change: str, tmp_path: Path) -> None:
    changed, message = CHANGES[change]
    folder = open_run(recipe(), tmp_path / "run").folder
    with pytest.raises(DataError, match=re.escape(message)) as error:
        open_run(recipe(), folder, data=changed)
    assert str(error.value).endswith("Restore the data, or resume with the data as it is: --allow data")
    opened = open_run(recipe(), folder, data=changed, allowed="data")
    assert message in opened.notes[0]
    # From now on it is the data of the run.
    assert open_run(recipe(), folder, data=changed).notes == []


def test_a_run_without_a_fingerprint_says_so(tmp_path: Path) -> None:
    folder = open_run(recipe(), tmp_path / "run").folder
    (folder / "data.json").write_text('{"half')
    [note] = open_run(recipe(), folder).notes
    assert "does not say which data it was started with" in note
