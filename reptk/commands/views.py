"""Draw what the network sees, as a contact sheet: reptk views tcl_selfsup_photos --out views.png"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reptk import config
from reptk.command import Parser, guarded
from reptk.commands.contact_sheet import Column, Label, draw, drawable, size_of
from reptk.errors import DataError, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from reptk.data import Data

EXAMPLES = """examples:
  reptk views tcl_selfsup_photos
  reptk views simclr_folder data.root=my_photos views.scale=0.2 --images 12
  reptk views simclr_cifar10 --smoke
  reptk views runs/tcl_selfsup_photos/1 --step 200 --out step_200.png
  reptk views simclr_photos --plugin my_views.py views.name=my_views
"""
IMAGES = 8


class Seen(NamedTuple):
    """The first images of a training step.

    images (n, 3, H, W) uint8; views: (n, 3, s, s) uint8 each, of any sizes; labels (n,); index (n,) their numbers in the
    training split; steps: how many the training has.
    """

    images: "Tensor"
    views: "list[Tensor]"
    labels: "Tensor"
    index: "Tensor"
    steps: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    return guarded(lambda: _run(_parse(arguments)))


def _run(asked: argparse.Namespace) -> int:
    if asked.name is None:
        raise UsageError("which recipe? All of them: python -m reptk.recipe --list")
    if asked.out.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, got {asked.out}")
    recipe = config.load(asked.name, asked.overrides, plugins=asked.plugin)
    if asked.smoke:
        from reptk.recipe import smoke

        recipe = smoke(recipe)
    data = _data(recipe)
    shown = seen(recipe, data, step=asked.step, count=_count(asked.images, recipe.train.batch_size))
    columns = [Column("image", shown.images)]
    columns += [Column(f"view {number}", view) for number, view in enumerate(shown.views, 1)]
    sheet = draw(recipe.name, _facts(recipe, data, shown, asked.step), _labels(data, shown), columns)
    _write(sheet, asked.out)
    print(f"{asked.out}: step {asked.step} of {recipe.name}, images x views: {len(shown.images)} x {len(shown.views)}")
    return 0


# What training sees


def seen(recipe: config.Recipe, data: "Data", *, step: int, count: int) -> Seen:
    """The first `count` images of a step, counted from 0, and the views that training makes of them.

    Views are drawn for the global batch; where they can be cut into parts, no more of it is fetched and drawn than the
    smallest equal part that holds `count` images, as the first of so many ranks would.

    Raises:
        UsageError: training has no such step, or the views refuse their arguments.
        DataError: fewer images than one batch, or an unreadable one.
    """
    import torch

    from reptk import dist
    from reptk.data import Loader
    from reptk.keyed import fold
    from reptk.registry import VIEWS

    device = dist.start(recipe.train.device)
    views, batch = config.build(VIEWS, recipe.views), recipe.train.batch_size
    parts = batch // _smallest_part(batch, count) if hasattr(views, "shard") else 1
    if parts > 1:
        views.shard(0, parts)
    loader = Loader(data.train, batch_size=batch, seed=recipe.seed, world=parts)
    steps = recipe.train.epochs * loader.steps_per_epoch
    if not 0 <= step < steps:
        raise UsageError(f"--step is {step}, but this training has the steps 0 to {steps - 1}")
    images, labels, index = next(loader.batches(step, step + 1))
    with torch.no_grad():
        made = views(images.to(device), fold(recipe.seed, "views", step))
    sizes = [made] if isinstance(made, torch.Tensor) else made
    drawn = [_bytes(view[:count]) for one_size in sizes for view in one_size]
    return Seen(images[:count], drawn, labels[:count], index[:count], steps)


def _bytes(view: "Tensor") -> "Tensor":
    """(n, 3, s, s) float in 0..1 on any device -> the nearest uint8, on the CPU."""
    import torch

    return (view.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _smallest_part(batch: int, count: int) -> int:
    return next(size for size in range(count, batch + 1) if batch % size == 0)


def _data(recipe: config.Recipe) -> "Data":
    from reptk.build import data_of

    try:
        return data_of(recipe)
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


def _facts(recipe: config.Recipe, data: "Data", shown: Seen, step: int) -> list[tuple[str, str]]:
    classes = f"{len(data.classes)} classes" if data.classes else "no labels"
    arguments = [f"{key} {_said(value)}" for key, value in recipe.views.items() if key != "name" and value is not None]
    count, batch = len(shown.images), recipe.train.batch_size
    return [
        ("data", f"{recipe.data['name']}: {len(data.train):,} training images, {size_of(shown.images)}, {classes}"),
        ("views", ": ".join([recipe.views["name"], ", ".join(arguments)]) if arguments else recipe.views["name"]),
        ("step", f"{step} of {shown.steps:,}, seed {recipe.seed}: the first {count} of {batch:,} images"),
    ]


def _said(value: Any) -> str:
    """An argument in a few words; a list of operations by their names."""
    if isinstance(value, dict):
        return str(value.get("name", value))
    if isinstance(value, (list, tuple)):
        return " + ".join(_said(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _labels(data: "Data", shown: Seen) -> list[Label]:
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
    parser = Parser(
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
