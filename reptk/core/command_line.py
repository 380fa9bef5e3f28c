"""What every command does alike: mistakes as one message with an exit code, warnings as one line."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from reptk.core.errors import DataError, ReptkError, UsageError


class ArgumentParser(argparse.ArgumentParser):
    """Raises `UsageError` where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Help: {self.prog} --help")


def run_command(run: Callable[[], int]) -> int:
    """Run a command. Returns its exit code; a user's mistake is one message on standard error, without a traceback."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return run()
        except ReptkError as error:
            _say(error)
            return error.exit_code
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # whoever read the output has seen enough: `reptk search ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141


def _say(error: ReptkError) -> None:
    """Every rank meets a user's mistake; rank 0 alone reports it. Bad data may be met by one rank, which then speaks."""
    rank = int(os.environ.get("RANK", 0))
    if rank == 0 or isinstance(error, DataError):
        print(f"error: {error}" if rank == 0 else f"error (rank {rank}): {error}", file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {message}", file=sys.stderr, flush=True)
