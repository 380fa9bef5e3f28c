"""The argument parsers of the commands, which build them when they are called."""

import importlib
from collections.abc import Sequence
from unittest import mock

from reptk.cli import VERBS
from reptk.core.command_line import ArgumentParser


class _Reached(BaseException):
    """Ends a command when it parses its arguments; no `except Exception` in it may end that."""

    def __init__(self, parser: ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(verb: str) -> ArgumentParser:
    """Return the parser of a verb of `reptk`."""

    def reach(parser: ArgumentParser, arguments: Sequence[str] | None = None) -> None:
        raise _Reached(parser)

    module = importlib.import_module(VERBS[verb].module)
    with (
        mock.patch.object(ArgumentParser, "parse_args", reach),
        mock.patch.object(ArgumentParser, "parse_intermixed_args", reach),
    ):
        try:
            module.main([])
        except _Reached as reached:
            return reached.parser
    raise ValueError(f"reptk {verb} has not parsed its arguments")
