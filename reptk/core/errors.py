"""Errors with one clear message, no traceback and an exit code that says what has to change."""

from collections.abc import Sequence


class ReptkError(Exception):
    """Base of all errors that are reported by their message alone."""

    exit_code = 1


class UsageError(ReptkError):
    """The command line, a recipe or an argument is wrong (exit code 2)."""

    exit_code = 2


class DataError(ReptkError):
    """The images are missing, unreadable or do not fit the recipe (exit code 3)."""

    exit_code = 3


class EnvironmentProblem(ReptkError):  # noqa: N818 - EnvironmentError is a builtin
    """The machine lacks something: a device, a package, a writable folder (exit code 4)."""

    exit_code = 4


class NumericalError(ReptkError):
    """Training or an encoder produced a value that is not finite (exit code 5)."""

    exit_code = 5


class NonFiniteValues(ValueError):  # noqa: N818 - it is a ValueError
    """Vectors that were passed to a function hold NaN or infinity."""


class NonFiniteRows(NumericalError):  # noqa: N818 - as NonFiniteValues
    """Embeddings that were passed to a loss hold NaN or infinity.

    Args:
        message: says which rows.
        rows: their numbers.
        num_rows: how many rows there are.
    """

    def __init__(self, message: str, rows: Sequence[int] = (), num_rows: int = 0) -> None:
        super().__init__(message)
        self.rows = list(rows)
        self.num_rows = num_rows


class NonFiniteStep(NumericalError):  # noqa: N818 - as NonFiniteValues
    """A training step had a loss, embeddings or a gradient that are not finite. Every rank raises it, in the same step.

    The weights, the state of the optimizer and what `Method.after_step` updates are those from before the step; running
    statistics of BatchNorm are not, since the forward pass writes them.

    Args:
        message: the step, the ranks, the cause, the images and what to change.
        step: number of the step, from 0.
        ranks: where it began; empty if that is not known.
        samples: names of the images: those whose embeddings are not finite, else all of the batches of those ranks.
    """

    def __init__(self, message: str, *, step: int = 0, ranks: Sequence[int] = (), samples: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.step = step
        self.ranks = list(ranks)
        self.samples = list(samples)

    @property
    def rank(self) -> int | None:
        """The first of `ranks`; None if there is none."""
        if not self.ranks:
            return None
        return self.ranks[0]

    is_agreed: bool = True
    """False: other ranks may not know of it, and wait for this one."""

    def with_sentence(self, sentence: str) -> "NonFiniteStep":
        """Return the same error with a further sentence, e.g. which checkpoint is the last one before it."""
        return NonFiniteStep(f"{self}. {sentence}", step=self.step, ranks=self.ranks, samples=self.samples)


def first_line(cause: BaseException) -> str:
    """Return the first line of an exception's message, or its type if there is none."""
    message = str(cause).strip() or type(cause).__name__
    return message.splitlines()[0]
