"""A page for each verb of the command line, from its argument parser."""

import argparse

from reptk.cli import VERBS
from reptk_pages.command_parsers import parser_of
from reptk_pages.markdown import code, code_block, escape, table, toctree

HEAD = """# Command line

`reptk VERB ...` and `python -m reptk VERB ...` are the same. `reptk recipe` is `python -m reptk.recipe`. The exit codes are on
the page [Errors and exit codes](../errors.md). Every verb has `--help`.
"""


def command_pages() -> dict[str, str]:
    """Return the pages by their paths."""
    rows = [[f"[`reptk {name}`](commands/{name}.md)", verb.summary] for name, verb in VERBS.items()]
    pages = {
        "commands.md": "\n".join(
            [
                HEAD,
                table(["command", "what it does"], rows),
                toctree([f"commands/{name}" for name in VERBS], hidden=True),
            ]
        )
    }
    for name in VERBS:
        pages[f"commands/{name}.md"] = _page(name)
    return pages


def _page(verb: str) -> str:
    return "\n".join([f"# `reptk {verb}`\n", *_sections(parser_of(verb))])


def _sections(parser: argparse.ArgumentParser) -> list[str]:
    sections = [f"{escape(parser.description or '')}\n", code_block(_usage(parser))]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, subparser in action.choices.items():
                sections.append(f"## `{subparser.prog}`\n\n{escape(helps.get(name) or '')}\n")
                sections += [*_sections(subparser)]
    rows = [_row(parser, action) for action in parser._actions if _is_listed(action)]
    if rows:
        sections.append(table(["argument", "meaning"], rows))
    if parser.epilog:
        sections.append(code_block(parser.epilog))
    return sections


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage in lines of at most 100 characters, whatever the terminal's width."""
    formatter = argparse.HelpFormatter(parser.prog, width=100)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help()


def _is_listed(action: argparse.Action) -> bool:
    return not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    value = ""
    if action.nargs != 0:
        value = action.metavar or action.dest.upper()
        if action.choices:
            value = " or ".join(str(choice) for choice in action.choices)
    if not action.option_strings:
        name = code(action.metavar or action.dest)
    else:
        name = ", ".join(code(f"{option} {value}".strip()) for option in action.option_strings)
    text = (action.help or "").replace("%%", "%")
    return [name, escape(text)]
