"""Embed images: reptk embed runs/tcl_selfsup_photos/1 --data my_photos --out photos.safetensors"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reptk import config
from reptk.cli.overrides import parse_overrides
from reptk.cli.run_plugins import load_plugins
from reptk.core.command_line import (
    ArgumentParser,
    add_device_option,
    add_plugin_options,
    integer_from,
    require_single_process,
    run_command,
    share,
)
from reptk.core.counts import format_bytes, format_count
from reptk.core.errors import UsageError

if TYPE_CHECKING:
    from reptk.embeddings import Embeddings
    from reptk.embeddings.viewing.viewer_columns import ViewerColumns

EXAMPLES = """examples:
  reptk embed runs/tcl_selfsup_photos/1 --data my_photos --out photos.safetensors
  reptk embed resnet50 --pretrained --data my_photos --out photos.parquet
  reptk embed runs/tcl_selfsup_photos/1 --data my_photos --out photos.parquet --thumbnails --projection --neighbors 10
  reptk embed tf_efficientnet_lite0 --weights lite0.pth --data images.csv --out photos.safetensors --half
  reptk embed runs/tcl_sup_photos/1 --data cifar10 --split query --out test.safetensors
  reptk embed runs/tcl_sup_photos/1 --data images.csv --split test --out test.safetensors
  reptk embed runs/tcl_selfsup_photos/1 --data my_photos --out photos.safetensors --update
  reptk embed vit_tiny_patch16_224 --pretrained --data my_photos data.labels=none size=224 --out photos.safetensors
  torchrun --nproc-per-node 8 -m reptk embed runs/tcl_selfsup_photos/1 --data my_photos --out emb

--out without a suffix is a folder of parts, which several processes write together. The same command goes on where it was
interrupted, and embeds what is new or has changed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.stores import is_address

    if is_address(str(args.out)):
        raise UsageError("--out is a file or a folder; from there: reptk export FILE_OR_FOLDER --to ADDRESS")
    load_plugins(args.encoder, args.plugin, trust=args.trust)
    # `--data data.name=digits`: argparse gives the pair to --data, and it is an override like the others.
    data_name = args.data
    pairs = list(args.overrides)
    if data_name and _is_override(data_name):
        pairs.append(data_name)
        data_name = None
    overrides = parse_overrides(pairs, tables=["data"], keys=["size"], allowed="data.* and size")

    viewer_columns = _viewer_columns(args)

    # Both import torch: only once the arguments are known to be right.
    from reptk.core import distributed
    from reptk.embeddings import embed
    from reptk.embeddings.files.embeddings_file import is_parts_output

    if not is_parts_output(args.out):
        require_single_process("name a folder, e.g. --out emb, which all of them write")
    embeddings = embed(
        args.encoder,
        _data(data_name, overrides.get("data", {}), args),
        out=args.out,
        split=args.split,
        half=args.half,
        size=overrides.get("size"),
        pretrained=args.pretrained,
        weights=args.weights,
        crop=args.crop,
        resize=args.resize,
        device=args.device,
        batch_size=args.batch_size,
        workers=args.workers,
        strict=args.strict,
        force=args.force,
        update=args.update,
        images_per_part=args.images_per_part,
        prune=args.prune,
        report=_print_on_main,
    )
    if viewer_columns:
        from reptk.embeddings.viewing.viewer_columns import add_viewer_columns

        add_viewer_columns(args.out, viewer_columns)
    if distributed.is_main():
        _print_summary(embeddings, args.out)
    distributed.cleanup()
    return 0


def _print_on_main(line: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(line, flush=True)


def _viewer_columns(args: argparse.Namespace) -> "ViewerColumns | None":
    """Return the columns for viewers that the command line names, after a check; None if it names none."""
    if not (args.thumbnails or args.projection or args.neighbors):
        return None
    from reptk.embeddings.viewing.viewer_columns import ViewerColumns

    columns = ViewerColumns(args.thumbnails, args.projection, args.neighbors)
    columns.check(args.out)
    return columns


def _is_override(text: str) -> bool:
    # A folder may have such a name.
    return text.startswith("data.") and "=" in text and not Path(text).exists()


def _data(data_name: str | None, overrides: config.Table, args: argparse.Namespace) -> config.Table:
    """Return what to embed: the recipe's table of a data set, by default that of the run.

    Args:
        data_name: what --data names, if it was given.
        overrides: of the data set's arguments.
        args: the command line.
    """
    if data_name is None:
        return _data_of_run(overrides, args)
    from reptk.embeddings.encoding import image_sources

    return {**image_sources.data_table(data_name), **overrides}


def _data_of_run(overrides: config.Table, args: argparse.Namespace) -> config.Table:
    if "name" in overrides:
        return overrides

    from reptk.embeddings.encoding.embedder import recipe_of

    table = {**recipe_of(args.encoder).get("data", {}), **overrides}
    if "name" not in table:
        raise UsageError("which images? e.g. --data my_photos, --data images.csv or --data digits")
    return table


def _print_summary(embeddings: "Embeddings", out: Path) -> None:
    dtype = str(embeddings.vectors.dtype).removeprefix("torch.")
    files = [out]
    if out.is_dir():
        files = list(out.iterdir())
    size = format_bytes(sum(file.stat().st_size for file in files))
    line = f"{out}: {format_count(len(embeddings), 'embedding')} of {embeddings.width} values ({dtype}, {size})"
    if embeddings.classes:
        line += f", {format_count(len(embeddings.classes), 'class', 'classes')}"
    print(line)

    encoder = embeddings.metadata["encoder"]
    line = f"  by {encoder['backbone']} at {encoder['size']} px"
    seconds = embeddings.metadata.get("seconds")
    num_embedded = len(embeddings) - embeddings.metadata.get("unchanged", 0)
    if out.is_dir():
        num_embedded = embeddings.metadata["embedded"]
    if seconds and num_embedded:
        line += f", {num_embedded / seconds:,.0f} images/s"
    print(line)

    # Images that could not be read, unless --strict was set.
    skipped = embeddings.metadata.get("skipped")
    if skipped:
        print(f"  skipped: {skipped['count']:,}, because")
        for reason in skipped["first"]:
            print(f"    {reason}")
        num_unlisted = skipped["count"] - len(skipped["first"])
        if num_unlisted:
            print(f"    and {num_unlisted:,} more")
    embeddings = shlex.quote(str(out))
    index = shlex.quote(f"{out.with_suffix('')}.index")
    print(f"  search it: reptk search {embeddings} query.jpg    build an index: reptk index {embeddings} --out {index}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk embed",
        description="Write the embeddings of images, with their ids, paths and labels, to a file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("encoder", help="a run's folder, its model folder, or any timm name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="data.root=..., data.labels=none, size=96")
    parser.add_argument(
        "--data",
        help="a folder, a table of paths and labels (CSV, JSON lines, Parquet), or a data set's name; the run's own by default",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the file to write: .safetensors or .parquet; or a folder"
    )
    parser.add_argument(
        "--split",
        help="train, bank or query of a data set, or a split of a folder or table such as test; default: every distinct image",
    )
    parser.add_argument("--half", action="store_true", help="store half precision: half the size")
    parser.add_argument("--pretrained", action="store_true", help="with a timm name: timm's weights")
    parser.add_argument("--weights", help="with a timm name: a checkpoint, FILE or FILE:PART, a folder or hf-hub:NAME")
    parser.add_argument(
        "--resize",
        choices=["crop", "pad", "squash"],
        help="images that are not square: their center, the whole with a border, or squashed; default: as the encoder's",
    )
    parser.add_argument(
        "--crop",
        type=share,
        metavar="SHARE",
        help="share of the side that is kept, e.g. 0.875; default: as the encoder's",
    )
    add_device_option(parser)
    parser.add_argument(
        "--strict", action="store_true", help="stop at an image that cannot be read, instead of skipping it"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="images encoded at once; default: 128")
    parser.add_argument("--workers", type=int, help="threads that decode ahead; default: one per core")
    add_plugin_options(parser)
    parser.add_argument(
        "--update", action="store_true", help="embed only files that are new or changed since --out was written"
    )
    parser.add_argument(
        "--images-per-part",
        type=integer_from(1),
        metavar="N",
        help="of a folder as --out; default: 10000. A larger shard is divided, and smaller ones are not joined",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="of a folder, or with --update: remove the embeddings of images that are gone, also if these are more than 10 %% "
        "(and 100)",
    )
    viewers = parser.add_argument_group(
        "columns of a .parquet file for Embedding Atlas, Spotlight and the Hugging Face hub"
    )
    viewers.add_argument("--thumbnails", action="store_true", help="small images")
    viewers.add_argument(
        "--projection",
        nargs="?",
        const="pca",
        metavar="LAYOUT",
        help="positions on a map: pca (default), tsne or umap",
    )
    viewers.add_argument(
        "--neighbors", type=integer_from(1), default=0, metavar="K", help="the K nearest neighbors of every image"
    )
    parser.add_argument("--force", action="store_true", help="replace --out if it exists")
    return parser.parse_intermixed_args(arguments)
