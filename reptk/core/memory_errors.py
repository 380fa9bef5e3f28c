"""A device or a machine without enough memory is called that, with what to change."""

import sys

from reptk.core.errors import EnvironmentProblem

ALLOCATOR_TEXT = "can't allocate memory"
"""What torch's RuntimeError contains if the memory of the machine, not that of a GPU, is used up."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be allocated, on a GPU or on the machine."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    # On some devices it is a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ALLOCATOR_TEXT in str(error)
    )


def memory_problem(error: BaseException, advice: str) -> EnvironmentProblem:
    """Return the message for an error of `is_out_of_memory`.

    Args:
        error: what was raised.
        advice: what the user can do, as the sentences that follow.
    """
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return EnvironmentProblem(f"out of memory ({reason.rstrip('.')}). {advice}")
