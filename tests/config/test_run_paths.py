"""Paths that are not the folder of a run: what they are, and which run is meant."""

from pathlib import Path

import pytest

from recipe_files import write
from reptk.config.run_paths import describe_no_run
from reptk.recipe import main


@pytest.fixture(autouse=True)
def runs() -> None:
    """A sweep of two runs, ten runs of a recipe, and files that are none."""
    for folder in ("runs/sweeps/lr/runs/lr=1", "runs/sweeps/lr/runs/lr=2", "runs/tiny/9", "runs/tiny/10"):
        write(f"{folder}/recipe.toml", "")
        write(f"{folder}/model/model.safetensors", "")
        write(f"{folder}/checkpoints/step_00000010/state.pt", "")
    write("runs/sweeps/lr/logs/lr=1.log", "")
    write("exported/model.safetensors", "")
    write("resnet.pth", "")
    write("notes.txt", "")
    Path("empty").mkdir()


@pytest.mark.parametrize(
    ("path", "what", "run"),
    [
        ("runs/tiny/10/model", "this is the model folder of a run", "runs/tiny/10"),
        ("runs/tiny/10/model/", "this is the model folder of a run", "runs/tiny/10"),
        ("runs/tiny/10/model/model.safetensors", "this is a file of a run", "runs/tiny/10"),
        ("runs/tiny/10/recipe.toml", "this is the recipe of a run", "runs/tiny/10"),
        ("runs/tiny/10/checkpoints", "this is a folder of checkpoints of a run", "runs/tiny/10"),
        ("runs/tiny/10/checkpoints/step_00000010/state.pt", "this is a file of checkpoints of a run", "runs/tiny/10"),
        ("runs/sweeps/lr", "this is the folder of a sweep of 2 runs", "runs/sweeps/lr/runs/lr=1"),
        ("runs/sweeps/lr/runs", "this is a folder that holds 2 runs", "runs/sweeps/lr/runs/lr=2"),
        ("runs/tiny", "this is a folder that holds 2 runs", "runs/tiny/10"),
        ("runs", "this is a folder that holds 2 runs", "runs/tiny/10"),
        ("tiny", "there is no folder tiny", "runs/tiny/10"),
        ("exported", "this is a model folder without the run that it is from", None),
        ("resnet.pth", "this is a file of weights outside of the folder of a run", None),
        ("notes.txt", "this is a file, and a run is a folder", None),
        ("empty", "this is not the folder of a run", None),
        ("gone", "there is no folder gone", None),
    ],
)
def test_what_a_path_is_and_the_run_to_name_instead(path: str, what: str, run: str | None) -> None:
    no_run = describe_no_run(path)
    assert no_run.what.startswith(what)
    if run is None:
        assert no_run.hint("--from ") == ""
    else:
        assert no_run.hint("--from ").endswith(f": --from {run}")


def test_the_run_around_the_current_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("runs/tiny/9").resolve()
    monkeypatch.chdir(folder / "model")
    assert describe_no_run(".").hint() == f". Name the run: {folder}"


@pytest.mark.parametrize(
    "arguments", [["runs/tiny"], ["runs/tiny", "--resume"], ["tiny.toml", "--resume", "--out", "runs/tiny"]]
)
def test_a_folder_of_runs_is_no_recipe_and_cannot_be_resumed(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(
        "runs/tiny: this is a folder that holds 2 runs. Name one of them, for example: runs/tiny/10\n"
    )
