"""Progress of long work on standard error, so that standard output can be piped: a bar, off a terminal a line a minute."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.console import Console

from reptk.core.console import Logger


def spinner(text: str) -> AbstractContextManager[None]:
    """Show `text` while the block runs, for work whose progress cannot be measured."""
    return Logger(console=Console(stderr=True)).status(text)


def progress(text: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show `text` and how much is done; yields a function to call with the number of further items that are done."""
    return Logger(console=Console(stderr=True)).count(text, total, "")
