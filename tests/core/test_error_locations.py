"""The line of a user's code in which an error was raised."""

import runpy
from pathlib import Path

import pytest

from reptk.core.error_locations import CodeLine, location_of, shown_path


def error_of(code: str, path: Path) -> BaseException:
    """What a file with this code raises."""
    path.write_text(code)
    try:
        runpy.run_path(str(path))
    except Exception as error:
        # Without the frame of this file.
        return error.with_traceback(error.__traceback__.tb_next)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "call",
    ["no_such_name", "json.loads('{')", "torch.zeros(2).view(3)", "expand_home(3)"],
    ids=["its own", "of the standard library", "of an installed package", "of reptk"],
)
def test_the_line_is_that_of_the_user(call: str, tmp_path: Path) -> None:
    file = tmp_path / "part.py"
    error = error_of(
        f"import json, torch\nfrom reptk.core.files import expand_home\n\ndef function():\n    {call}\n\nfunction()\n",
        file,
    )
    assert location_of(error) == CodeLine(file, 5)


def test_the_line_of_a_syntax_error_is_that_which_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "part.py"
    assert location_of(error_of("x = 1\ny = (\n", file)) == CodeLine(file, 2)


def test_an_error_without_a_file_has_no_place() -> None:
    assert location_of(ValueError("never raised")) is None
    assert location_of(SyntaxError("no file", (None, None, None, None))) is None


def test_paths_in_the_current_folder_are_shown_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "parts" / "loss.py") == "parts/loss.py"
    assert shown_path(Path("parts/../loss.py")) == "loss.py"
    assert shown_path(tmp_path.parent / "loss.py") == str(tmp_path.parent.resolve() / "loss.py")
