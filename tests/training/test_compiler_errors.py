"""A failure of torch.compile ends a run with one sentence; other errors are left alone."""

import runpy
from pathlib import Path

import pytest

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.training.compiler_errors import explain_compiler_errors


@pytest.fixture
def generated(tmp_path: Path) -> str:
    """A file such as the compiler generates, whose code fails."""
    path = tmp_path / "torchinductor_me" / "b.py"
    path.parent.mkdir()
    path.write_text("raise AssertionError('expected size 512==512, stride 9==1\\nmore')\n")
    return str(path)


def test_an_error_of_generated_code_says_what_to_change(generated: str) -> None:
    message = r"stride 9==1\); train without it: train\.compile=false"
    with pytest.raises(EnvironmentProblem, match=message), explain_compiler_errors(True):
        runpy.run_path(generated)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_other_errors_remain(is_compiled: bool) -> None:
    with pytest.raises(ZeroDivisionError), explain_compiler_errors(is_compiled):
        _ = 1 / 0
    with pytest.raises(DataError), explain_compiler_errors(is_compiled):
        raise DataError("no image")


def test_nothing_is_said_of_the_compiler_if_nothing_is_compiled(generated: str) -> None:
    with pytest.raises(AssertionError), explain_compiler_errors(False):
        runpy.run_path(generated)
