"""Upload the model of a run to the Hugging Face hub: reptk push runs/tcl_selfsup_photos/1 me/photos"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reptk.core.command_line import ArgumentParser, run_command

EXAMPLES = """examples:
  reptk push runs/tcl_selfsup_photos/1 me/photos --dry-run to_upload
  reptk push runs/tcl_selfsup_photos/1 me/photos --private --license apache-2.0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.export.hub import push  # imports torch: only once the arguments are known to be right

    push(
        args.run,
        args.repository,
        dry_run=args.dry_run,
        private=args.private,
        license_id=args.license,
        report=print,
    )
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk push",
        description="Upload the model of a run, with a card that says how it was trained and measured.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="a run's folder or its model folder")
    parser.add_argument("repository", metavar="USER/NAME", help="on the hub; it is created if it does not exist")
    parser.add_argument(
        "--dry-run", type=Path, metavar="FOLDER", help="write what would be uploaded into a folder, and upload nothing"
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="create a private repository; default: as set for the user or organization",
    )
    parser.add_argument(
        "--license", metavar="ID", help="of the model, e.g. apache-2.0; default: that of the weights it started from"
    )
    return parser.parse_args(arguments)
