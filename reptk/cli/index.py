"""Build an index to search in: reptk index photos.safetensors --out photos.index"""

import argparse
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from reptk.config.plugins import load_plugin
from reptk.core.command_line import ArgumentParser, integer_from, require_single_process, run_command
from reptk.core.counts import format_count
from reptk.core.errors import UsageError
from reptk.core.passwords import redacted
from reptk.core.printable_names import in_one_line

if TYPE_CHECKING:
    from reptk.embeddings import Index

EXAMPLES = """examples:
  reptk index photos.safetensors --out photos.index
  reptk index photos.safetensors --out photos.index --kind IVF256,Flat
  reptk index photos.parquet --out photos.index --kind HNSW32 --force
  reptk index photos.safetensors --out photos.index --kind OPQ64,IVF65536_HNSW32,PQ64 --on-disk
  reptk index emb --out photos.index                    (a folder of parts)
  reptk index photos.index --add emb                    (what is new in it)
  reptk index --verify photos.index
  reptk index --verify 'postgresql://me@localhost/images?table=photos' --queries 2000
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    for plugin in args.plugin:
        load_plugin(plugin)
    if args.verify is not None:
        return _verify(args)
    if args.add is not None:
        return _add(args)
    if args.embeddings is None or args.out is None:
        raise UsageError("which embeddings, and where to? reptk index photos.safetensors --out photos.index")
    return _build(args)


def _verify(args: argparse.Namespace) -> int:
    if args.embeddings is not None or args.out is not None or args.add is not None:
        raise UsageError("--verify measures an index that is there, and takes neither embeddings nor --out or --add")

    from reptk.embeddings import Index, StoreIndex, verify_recall
    from reptk.stores import is_address

    index: Index | StoreIndex
    if is_address(args.verify):
        index = StoreIndex.open(args.verify)
    else:
        index = Index.open(args.verify, verify=True, trust=args.trust)
    with closing(index):
        recall = verify_recall(index, k=args.k, num_queries=args.queries)
        kind = index.describe_kind()
    print(f"{in_one_line(redacted(args.verify))}: {format_count(len(index), 'embedding')}, {kind}")
    interval = f"{100 * recall.low:.1f} to {100 * recall.high:.1f}"
    queries = format_count(recall.num_queries, "query", "queries")
    print(f"  recall@{recall.k} {100 * recall.value:.1f} % ({interval}) against exact search, {queries}")
    return 0


def _build(args: argparse.Namespace) -> int:
    from reptk.embeddings import index
    from reptk.stores import is_address

    if is_address(args.embeddings):
        raise UsageError(
            f"an index is built of a file or folder of embeddings; a store has its own. Its recall: reptk index --verify "
            f"{redacted(args.embeddings)}"
        )

    require_single_process("an index is built by one: reptk index ...")
    on_disk = None  # by size
    if args.on_disk:
        on_disk = True
    built = index(args.embeddings, out=args.out, kind=args.kind, on_disk=on_disk, force=args.force)
    _print_summary(built, args.out)
    return 0


def _add(args: argparse.Namespace) -> int:
    if args.embeddings is None:
        raise UsageError("which index? reptk index photos.index --add emb")
    if args.out is not None or args.kind != "auto" or args.on_disk or args.force:
        raise UsageError(
            "--out, --kind, --on-disk and --force do not go with --add: reptk index photos.index --add emb"
        )
    require_single_process("one of them adds to an index: reptk index ...")
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
    storage = ""
    if built.is_on_disk:
        storage = ", lists on disk"
    print(f"{out}: {count}, {built.kind} ({quality}){storage}, {size_mb:,.1f} MB")
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
        "embeddings", nargs="?", help="what reptk embed wrote: .safetensors, .parquet or a folder; with --add, an index"
    )
    parser.add_argument("--out", type=Path, help="the folder to write")
    parser.add_argument(
        "--kind",
        default="auto",
        help="Flat (exact), or one of FAISS's approximate ones: IVF256,Flat  HNSW32  IVF256,PQ32; default: auto, exact up to "
        "a few hundred thousand images",
    )
    parser.add_argument(
        "--on-disk",
        action="store_true",
        help="build inverted lists (--kind IVF...) part by part, and search them on the disk, with little memory; default: if "
        "they are larger than 4 GiB",
    )
    parser.add_argument("--force", action="store_true", help="replace an index that exists")
    parser.add_argument(
        "--add",
        metavar="EMBEDDINGS",
        help="add those whose ids are not in the index yet, without building it again; not if its lists are on the disk",
    )
    parser.add_argument(
        "--verify",
        metavar="INDEX",
        help="measure the recall of an index, or of a store (lance:FOLDER, postgresql://...), against exact search in the "
        "vectors that it stores",
    )
    parser.add_argument("--k", type=integer_from(1), default=10, help="with --verify: neighbors; default: 10")
    parser.add_argument(
        "--queries", type=integer_from(1), default=1000, help="with --verify: images that are queries; default: 1000"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="with --verify and --add: read an index that was not built by you on this machine",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers a store; repeatable"
    )
    return parser.parse_args(arguments)
