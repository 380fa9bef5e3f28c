"""Download a model from the Hugging Face hub: reptk pull me/photos --out photos_model"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reptk.core.command_line import ArgumentParser, run_command

EXAMPLES = """examples:
  reptk pull me/photos --out photos_model && reptk embed photos_model --data my_photos --out photos.safetensors
  reptk pull me/photos@v2 --out photos_model --force
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.export.hub import pull  # imports torch: only once the arguments are known to be right

    folder = pull(args.repository, args.out, force=args.force)
    print(f"{folder}: use it like a run, e.g. reptk embed {folder} --data my_photos --out photos.safetensors")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk pull",
        description="Download a model that reptk push has uploaded, and check that it is whole.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", metavar="USER/NAME[@REVISION]", help="on the hub")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--force", action="store_true", help="replace the model in --out if there is one")
    return parser.parse_args(arguments)
