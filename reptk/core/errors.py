"""Errors with one clear message, no traceback and an exit code that says what has to change."""


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
