"""A run's folder: created, described, resumed."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from reptk.config import Recipe, load, override, validate
from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.training import checkpoint, run_folder


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


def test_folders_are_numbered(working_folder: Path) -> None:
    for number in (1, 2, 3):
        assert run_folder.create(recipe(), None) == Path(f"runs/tiny/{number}")
    shutil.rmtree("runs/tiny/2")
    Path("runs/tiny/10").mkdir()
    Path("runs/tiny/notes").mkdir()
    assert run_folder.newest("tiny") == Path("runs/tiny/10")
    assert run_folder.create(recipe(), None) == Path("runs/tiny/11")
    assert run_folder.create(recipe(name="other"), None) == Path("runs/other/1")


def test_two_runs_never_get_the_same_number(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_folder.create(recipe(), None)
    monkeypatch.setattr(run_folder, "_numbered_folders", lambda runs: [])  # as the second process read them
    assert run_folder.create(recipe(), None) == first.parent / "2"


def test_new_folder_contains_the_complete_recipe(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "deep" / "new", tmp_path / "empty"):
        assert run_folder.create(recipe("loss.k1=7.0"), str(folder)) == folder
        assert load(folder) == recipe("loss.k1=7.0")
        assert run_folder.read_status(folder) == {"status": "running"}
        assert file_names(folder) == ["recipe.toml", "status.json"]


@pytest.mark.parametrize("status", ["running", "finished", "failed", "interrupted"])
def test_folder_with_another_run_is_refused_and_described(status: str, tmp_path: Path) -> None:
    folder = run_folder.create(recipe(), tmp_path / "mine")
    run_folder.set_status(folder, status, reason="why")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=rf"another run \(tiny, {status}\)") as error:
        run_folder.create(recipe(name="other"), folder)
    assert str(error.value).endswith(f"python -m reptk.recipe {folder} --resume")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        run_folder.create(recipe(), tmp_path)
    assert file_names(tmp_path) == ["thesis.tex"]


def test_plugin_files_are_copied_and_named_from_the_folder(tmp_path: Path) -> None:
    plugin = tmp_path / "somewhere" / "my_loss.py"
    plugin.parent.mkdir()
    plugin.write_text("# a loss\n")
    folder = run_folder.create(recipe(plugins=(str(plugin), "reptk.plugins.dcl")), tmp_path / "run")
    plugin.write_text("# changed since\n")
    assert (folder / "plugins" / "my_loss.py").read_text() == "# a loss\n"
    written = tomllib.loads((folder / "recipe.toml").read_text())
    assert written["plugins"] == ["plugins/my_loss.py", "reptk.plugins.dcl"]
    assert str(tmp_path / "somewhere") not in (folder / "recipe.toml").read_text()


@pytest.mark.parametrize("out", ["file/run", "file", None])
def test_folder_that_cannot_be_created_is_an_environment_problem(out: str | None, working_folder: Path) -> None:
    Path("file").write_text("")
    Path("runs").write_text("")
    with pytest.raises(EnvironmentProblem, match=re.escape(out or "runs/")):
        run_folder.create(recipe(), out)


def test_dangling_link_is_an_environment_problem(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs").symlink_to("unmounted")
    monkeypatch.setattr(run_folder, "count", lambda first: range(first, first + 100))
    with pytest.raises(EnvironmentProblem, match="runs"):
        run_folder.create(recipe(), None)


# The folder of a run that is resumed


def test_run_is_reopened_with_the_recipe_it_was_started_with(tmp_path: Path) -> None:
    folder = run_folder.create(recipe(), tmp_path / "run")
    run_folder.set_status(folder, "interrupted")
    may_change = ("train.workers=3", "train.device=cpu", "train.log_every_steps=1", "train.checkpoint_every_epochs=2")
    for equivalent in (recipe(), load(folder), recipe(*may_change), recipe(plugins=("elsewhere.py",))):
        assert run_folder.reopen(equivalent, folder) == folder
        assert run_folder.read_status(folder) == {"status": "running"}


def test_keys_that_differ_are_listed(tmp_path: Path) -> None:
    folder = run_folder.create(recipe("encoder.drop_path=0.1"), tmp_path / "run")
    run_folder.set_status(folder, "interrupted")
    other = recipe("loss.k1=7.0", "encoder.head_width=12", "train.workers=3", "encoder.drop_path=0.1")
    with pytest.raises(UsageError) as error:
        run_folder.reopen(other, folder)
    first, *lines = str(error.value).splitlines()
    assert first == f"{folder} was started with another recipe; resume it with its own:"
    k1 = recipe().loss["k1"]
    assert [line.split(maxsplit=1) for line in lines] == [
        ["encoder.head_width", "None in the run, 12 now"],
        ["loss.k1", f"{k1!r} in the run, 7.0 now"],
    ]
    assert run_folder.read_status(folder) == {"status": "interrupted"}


def test_another_length_is_recorded_and_nothing_else(tmp_path: Path) -> None:
    folder = run_folder.create(recipe(plugins=()), tmp_path / "run")
    before = (folder / "recipe.toml").read_text()
    run_folder.reopen(recipe("train.epochs=5", "train.workers=3"), folder)
    assert (folder / "recipe.toml").read_text() == before.replace("epochs = 2", "epochs = 5", 1)


def test_a_run_is_complete_only_with_all_epochs_of_the_recipe(tmp_path: Path) -> None:
    folder = run_folder.create(recipe(), tmp_path / "run")
    assert not run_folder.is_complete(recipe(), folder)
    run_folder.set_status(folder, "finished")
    assert run_folder.is_complete(recipe(), folder)
    with pytest.raises(UsageError, match="holds no checkpoint"):
        run_folder.is_complete(recipe("train.epochs=3"), folder)
    with pytest.raises(UsageError, match="has trained for 2 epochs, and"):
        run_folder.is_complete(recipe("train.epochs=1"), folder)
    checkpoint.save(folder / "checkpoints", 6, {"step": 6})
    assert not run_folder.is_complete(recipe("train.epochs=3"), folder)


def test_steps_of_the_checkpoint_limit_the_epochs_from_below(tmp_path: Path) -> None:
    folder = run_folder.create(recipe(), tmp_path / "run")
    run_folder.check_epochs(folder, epochs=1, steps_per_epoch=3)
    checkpoint.save(folder / "checkpoints", 5, {"step": 5})
    run_folder.check_epochs(folder, epochs=2, steps_per_epoch=3)
    with pytest.raises(UsageError, match=r"has trained for 1\.66667 epochs, and train\.epochs=1 is fewer"):
        run_folder.check_epochs(folder, epochs=1, steps_per_epoch=3)


def test_nothing_to_resume_is_an_error(working_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing to resume in empty: there is no recipe\.toml"):
        run_folder.reopen(recipe(), Path("empty"))
    with pytest.raises(UsageError, match="no run of tiny in runs/tiny"):
        run_folder.newest("tiny")


def test_run_that_cannot_be_written_is_an_environment_problem(tmp_path: Path) -> None:
    folder = run_folder.create(recipe(), tmp_path / "run")
    (folder / "status.json").unlink()
    (folder / "status.json").mkdir()
    assert run_folder.read_status(folder) == {"status": "unknown"}
    with pytest.raises(EnvironmentProblem, match=f"cannot write to {folder}"):
        run_folder.reopen(recipe(), folder)
