"""Draw what the network sees, as a contact sheet: reptk views tcl_selfsup_photos --out views.png"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptk import config
from reptk.cli.contact_sheet import Column, Label, draw, drawable, size_of
from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.errors import DataError, EnvironmentProblem, UsageError

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
IMAGES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(asked: argparse.Namespace) -> int:
    from reptk.report.displayed_views import displayed_views

    if asked.name is None:
        raise UsageError("which recipe? All of them: python -m reptk.recipe --list")
    if asked.out.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, got {asked.out}")
    recipe = config.load(asked.name, asked.overrides, plugins=asked.plugin)
    if asked.smoke:
        from reptk.recipe import smoke

        recipe = smoke(recipe)
    data = _data(recipe)
    shown = displayed_views(recipe, data, step=asked.step, count=_count(asked.images, recipe.train.batch_size))
    columns = [Column("image", shown.images)]
    columns += [Column(f"view {number}", view) for number, view in enumerate(shown.views, 1)]
    sheet = draw(recipe.name, _facts(recipe, data, shown, asked.step), _labels(data, shown), columns)
    _write(sheet, asked.out)
    print(f"{asked.out}: step {asked.step} of {recipe.name}, images x views: {len(shown.images)} x {len(shown.views)}")
    return 0


# What training has to work with


def _data(recipe: config.Recipe) -> "Data":
    from reptk.training.build import load_data

    try:
        return load_data(recipe)
    except DataError as error:
        if "add --smoke" in str(error):
            raise
        raise DataError(f"{error}\n  the views of generated images: add --smoke") from error


def _count(asked: int | None, batch: int) -> int:
    if asked is None:
        return min(IMAGES, batch)
    if not 1 <= asked <= batch:
        raise UsageError(f"--images must be 1 to {batch}, which is the batch of one step, got {asked}")
    return asked


# What is written beside them


def _facts(recipe: config.Recipe, data: "Data", shown: "DisplayedViews", step: int) -> list[tuple[str, str]]:
    classes = f"{len(data.classes)} classes" if data.classes else "no labels"
    arguments = [f"{key} {_said(value)}" for key, value in recipe.views.items() if key != "name" and value is not None]
    count, batch = len(shown.images), recipe.train.batch_size
    return [
        ("data", f"{recipe.data['name']}: {len(data.train):,} training images, {size_of(shown.images)}, {classes}"),
        ("views", ": ".join([recipe.views["name"], ", ".join(arguments)]) if arguments else recipe.views["name"]),
        ("step", f"{step} of {shown.num_steps:,}, seed {recipe.seed}: the first {count} of {batch:,} images"),
    ]


def _said(value: Any) -> str:
    """An argument in a few words; a list of operations by their names."""
    if isinstance(value, dict):
        return str(value.get("name", value))
    if isinstance(value, (list, tuple)):
        return " + ".join(_said(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _labels(data: "Data", shown: "DisplayedViews") -> list[Label]:
    return [
        (_class(data.classes, label), f"no. {number:,}")
        for label, number in zip(shown.labels.tolist(), shown.index.tolist(), strict=True)
    ]


def _class(classes: Sequence[str], label: int) -> str:
    if label < 0:
        return "no label" if classes else ""
    return drawable(classes[label]) if label < len(classes) and drawable(classes[label]) else f"class {label}"


def _write(sheet: "Image.Image", out: Path) -> None:
    made = io.BytesIO()
    sheet.save(made, "PNG", optimize=True)
    try:
        out.write_bytes(made.getvalue())
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write {out}: {cause.strerror or cause}. Choose another --out") from cause


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk views",
        description="Draw what the network sees: images of a training step and the views that training makes of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="a recipe's name, a TOML file, or a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key, e.g. views.scale=0.2")
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("views.png"), help="the picture; default: views.png")
    parser.add_argument("--images", type=int, help=f"how many images of the step's batch; default: {IMAGES}")
    parser.add_argument("--step", type=int, default=0, help="which step of training, counted from 0")
    parser.add_argument("--smoke", action="store_true", help="generated images of the recipe's size, offline")
    asked = parser.parse_intermixed_args(arguments)
    if asked.name is not None and "=" in asked.name:
        raise UsageError(f"the recipe's name comes first, before {asked.name!r}")
    return asked
