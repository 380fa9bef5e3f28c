"""The frame of all commands: names of files that are not UTF-8 are printed with their bytes escaped."""

import io
import os
import sys
import warnings

import pytest
from rich.console import Console

from reptk.core.command_line import run_command
from reptk.core.console import Logger
from reptk.core.errors import DataError

NAME = os.fsdecode(b"caf\xe9.jpg")


@pytest.mark.filterwarnings("always")
def test_names_that_are_not_utf8_are_printed_with_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a shell opens them, unlike pytest's own.
    stdout, stderr = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, "utf-8", "strict", write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(stderr, "utf-8", "strict", write_through=True))

    def command() -> int:
        print(NAME)
        Logger(console=Console()).line(NAME)
        warnings.warn(NAME, stacklevel=1)
        raise DataError(f"cannot read {NAME} \ud800")

    assert run_command(command) == 3
    assert stdout.getvalue() == b"caf\\xe9.jpg\n" * 2
    assert stderr.getvalue() == b"warning: caf\\xe9.jpg\nerror: cannot read caf\\xe9.jpg \\ud800\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "a disk is full (No space left on device). Free some space"),
        (OSError(5, "Input/output error"), "the operating system reports: Input/output error"),
        (OSError(36, "File name too long", "xxx"), "cannot use xxx: File name too long"),
        (PermissionError("not now"), "the operating system reports: not now"),
    ],
)
def test_what_the_operating_system_refuses_is_one_message(
    error: OSError, message: str, capsys: pytest.CaptureFixture
) -> None:
    def command() -> int:
        raise error

    assert run_command(command) == 4
    assert capsys.readouterr().err == f"error: {message}\n"
