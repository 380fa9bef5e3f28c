"""Errors that torch.compile, or the code that it generates, raises during training, with what to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import TracebackType

from reptk.core.errors import EnvironmentProblem, ReptkError

COMPILER_FILES = ("torchinductor", "torch/_inductor", "torch/_dynamo", "torch/_functorch")
"""Parts of the names of the files that raise such errors: generated code lies in a folder `torchinductor_USER`."""


@contextmanager
def explain_compiler_errors(is_compiled: bool) -> Iterator[None]:
    """Turn errors of the compiler inside the block into an `EnvironmentProblem`, if anything is compiled."""
    try:
        yield
    except Exception as cause:
        is_explained = isinstance(cause, ReptkError)
        if not is_compiled or is_explained or not _comes_from_compiler(cause.__traceback__):
            raise
        reason = str(cause).strip().partition("\n")[0]
        raise EnvironmentProblem(
            f"torch.compile failed ({type(cause).__name__}: {reason}); train without it: train.compile=false, or in another "
            "memory format: train.channels_last=false"
        ) from cause


def _comes_from_compiler(traceback: TracebackType | None) -> bool:
    innermost = ""
    for frame, _ in walk_tb(traceback):
        innermost = frame.f_code.co_filename
    return any(part in innermost for part in COMPILER_FILES)
