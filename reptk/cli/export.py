"""Take embeddings out into another program's format: reptk export photos.safetensors --to lance:photos.lance"""

import argparse
from collections.abc import Sequence

from reptk.cli.export_to_store import export_to_store
from reptk.config.plugins import load_plugin
from reptk.core.command_line import ArgumentParser, run_command

EXAMPLES = """examples:
  reptk export photos.safetensors --to lance:photos.lance
  reptk export photos.safetensors --to 'postgresql://me@localhost/images?table=photos'
  reptk export photos.safetensors --to qdrant:http://localhost:6333/photos --plugin reptk.plugins.qdrant
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    for plugin in args.plugin:
        load_plugin(plugin)
    return export_to_store(args.source, args.to, force=args.force)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk export",
        description="Write embeddings into a vector database, in which reptk search and other programs find them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="what reptk embed wrote: .safetensors or .parquet")
    parser.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="the address of a store: lance:FOLDER, postgresql://USER@HOST/DATABASE?table=NAME, or a plugin's",
    )
    parser.add_argument("--force", action="store_true", help="replace what reptk wrote there before")
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers a store; repeatable"
    )
    return parser.parse_args(arguments)
