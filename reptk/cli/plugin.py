"""Write parts, check them, and see which there are: reptk plugin new loss my_loss"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reptk.core.command_line import ArgumentParser, run_command

KINDS = ("loss", "method", "dataset", "views", "evaluator", "store")
"""The keys of `reptk.config.part_catalog.KINDS`, which would import pydantic for --help."""

EXAMPLES = """examples:
  reptk plugin new loss my_loss
  reptk plugin check my_loss.py
  reptk plugin check my_loss.py margin=0.3
  reptk plugin check acme.parts my_data root=photos
  reptk plugin check my_store.py address=my_store:trial.json
  reptk plugin list --kind loss
  reptk plugin list "sim*" --plugin my_loss.py

exit codes of check: 0 all requirements met, 1 some violated, 2 cannot be checked
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    # Imported late, so that --help does not wait for torch.
    if args.action == "new":
        from reptk.cli.new_plugin import create_plugin

        return create_plugin(args.kind, args.name, args.out)
    if args.action == "check":
        from reptk.cli.plugin_check import check_plugin

        return check_plugin(args.plugin, args.name_and_arguments, fixed=args.fixed)
    from reptk.cli.plugin_list import list_parts

    return list_parts(args.pattern, args.kind, args.plugin)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk plugin",
        description="Write a part with its test, check one, or list all.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="new|check|list")

    new = actions.add_parser("new", help="write NAME.py, a small part that works, and its test")
    new.add_argument("kind", choices=KINDS, help=", ".join(KINDS))
    new.add_argument("name", help="of the part, as in a recipe or an address, and of the file; e.g. my_loss")
    new.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to write; default: this folder")

    check = actions.add_parser("check", help="try everything that a part must do, and say what it does not")
    check.add_argument("plugin", help="a .py file or module that registers parts; it is executed")
    check.add_argument(
        "name_and_arguments",
        nargs="*",
        metavar="NAME key=value",
        help="which part, if there are several, and its arguments; default: each with its defaults",
    )
    check.add_argument("--fixed", action="store_true", help="the views are meant to be the same for every key")

    listing = actions.add_parser("list", help="every part, where it comes from, and its arguments")
    listing.add_argument("pattern", nargs="?", help='names to list, e.g. "sim*"; default: all')
    listing.add_argument("--kind", choices=KINDS, help=", ".join(KINDS))
    listing.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    return parser.parse_args(arguments)
