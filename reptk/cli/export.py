"""Take an encoder out into another program's format: reptk export runs/tcl_selfsup_photos/1 --to onnx --out photos.onnx"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reptk.cli.export_encoder import ENCODER_FORMATS, export_encoder
from reptk.core.command_line import ArgumentParser, integer_from, run_command
from reptk.core.errors import UsageError

EXAMPLES = """examples:
  reptk export runs/tcl_selfsup_photos/1 --to onnx --out photos.onnx
  reptk export runs/tcl_selfsup_photos/1 --to pt2 --out photos.pt2 --data my_photos
  reptk export runs/tcl_selfsup_photos/1 --to timm --out photos_model
  reptk export runs/tcl_selfsup_photos/1 --to safetensors --out photos.safetensors
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    if args.to in ENCODER_FORMATS:
        return export_encoder(args)
    raise UsageError(f"--to must be {', '.join(ENCODER_FORMATS)}, got {args.to!r}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk export",
        description="Write the encoder of a run in the format of another program, and compare what that program computes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a run's folder or its model folder")
    parser.add_argument("--to", required=True, metavar="TARGET", help=f"a format: {', '.join(ENCODER_FORMATS)}")
    parser.add_argument("--out", type=Path, help="the file to write; with --to timm, the folder")
    parser.add_argument(
        "--data", help="images to compare: a folder, a table or a data set's name; default: the run's own"
    )
    parser.add_argument(
        "--images", type=integer_from(1), default=64, help="how many images are compared; default: 64", metavar="N"
    )
    parser.add_argument("--force", action="store_true", help="replace --out if it exists")
    return parser.parse_args(arguments)
