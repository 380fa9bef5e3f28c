"""Take an encoder or embeddings out into another program's format: reptk export runs/mine --to onnx --out mine.onnx

What `--to` names decides who writes: a format of `ENCODER_FORMATS` that of encoders, anything else is the address of a store.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from reptk.cli.export_encoder import ENCODER_FORMATS, export_encoder
from reptk.cli.export_to_store import export_to_store
from reptk.config.plugins import load_plugin
from reptk.core.command_line import ArgumentParser, integer_from, run_command
from reptk.core.errors import UsageError

EXAMPLES = """examples:
  reptk export runs/tcl_selfsup_photos/1 --to onnx --out photos.onnx
  reptk export runs/tcl_selfsup_photos/1 --to pt2 --out photos.pt2 --data my_photos
  reptk export runs/tcl_selfsup_photos/1 --to timm --out photos_model
  reptk export runs/tcl_selfsup_photos/1 --to safetensors --out photos.safetensors
  reptk export photos.safetensors --to lance:photos.lance
  reptk export photos.safetensors --to 'postgresql://me@localhost/images?table=photos'
  reptk export photos.safetensors --to qdrant:http://localhost:6333/photos --plugin reptk.plugins.qdrant
"""


WORD = re.compile(r"[A-Za-z0-9_.-]+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    for plugin in args.plugin:
        load_plugin(plugin)
    if args.to in ENCODER_FORMATS:
        return export_encoder(args)
    if ":" not in args.to:
        target = "--to"
        # Anything else than a word may be settings of a database, with a password in any spelling.
        if WORD.fullmatch(args.to):
            target = f"--to {args.to!r}"
        raise UsageError(
            f"{target} is no format of encoders ({', '.join(ENCODER_FORMATS)}), and no address of a store "
            "(lance:FOLDER, postgresql://...)"
        )
    if args.out is not None or args.data is not None:
        raise UsageError(
            "--out and --data are for formats of encoders; the address of a store says where embeddings go"
        )
    return export_to_store(args.source, args.to, force=args.force)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk export",
        description="Write the encoder of a run in the format of another program, and compare what that program computes; or "
        "write embeddings into a vector database, in which reptk search and other programs find them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        help="an encoder: a run's folder or its model folder; or what reptk embed wrote: .safetensors, .parquet or a folder of "
        "parts",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help=f"a format of encoders: {', '.join(ENCODER_FORMATS)}; or the address of a store: lance:FOLDER, "
        "postgresql://USER@HOST/DATABASE?table=NAME, or a plugin's",
    )
    parser.add_argument("--out", type=Path, help="the encoder's file to write; with --to timm, the folder")
    parser.add_argument(
        "--data",
        help="images on which the encoder is compared: a folder, a table or a data set; default: the run's own",
    )
    parser.add_argument(
        "--images", type=integer_from(1), default=64, metavar="N", help="how many images are compared; default: 64"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace --out if it exists, or what reptk wrote into the store before"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers a store; repeatable"
    )
    return parser.parse_args(arguments)
