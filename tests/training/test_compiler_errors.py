"""A failure of torch.compile ends a run with one sentence; other errors are left alone."""

import pytest

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.training.compiler_errors import explain_compiler_errors

GENERATED = compile(
    "raise AssertionError('expected size 512==512, stride 9==1\\nmore')", "/tmp/torchinductor_me/a/b.py", "exec"
)


def test_an_error_of_generated_code_says_what_to_change() -> None:
    with pytest.raises(EnvironmentProblem, match=r"stride 9==1\); train without it: train\.compile=false"):
        with explain_compiler_errors(True):
            exec(GENERATED)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_other_errors_remain(is_compiled: bool) -> None:
    with pytest.raises(ZeroDivisionError), explain_compiler_errors(is_compiled):
        _ = 1 / 0
    with pytest.raises(DataError), explain_compiler_errors(is_compiled):
        raise DataError("no image")


def test_nothing_is_said_of_the_compiler_if_nothing_is_compiled() -> None:
    with pytest.raises(AssertionError), explain_compiler_errors(False):
        exec(GENERATED)
