"""What takes its time is shown on a terminal's standard error, so that output can be piped."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.console import Console

from reptk.core.console import Logger


def working(text: str) -> AbstractContextManager[None]:
    """Show that `what` is under way, where it cannot be told how far it has come."""
    return Logger(console=Console(stderr=True)).status(text)


def progress(text: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show how far `what` has come."""
    return Logger(console=Console(stderr=True)).count(text, total, "")
