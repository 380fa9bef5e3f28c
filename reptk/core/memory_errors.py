"""A device or a machine without enough memory is called that, with what to change."""

from reptk.core.errors import EnvironmentProblem

OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "size calculation overflowed")
"""What the messages of torch's RuntimeErrors contain, in any case, if it does not get memory, of a GPU or of the machine."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be allocated, on a GPU or on the machine."""
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in OUT_OF_MEMORY_WORDS)


def memory_problem(error: BaseException, advice: str) -> EnvironmentProblem:
    """Return the message for an error of `is_out_of_memory`.

    Args:
        error: what was raised.
        advice: what the user can do, as the sentences that follow.
    """
    reason = str(error).strip().partition("\n")[0] or "an array was too large"
    return EnvironmentProblem(f"not enough memory ({reason.rstrip('.')}). {advice}")
