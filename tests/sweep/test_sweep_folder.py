"""Which folder belongs to which run of a sweep."""

from pathlib import Path

import pytest

from reptk.core.errors import UsageError
from reptk.sweep.grid import Grid, load_cells, parse_grid
from reptk.sweep.sweep_folder import Assignment, assign_folders, default_folder, folder_name
from sweep_runs import TINY_TOML, write_run

OUT = Path("out")


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY_TOML)


def grid_of(command: str) -> Grid:
    recipes, *pairs = command.split()
    return parse_grid(recipes, pairs)


def assign(command: str) -> Assignment:
    grid = grid_of(command)
    return assign_folders(load_cells(grid), grid.swept_keys, OUT)


def run_all(command: str) -> list[Path]:
    """Write the finished runs of a sweep, and return their folders."""
    folders = assign(command).folders
    for cell, folder in zip(load_cells(grid_of(command)), folders, strict=True):
        if not folder.exists():
            write_run(folder, {"knn@5": 0.5}, cell.recipe)
    return folders


def test_the_same_command_has_the_same_folders() -> None:
    folders = run_all("tiny.toml loss.temperature=0.1,0.5 seed=0..1")
    assert [folder.name for folder in folders][:2] == ["loss.temperature=0.1,seed=0", "loss.temperature=0.1,seed=1"]
    assert assign("tiny.toml loss.temperature=0.1,0.5 seed=0..1") == Assignment(folders, 4, [])
    # Another order, another spelling, and keys that change no result.
    again = assign("tiny.toml seed=0,1 loss.temperature=0.50,0.10 train.workers=1")
    assert again.folders == [folders[2], folders[3], folders[0], folders[1]]


@pytest.mark.parametrize(
    ("command", "num_earlier", "num_others"),
    [
        ("tiny.toml loss.temperature=0.1,0.5 seed=0..2", 4, 0),
        ("tiny.toml loss.temperature=0.1,0.5,0.9 seed=0..1", 4, 0),
        # 0.001 is the recipe's own rate.
        ("tiny.toml loss.temperature=0.1,0.5 optim.lr=0.001,0.01 seed=0..1", 4, 0),
        ("tiny.toml loss.temperature=0.1 seed=0..4", 2, 2),
        ("tiny.toml loss.temperature=0.1,0.5 seed=5..6", 0, 4),
    ],
)
def test_more_or_other_values_extend_a_sweep(command: str, num_earlier: int, num_others: int) -> None:
    earlier = run_all("tiny.toml loss.temperature=0.1,0.5 seed=0..1")
    assignment = assign(command)
    assert assignment.num_earlier == num_earlier
    assert len(assignment.others) == num_others
    assert len(set(assignment.folders)) == len(assignment.folders)
    new = [folder for folder in assignment.folders if folder not in earlier]
    assert len(new) == len(assignment.folders) - num_earlier


@pytest.mark.parametrize(
    "command",
    ["tiny.toml loss.temperature=0.1,0.5 seed=0..1 train.epochs=3", "supcon_digits loss.temperature=0.1,0.5 seed=0..1"],
)
def test_another_sweep_is_refused(command: str) -> None:
    run_all("tiny.toml loss.temperature=0.1,0.5 seed=0..1")
    with pytest.raises(UsageError, match=r"out holds the runs of another sweep\. Choose another --out") as error:
        assign(command)
    assert " in the run, " in str(error.value)


def test_another_loss_extends_a_sweep_over_losses() -> None:
    run_all("tiny.toml loss.name=supcon,simclr seed=0")
    # With the loss its arguments differ as well.
    assignment = assign("tiny.toml loss.name=tcl,simclr seed=0")
    assert assignment.num_earlier == 1
    assert len(assignment.others) == 1


def test_a_damaged_recipe_belongs_to_no_run() -> None:
    folders = run_all("tiny.toml seed=0..1")
    (folders[0] / "recipe.toml").write_text("no = [recipe")
    assignment = assign("tiny.toml seed=0..1")
    assert assignment.num_earlier == 1
    assert assignment.folders[0].name == "seed=0-2"
    assert assignment.others == [folders[0]]


def test_names_of_folders() -> None:
    assert folder_name("loss.name=tcl seed=0") == "loss.name=tcl,seed=0"
    names = {
        folder_name(label)
        for label in ("eval.knn.k=[1,5]", "eval.knn.k=[1.5]", "eval.knn.k=1,5", "data.root=/a/b", "data.root=a/b")
    }
    assert len(names) == 5
    for label in ("x" * 300, "../..", "\udcff", "data.root=~/x y"):
        name = folder_name(label)
        assert len(name) <= 100
        assert name.isascii()
        assert "/" not in name
        assert not name.startswith(".")


def test_the_default_folder_depends_on_keys_and_fixed_values() -> None:
    first = default_folder(grid_of("tiny.toml loss.temperature=0.1,0.5 seed=0..1"))
    assert first == Path("runs/sweeps/tiny,loss.temperature,seed")
    assert default_folder(grid_of("tiny.toml loss.temperature=0.1,0.5,0.9 seed=0..3 train.workers=2")) == first
    assert default_folder(grid_of("tiny.toml loss.temperature=0.1,0.5 seed=0..1 trackers.wandb.project=x")) == first
    assert default_folder(grid_of("tiny.toml loss.temperature=0.1,0.5 seed=0..1 train.epochs=3")) != first
    assert default_folder(grid_of("tiny.toml,supcon_digits")) == Path("runs/sweeps/tiny,supcon_digits")
