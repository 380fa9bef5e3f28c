"""Progress of long work on standard error, so that standard output can be piped: a bar, off a terminal a line a minute."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.console import Console

from reptk.core import distributed
from reptk.core.console import Logger


def spinner(text: str) -> AbstractContextManager[None]:
    """Show `text` while the block runs, for work whose progress cannot be measured."""
    return _logger().status(text)


def progress(text: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show `text` and how much is done; yields a function to call with the number of further items that are done."""
    return _logger().count(text, total, "")


def _logger() -> Logger:
    return Logger(prints=distributed.is_main(), console=Console(stderr=True))
