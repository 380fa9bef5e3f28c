"""Build an index to search in: reptk index photos.safetensors --out photos.index"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.counts import format_count

EXAMPLES = """examples:
  reptk index photos.safetensors --out photos.index
  reptk index photos.safetensors --out photos.index --kind IVF256,Flat
  reptk index photos.parquet --out photos.index --kind HNSW32 --force
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.embeddings import index

    built = index(args.embeddings, out=args.out, kind=args.kind, force=args.force)
    size_mb = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    if built.approximate is None:
        quality = "exact"
    else:
        quality = f"finds {100 * built.recall:.1f} % of the exact 10 nearest"
    count = f"{format_count(len(built), 'embedding')} of {built.embeddings.width} values"
    print(f"{args.out}: {count}, {built.kind} ({quality}), {size_mb:,.1f} MB")
    name = shlex.quote(str(args.out))
    print(f"  search it: reptk search {name} query.jpg    near duplicates: reptk search {name} --duplicates")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk index",
        description="Build an index of embeddings: a folder that can be moved, with hashes of all it holds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("embeddings", help="what reptk embed wrote: .safetensors or .parquet")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--kind",
        default="auto",
        help="Flat (exact), or one of FAISS's approximate ones: IVF256,Flat  HNSW32  IVF256,PQ32; default: auto, exact up to "
        "a few hundred thousand images",
    )
    parser.add_argument("--force", action="store_true", help="replace an index that exists")
    return parser.parse_args(arguments)
