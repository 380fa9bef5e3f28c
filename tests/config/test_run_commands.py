"""The commands that repeat or resume a run."""

import shlex
from pathlib import Path

import pytest

from recipe_files import LOSS_PLUGIN, TINY
from reptk.config import load
from reptk.config.run_commands import recipe_command, resume_command
from reptk.core.errors import DataError
from reptk.models.model_folder import find_model


def test_commands_can_be_typed_again_whatever_the_folder_is_called() -> None:
    command = resume_command(Path("my runs/it's 1"), [])
    assert shlex.split(command) == ["python", "-m", "reptk.recipe", "my runs/it's 1", "--resume"]
    assert resume_command("runs/tiny/1", []) == "python -m reptk.recipe runs/tiny/1 --resume"
    assert recipe_command("my run") == "python -m reptk.recipe 'my run'"


@pytest.mark.parametrize(
    ("plugins", "options"),
    [
        ([], []),
        (["plugins/my_loss.py"], ["--trust"]),
        (["reptk.plugins.dcl"], []),
        (["my_parts", "plugins/a.py", "plugins/b.py"], ["--trust", "--plugin", "my_parts"]),
    ],
)
def test_plugins_are_those_of_the_recipe_in_the_folder(plugins: list[str], options: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f"plugins = {plugins}\n")
    for command in (resume_command(tmp_path), resume_command(tmp_path, plugins)):
        assert shlex.split(command) == ["python", "-m", "reptk.recipe", str(tmp_path), "--resume", *options]


@pytest.mark.parametrize("text", ["plugins = 3", "plugins = [", 'plugins = ["\\u001b[31m"]'])
def test_a_recipe_of_somebody_else_is_no_obstacle(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    assert resume_command(tmp_path).isprintable()
    assert resume_command(tmp_path / "gone").endswith("--resume")


def test_the_command_for_a_run_without_a_model_is_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    (folder / "plugins").mkdir(parents=True)
    (folder / "plugins" / "my_loss_of_a_run.py").write_text(LOSS_PLUGIN)
    (folder / "recipe.toml").write_text(f'plugins = ["plugins/my_loss_of_a_run.py"]\n{TINY}')
    with pytest.raises(DataError) as error:
        find_model(folder, folder)
    command = str(error.value).partition("checkpoint: ")[2]
    words = shlex.split(command)
    assert words == ["python", "-m", "reptk.recipe", str(folder), "--resume", "--trust"]
    assert load(words[3], trust="--trust" in words).plugins
