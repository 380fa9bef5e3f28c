"""Draw images of a training step and their views, as a contact sheet: reptk views tcl_selfsup_photos --out views.png"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptk import config
from reptk.cli.contact_sheet import Column, RowLabel, describe_size, draw, drawable
from reptk.core.command_line import ArgumentParser, add_plugin_options, run_command
from reptk.core.counts import format_count
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import DataError, UsageError
from reptk.core.files import write_bytes

if TYPE_CHECKING:
    from PIL import Image

    from reptk.data import Data
    from reptk.report.displayed_views import DisplayedViews

EXAMPLES = """examples:
  reptk views tcl_selfsup_photos
  reptk views simclr_folder data.root=my_photos views.scale=0.2 --images 12
  reptk views simclr_cifar10 --smoke
  reptk views runs/tcl_selfsup_photos/1 --step 200 --out step_200.png
  reptk views simclr_photos --plugin my_views.py views.name=my_views
"""
DEFAULT_IMAGES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.report.displayed_views import displayed_views

    if args.name is None:
        raise UsageError("which recipe? All of them: python -m reptk.recipe --list")
    if args.out.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, got {args.out}")
    recipe = config.load(args.name, args.overrides, plugins=args.plugin, trust=args.trust)
    if args.smoke:
        from reptk.recipe import smoke_version

        recipe = smoke_version(recipe)
    data = _load_data(recipe)
    count = _count_images(args.images, recipe.train.batch_size)
    shown = displayed_views(recipe, data, step=args.step, count=count)
    columns = [Column("image", shown.images)]
    for number, view in enumerate(shown.views, 1):
        columns.append(Column(f"view {number}", view))
    sheet = draw(recipe.name, _facts(recipe, data, shown, args.step), _labels(data, shown), columns)
    _write(sheet, args.out)
    print(f"{args.out}: step {args.step} of {recipe.name}, images x views: {len(shown.images)} x {len(shown.views)}")
    return 0


def _load_data(recipe: config.Recipe) -> "Data":
    from reptk.training.load_data import load_data

    try:
        return load_data(recipe)
    except DataError as error:
        if "add --smoke" in str(error):
            raise  # the data sets of reptk say so themselves
        raise DataError(f"{error}\n  the views of generated images: add --smoke") from error


def _count_images(requested: int | None, batch_size: int) -> int:
    if requested is None:
        return min(DEFAULT_IMAGES, batch_size)
    if not 1 <= requested <= batch_size:
        raise UsageError(f"--images must be 1 to {batch_size}, which is the batch of one step, got {requested}")
    return requested


def _facts(recipe: config.Recipe, data: "Data", shown: "DisplayedViews", step: int) -> list[tuple[str, str]]:
    """Return what is written above the images: the data, the views and the step."""
    classes = "no labels"
    if data.classes:
        classes = f"{format_count(len(data.classes), 'class', 'classes')}"
    size = describe_size(shown.images)
    views = recipe.views["name"]
    arguments = []
    for key, value in recipe.views.items():
        if key != "name" and value is not None:
            arguments.append(f"{key} {_describe(value)}")
    if arguments:
        views = f"{views}: {', '.join(arguments)}"
    batch = f"the first {len(shown.images)} of {format_count(recipe.train.batch_size, 'image')}"
    return [
        ("data", f"{recipe.data['name']}: {format_count(len(data.train), 'training image')}, {size}, {classes}"),
        ("views", views),
        ("step", f"{step} of {shown.num_steps:,}, seed {recipe.seed}: {batch}"),
    ]


def _describe(value: Any) -> str:
    """Return an argument in a few words; a list of operations by their names."""
    if isinstance(value, dict):
        return str(value.get("name", value))
    if isinstance(value, list | tuple):
        return " + ".join(_describe(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _labels(data: "Data", shown: "DisplayedViews") -> list[RowLabel]:
    labels = []
    for label, number in zip(shown.labels.tolist(), shown.index.tolist(), strict=True):
        labels.append(RowLabel(_class_name(data.classes, label), f"no. {number:,}"))
    return labels


def _class_name(classes: Sequence[str], label: int) -> str:
    if label < 0:
        # In a data set without labels, this need not be said of every image.
        if classes:
            return "no label"
        return ""
    name = ""
    if label < len(classes):
        name = drawable(classes[label])
    return name or f"class {label}"  # nothing may be left of a name in another script


def _write(sheet: "Image.Image", out: Path) -> None:
    png = io.BytesIO()
    sheet.save(png, "PNG", optimize=True)
    with explain_write_errors(out):
        write_bytes(out, png.getvalue())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk views",
        description="Draw images of a training step and the views that training makes of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="a recipe's name, a TOML file, or a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key, e.g. views.scale=0.2")
    add_plugin_options(parser)
    parser.add_argument("--out", type=Path, default=Path("views.png"), help="the image file; default: views.png")
    parser.add_argument("--images", type=int, help=f"how many images of the step's batch; default: {DEFAULT_IMAGES}")
    parser.add_argument("--step", type=int, default=0, help="which step of training, counted from 0")
    parser.add_argument("--smoke", action="store_true", help="generated images of the recipe's size, offline")
    args = parser.parse_intermixed_args(arguments)
    if args.name is not None and "=" in args.name:
        raise UsageError(f"the recipe's name comes first, before {args.name!r}")
    return args
