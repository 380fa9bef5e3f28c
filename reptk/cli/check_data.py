"""Check images before work starts: reptk check-data my_photos"""

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from reptk import config
from reptk.cli.overrides import parse_overrides
from reptk.config.plugins import load_plugin
from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.counts import format_count
from reptk.core.errors import DataError, UsageError
from reptk.core.name_lists import first_names, first_names_and_count
from reptk.core.printable_names import in_one_line

if TYPE_CHECKING:
    from reptk.data import Data
    from reptk.data.decoding.pixel_options import PixelOptions
    from reptk.data.images.file_check import FileCheck
    from reptk.data.records.record_source import Record

EXAMPLES = """examples:
  reptk check-data my_photos
  reptk check-data my_photos data.labels=none
  reptk check-data images.csv
  reptk check-data 'shards/train-{000000..000009}.tar'
  reptk check-data data.name=imagenet data.root=/data/imagenet

exit codes: 0 usable, 3 not usable
"""
MAX_LISTED = 10
MAX_LISTED_CLASSES = 40


@dataclass(frozen=True)
class CheckedImages:
    """The image files to check.

    Args:
        paths: the files, or rows of Parquet shards.
        class_names: the name of each file's class; None without one.
        splits: the name of each file's split; empty without one.
        summary: lines that say what is read and what is skipped.
        data: the data set, if it was opened to find them.
    """

    paths: "list[Path | Record]"
    class_names: list[str | None]
    splits: list[str]
    summary: Sequence[str]
    data: "Data | None" = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.data.bad_samples import tolerated_unreadable
    from reptk.embeddings.encoding import image_sources

    for plugin in args.plugin:
        load_plugin(plugin)
    pairs = list(args.overrides)
    source = args.source
    # A folder may have such a name.
    if "=" in source and not Path(source).exists():
        pairs.insert(0, source)
        source = None
    overrides = parse_overrides(pairs, tables=["data"], allowed="data.*")
    table = _data_table(source, overrides.get("data", {}))
    images = _images_of_data_set(table)
    num_unreadable = _print_check(images, args.workers, image_sources.pixel_options(table))
    data = images.data or _open(table)  # raises DataError if training cannot use it
    images_text = format_count(len(data.train), "image")
    queries_text = format_count(0 if data.query is None else len(data.query), "query", "queries")
    print(f"  training: {images_text}, {queries_text} ({data.protocol})")
    max_unreadable = tolerated_unreadable(len(images.paths))
    if table.get("on_error") == "stop":
        max_unreadable = 0
    if num_unreadable > max_unreadable:
        raise DataError(
            f"{num_unreadable:,} of {format_count(len(images.paths), 'file')} cannot be read, too many to skip them; repair "
            "them, or take them out"
        )
    print("  usable")
    return 0


def _data_table(source: str | None, overrides: config.Table) -> config.Table:
    from reptk.embeddings.encoding import image_sources

    table = dict(overrides)
    if source is not None:
        table = {**image_sources.data_table(source), **table}
    elif "name" not in table and "root" in table:
        table["name"] = "folder"
    if "name" not in table:
        raise UsageError(
            "which images? e.g. reptk check-data my_photos, or data.name=imagenet data.root=/data/imagenet"
        )
    table = config.complete("data", table)
    if "cache" in table:
        table["cache"] = False  # nothing is written
    return table


def _open(table: config.Table) -> "Data":
    from reptk.config.registry import DATASETS
    from reptk.data.layouts.folder_scan import SkippedFiles

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedFiles)  # part of the summary
        return config.build(DATASETS, table)


def _images_of_data_set(table: config.Table) -> CheckedImages:
    from reptk.data.layouts.open_layout import existing_source, open_layout
    from reptk.embeddings.encoding.image_sources import distinct_splits

    if table["name"] == "folder":
        base = existing_source(table["root"])
        layout = open_layout(base, table["labels"])
        paths, names, split_names = [], [], []
        for split, files in layout.parts.items():
            for path, class_name in files:
                paths.append(path)
                names.append(class_name)
                split_names.append(split)
        return CheckedImages(paths, names, split_names, layout.describe())
    data = _open(table)
    summary = list(data.summary) or [f"{table['name']}: {data.protocol}"]
    paths, names, split_names = [], [], []
    for split_name, split in distinct_splits(data).items():
        labels = split.labels.tolist()
        for number, label in enumerate(labels):
            path = split.images.path(number)
            if path is None:
                summary.append(f"  {split_name}: {format_count(len(labels), 'image')} not in files of their own")
                break
            paths.append(path)
            names.append(data.classes[label] if label >= 0 else None)
            split_names.append(split_name)
    return CheckedImages(paths, names, split_names, summary, data)


def _print_check(images: CheckedImages, workers: int | None, options: "PixelOptions") -> int:
    """Print all that is known of the images; return how many cannot be read.

    Raises:
        DataError: none of the files can be read.
    """
    from reptk.core.progress import progress
    from reptk.data import num_cpus
    from reptk.data.images.file_check import check_files

    for line in images.summary:
        print(line)
    if not images.paths:
        return 0
    if workers is None:
        workers = num_cpus()
    with progress("checking", len(images.paths)) as advance:
        check = check_files(images.paths, workers=workers, advance=advance, options=options)
    if not check.sizes_px:
        path, reason = check.unreadable[0]
        raise DataError(f"none of {format_count(len(images.paths), 'file')} can be read; the first is {path}: {reason}")
    _print_sizes(check)
    _print_classes(images)
    _print_blank(check)
    _print_duplicates(images, check)
    if check.unreadable:
        print(f"  unreadable: {format_count(len(check.unreadable), 'file')}")
        for _, reason in check.unreadable:
            print(f"    {reason}")
    return len(check.unreadable)


def _print_sizes(check: "FileCheck") -> None:
    for side, values in (
        ("width", [size[0] for size in check.sizes_px]),
        ("height", [size[1] for size in check.sizes_px]),
    ):
        print(f"  {side}: {min(values):,} to {max(values):,} px, median {median(values):,g}")
    modes = ", ".join(f"{mode} {count:,}" for mode, count in check.modes.most_common())
    print(f"  modes: {modes}")


def _print_classes(images: CheckedImages) -> None:
    sizes = Counter(name for name in images.class_names if name is not None)
    if not sizes:
        return
    listed = [f"{in_one_line(name)} {count:,}" for name, count in sorted(sizes.items())]
    print(f"  classes: {first_names_and_count(listed, MAX_LISTED_CLASSES)}")
    too_small = sorted(name for name, count in sizes.items() if count < 2)
    if too_small:
        names = first_names(list(map(in_one_line, too_small)), MAX_LISTED)
        print(f"  classes of a single image, which have no positives: {len(too_small):,} ({names})")


def _print_blank(check: "FileCheck") -> None:
    from reptk.data.decoding.blank_images import MAX_LEVELS

    if not check.blank:
        return
    # They are alike, which would hide the other duplicates.
    count = format_count(len(check.blank), "image")
    print(f"  blank: {count}, of one color up to {MAX_LEVELS} of 255 levels, and not counted as duplicates")
    for path in check.blank[:MAX_LISTED]:
        print(f"    {in_one_line(str(path))}")
    if len(check.blank) > MAX_LISTED:
        print(f"    and {len(check.blank) - MAX_LISTED:,} more")


def _print_duplicates(images: CheckedImages, check: "FileCheck") -> None:
    if not check.duplicates:
        print("  exact duplicates: none")
        return
    class_of = dict(zip(images.paths, images.class_names, strict=True))
    split_of = dict(zip(images.paths, images.splits, strict=True))
    num_copies = sum(len(group) - 1 for group in check.duplicates)
    num_of_classes = sum(len({class_of[path] for path in group}) > 1 for group in check.duplicates)
    num_of_splits = sum(len({split_of[path] for path in group}) > 1 for group in check.duplicates)
    line = f"  exact duplicates: {format_count(num_copies, 'copy', 'copies')} of {format_count(len(check.duplicates), 'image')}"
    if num_of_classes:
        line += f"; in several classes: {format_count(num_of_classes, 'image')}"
    if num_of_splits:
        line += f"; in several splits: {format_count(num_of_splits, 'image')}"
    print(line)
    for group in check.duplicates[:MAX_LISTED]:
        first, *copies = [in_one_line(str(path)) for path in group[:MAX_LISTED]]
        print(f"    {first} = {', '.join(copies)}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk check-data",
        description="Print what would be read of a data set, what is skipped, and what is wrong with it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a folder, a table of images, shards, a data set's name, or data.KEY=VALUE")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="data.root=..., data.labels=none")
    parser.add_argument("--workers", type=int, help="threads that read files; default: one per core")
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    return parser.parse_intermixed_args(arguments)
