"""Build an index to search in: reptk index photos.safetensors --out photos.index"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.counts import format_count
from reptk.core.errors import UsageError

if TYPE_CHECKING:
    from reptk.embeddings import Index

EXAMPLES = """examples:
  reptk index photos.safetensors --out photos.index
  reptk index photos.safetensors --out photos.index --kind IVF256,Flat
  reptk index photos.parquet --out photos.index --kind HNSW32 --force
  reptk index emb --out photos.index                    (a folder of parts)
  reptk index photos.index --add emb                    (what is new in it)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    if args.add is not None:
        return _add(args)
    if args.trust:
        raise UsageError("--trust goes with --add")
    if args.out is None:
        raise UsageError("where to? --out photos.index; or name an index, and with --add what to add to it")
    from reptk.embeddings import index

    _print_summary(index(args.embeddings, out=args.out, kind=args.kind, force=args.force), args.out)
    return 0


def _add(args: argparse.Namespace) -> int:
    if args.out is not None or args.kind != "auto" or args.force:
        raise UsageError("--out, --kind and --force do not go with --add: reptk index photos.index --add emb")
    from reptk.embeddings import add_to_index

    addition = add_to_index(args.embeddings, args.add, trust=args.trust)
    print(f"{args.embeddings}: {format_count(addition.num_added, 'embedding')} added of {args.add}")
    _print_summary(addition.index, Path(args.embeddings))
    return 0


def _print_summary(built: "Index", out: Path) -> None:
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    if built.approximate is None:
        quality = "exact"
    else:
        quality = f"finds {100 * built.recall:.1f} % of the exact 10 nearest"
    count = f"{format_count(len(built), 'embedding')} of {built.embeddings.width} values"
    print(f"{out}: {count}, {built.kind} ({quality}), {size_mb:,.1f} MB")
    name = shlex.quote(str(out))
    print(f"  search it: reptk search {name} query.jpg    near duplicates: reptk search {name} --duplicates")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk index",
        description="Build an index of embeddings: a folder that can be moved, with hashes of all it holds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "embeddings", help="what reptk embed wrote: .safetensors, .parquet or a folder; with --add, an index"
    )
    parser.add_argument("--out", type=Path, help="the folder to write")
    parser.add_argument(
        "--add", metavar="EMBEDDINGS", help="add those whose ids are not in the index yet, without building it again"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="with --add: read an approximate index that was not built by you on this machine",
    )
    parser.add_argument(
        "--kind",
        default="auto",
        help="Flat (exact), or one of FAISS's approximate ones: IVF256,Flat  HNSW32  IVF256,PQ32; default: auto, exact up to "
        "a few hundred thousand images",
    )
    parser.add_argument("--force", action="store_true", help="replace an index that exists")
    return parser.parse_args(arguments)
