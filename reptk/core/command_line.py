"""The frame of all commands: errors are printed as one message with an exit code, and warnings as one line."""

import argparse
import codecs
import io
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from reptk.core.disk_space import disk_problem, is_disk_full
from reptk.core.errors import DataError, EnvironmentProblem, ReptkError, UsageError
from reptk.core.memory_errors import is_out_of_memory, memory_problem
from reptk.core.passwords import hide_passwords
from reptk.core.slurm import set_rank_variables
from reptk.core.stop_signals import INTERRUPTED, Stopped, handled_stop_signals

SECONDS_FOR_RANK_0 = 3.0
"""How long other ranks wait with their end after an error."""

BROKEN_PIPE = 141
"""128 + SIGPIPE."""

MEMORY_ADVICE = "Make the batches (--batch-size), images or sets smaller, close other programs, or use another device"

ESCAPED_BYTES = "reptk-escaped-bytes"
"""Name under which Python's codecs know `_escape`."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Help: {self.prog} --help")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, see `reptk.core.device.choose_device`."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: a GPU if there is one"
    )


def add_plugin_options(parser: argparse.ArgumentParser) -> None:
    """Add `--plugin` and `--trust`, see `reptk.config.plugins`."""
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    parser.add_argument(
        "--trust", action="store_true", help="run the plugin files that the recipe or run brings in its own folder"
    )


def require_single_process(advice: str) -> None:
    """Check that this process is not one of several that torchrun or srun has started.

    Args:
        advice: what to do, for the message.

    Raises:
        UsageError: it is.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        raise UsageError(f"this command is one process, and torchrun or srun has started {world_size}: {advice}")


def integer_from(minimum: int) -> Callable[[str], int]:
    """Return an argument type for argparse: an integer of at least `minimum`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {minimum}, got {text}")
        return int(text)

    return convert


def share(text: str) -> float:
    """An argument type for argparse: a number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text}")
    return value


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; a `ReptkError` or `OSError` is printed to standard error without a traceback."""
    _escape_unprintable_names()
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning  # restored by catch_warnings
        try:
            with handled_stop_signals():
                set_rank_variables()
                return command()
        except ReptkError as error:
            return _report(error)
        except Stopped as stopped:
            return stopped.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:  # the reader has closed the pipe: `reptk search ... | head`
            # Python flushes standard output when it exits, which would raise once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except Exception as error:
            problem = _problem(error)
            if problem is None:
                _report_to_torchrun(error)
                raise
            return _report(problem)


def _report(error: ReptkError) -> int:
    """Print an error, and return its exit code."""
    _print_error(error)
    _report_to_torchrun(error)
    if int(os.environ.get("RANK", 0)) != 0:
        # Rank 0 prints what all ranks meet, and torchrun ends it as soon as another rank ends.
        time.sleep(SECONDS_FOR_RANK_0)
    return error.exit_code


def _report_to_torchrun(error: Exception) -> None:
    """Write the error into the file from which torchrun learns why a rank has ended; see `torch.distributed.elastic`."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def _problem(error: Exception) -> EnvironmentProblem | None:
    """Return the message for what the machine refuses; None for an error of the code."""
    if is_out_of_memory(error):
        return memory_problem(error, MEMORY_ADVICE)
    if isinstance(error, OSError):  # what is not expected where it occurs: a name that is too long, a disk that fails
        return EnvironmentProblem(_describe(error))
    return None


def _describe(error: OSError) -> str:
    """Return what the operating system refuses, and why, in one line."""
    reason = error.strerror or str(error) or type(error).__name__
    if is_disk_full(error):
        if error.filename is None:
            return f"a disk is full ({reason}). Free some space"
        return str(disk_problem(Path(os.fsdecode(error.filename)), error))
    if error.filename is None:
        return f"the operating system reports: {reason}"
    return f"cannot use {error.filename}: {reason}"


def _escape_unprintable_names() -> None:
    """Make standard output and standard error print bytes of file names that are not UTF-8 as `\\xe9`, not raise."""
    codecs.register_error(ESCAPED_BYTES, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED_BYTES)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Return what is printed in place of characters that the output cannot encode, and where to continue; see `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escaped = ""
    for letter in error.object[error.start : error.end]:
        if "\udc80" <= letter <= "\udcff":
            # Python's stand-in for a byte that is not UTF-8.
            escaped += f"\\x{ord(letter) - 0xDC00:02x}"
        else:
            escaped += letter.encode("ascii", "backslashreplace").decode("ascii")
    return escaped, error.end


def _print_error(error: ReptkError) -> None:
    """Print an error on rank 0, since most errors occur on all ranks; one of the data may occur on any single rank."""
    # From the environment: the process group may not exist yet, and torch may not be imported.
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        print(f"error: {hide_passwords(str(error))}", file=sys.stderr, flush=True)
    elif isinstance(error, DataError):
        print(f"error (rank {rank}): {hide_passwords(str(error))}", file=sys.stderr, flush=True)


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {hide_passwords(str(message))}", file=sys.stderr, flush=True)
