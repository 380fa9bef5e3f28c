"""Embed images: reptk embed runs/tcl_selfsup_photos/1 --data my_photos --out photos.safetensors"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptk import config
from reptk.config.registry import load_plugin
from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.errors import UsageError

if TYPE_CHECKING:
    from reptk.embeddings import Embeddings

EXAMPLES = """examples:
  reptk embed runs/tcl_selfsup_photos/1 --data my_photos --out photos.safetensors
  reptk embed resnet50 --pretrained --data my_photos --out photos.parquet
  reptk embed tf_efficientnet_lite0 --weights lite0.pth --data images.csv --out photos.safetensors --half
  reptk embed runs/tcl_sup_photos/1 --data cifar10 --split query --out test.safetensors
  reptk embed vit_tiny_patch16_224 --pretrained --data my_photos data.labels=none size=224 --out photos.safetensors
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(asked: argparse.Namespace) -> int:
    for plugin in asked.plugin:
        load_plugin(plugin)
    pairs = [*asked.overrides, *([asked.data] if asked.data and _is_pair(asked.data) else [])]
    chosen = config.override({}, pairs)
    strange = sorted(set(chosen) - {"data", "size"})
    if strange:
        raise UsageError(f"{', '.join(strange)}: what can be set here is data.* and size")

    from reptk.embeddings import embed

    made = embed(
        _data(asked, chosen.get("data", {})),
        encoder=asked.encoder,
        out=asked.out,
        split=asked.split,
        half=asked.half,
        size=chosen.get("size"),
        pretrained=asked.pretrained,
        weights=asked.weights,
        batch_size=asked.batch_size,
        workers=asked.workers,
        strict=asked.strict,
        force=asked.force,
    )
    _report(made, asked.out)
    return 0


def _data(asked: argparse.Namespace, part: config.Table) -> str | config.Table:
    """A CSV file's path, or a data set: the one that was named, else the run's own."""
    named = None if asked.data is None or _is_pair(asked.data) else asked.data
    if named is not None and Path(named).is_file():
        if part or asked.split:
            raise UsageError(f"data.* and --split are for data sets, and {named} is a table of images")
        return named
    if named is not None:
        from reptk.embeddings import sources

        return {**sources.named(named), **part}
    if "name" not in part:
        from reptk.embeddings.embedder import recipe_of

        part = {**recipe_of(asked.encoder).get("data", {}), **part}
    if "name" not in part:
        raise UsageError("which images? e.g. --data my_photos, --data images.csv or --data digits")
    return part


def _is_pair(text: str) -> bool:
    return text.startswith("data.") and "=" in text and not Path(text).exists()


def _report(made: "Embeddings", out: Path) -> None:
    about: dict[str, Any] = made.about
    encoder, skipped = about["encoder"], about.get("skipped")
    kind, size = str(made.vectors.dtype).removeprefix("torch."), out.stat().st_size
    classes = f", {len(made.classes)} classes" if made.classes else ""
    print(f"{out}: {len(made):,} embeddings of {made.width} values ({kind}, {size / 1e6:,.1f} MB){classes}")
    speed = f", {len(made) / about['seconds']:,.0f} images/s" if about.get("seconds") else ""
    print(f"  by {encoder['backbone']} at {encoder['size']} px{speed}")
    if skipped:
        lines = [f"  left out: {skipped['count']:,}, because", *(f"    {line}" for line in skipped["first"])]
        more = skipped["count"] - len(skipped["first"])
        print("\n".join([*lines, *([f"    and {more:,} more"] if more else [])]))
    print(
        f"  search it: reptk search {out} query.jpg    build an index: reptk index {out} --out {out.with_suffix('.index')}"
    )


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
        "--data", help="a folder, a CSV file of path[,label[,id]], or a data set's name; the run's own by default"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write: .safetensors or .parquet")
    parser.add_argument("--split", help="train, bank or query of a data set; every distinct image by default")
    parser.add_argument("--half", action="store_true", help="keep half precision: half the size")
    parser.add_argument("--pretrained", action="store_true", help="with a timm name: timm's weights")
    parser.add_argument("--weights", help="with a timm name: a local file of weights")
    parser.add_argument("--strict", action="store_true", help="stop at an image that cannot be read")
    parser.add_argument("--batch-size", type=int, default=128, help="images encoded at once; default: 128")
    parser.add_argument("--workers", type=int, help="threads that decode ahead; default: one a core")
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    parser.add_argument("--force", action="store_true", help="write over --out")
    return parser.parse_intermixed_args(arguments)
