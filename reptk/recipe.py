"""Run a recipe: python -m reptk.recipe tcl_selfsup_photos train.epochs=5"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reptk import config
from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.errors import DataError, UsageError

EXAMPLES = """examples:
  python -m reptk.recipe --list
  python -m reptk.recipe tcl_selfsup_photos
  python -m reptk.recipe tcl_selfsup_folder data.root=my_photos
  python -m reptk.recipe supcon_cifar100 loss.temperature=0.2 encoder.backbone=vit_tiny_patch16_224
  python -m reptk.recipe simclr_photos --plugin my_loss.py loss.name=my_loss
  torchrun --nproc-per-node 8 -m reptk.recipe tcl_selfsup_imagenet100 data.root=/data/imagenet

exit codes: 2 usage or recipe, 3 data, 4 environment, 5 not a finite number, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(asked: argparse.Namespace) -> int:
    if asked.list:
        return _list()
    if asked.name is None:
        raise UsageError("which recipe? All of them: python -m reptk.recipe --list")
    if asked.copy:
        return _copy(asked.name)
    if asked.resume:
        return _resume(asked)
    recipe = config.load(asked.name, asked.overrides, plugins=asked.plugin)
    if asked.show:
        print(recipe.dump(), end="")
        return 0
    if asked.smoke:
        recipe = smoke(recipe)
    if asked.check:
        return _check(recipe)
    if asked.smoke and asked.out is None:
        with tempfile.TemporaryDirectory(prefix="reptk-smoke-") as folder:
            code = _train(recipe, Path(folder) / recipe.name)
        if int(os.environ.get("RANK", 0)) == 0:
            print("smoke passed: two steps and the evaluation ran on generated images; nothing was kept")
        return code
    return _train(recipe, asked.out)


def _train(recipe: config.Recipe, out: Path | None, *, resume: bool = False) -> int:
    from reptk.core import distributed
    from reptk.training.loop import train

    train(recipe, out, resume=resume)
    distributed.cleanup()
    return 0


def _resume(asked: argparse.Namespace) -> int:
    from reptk.training import run_folder

    is_run = (Path(asked.name) / "recipe.toml").is_file()
    folder = Path(asked.name) if is_run else asked.out or run_folder.newest(Path(asked.name).stem)
    recipe = config.load(folder, asked.overrides, plugins=asked.plugin)
    if run_folder.status(folder)["status"] == "finished":
        print(f"already complete: {folder / 'results.json'}")
        return 0
    return _train(recipe, folder, resume=True)


def _check(recipe: config.Recipe) -> int:
    """Build everything, train nothing. Without its data everything else is still checked, then the data's error raised."""
    from reptk.core import distributed
    from reptk.core.console import Logger
    from reptk.training.build import assemble, data_of
    from reptk.training.loop import describe

    device, missing = distributed.setup(recipe.train.device), None
    try:
        data = data_of(recipe)
    except DataError as error:
        missing, recipe = error, smoke(recipe)
        data = data_of(recipe)
    built = assemble(recipe, data, device)
    log = Logger(distributed.is_main())
    log.line(
        f"{recipe.name}: " + ("valid, but its data is not here" if missing else "valid, everything could be built")
    )
    log.facts(describe(recipe, built))
    distributed.cleanup()
    if missing:
        raise missing
    return 0


def smoke(recipe: config.Recipe) -> config.Recipe:
    """Two steps on generated images of the recipe's size and number of classes; in fp32 where there is no GPU."""
    import torch

    from reptk.config.registry import DATASETS

    factory = DATASETS.get(recipe.data["name"])
    classes = getattr(factory, "classes", None) or 10
    size = recipe.data.get("size") or getattr(factory, "size_px", None) or recipe.views.get("size", 32)
    world = int(os.environ.get("WORLD_SIZE", 1))
    batch = min(recipe.train.batch_size, (4 if size > 64 else 8) * world)
    precision = recipe.train.precision if torch.cuda.is_available() else "fp32"
    images = {"size": size, "classes": classes, "train": 2 * batch, "bank": 16, "query": 8}
    few = {
        "data": config.complete("data", {"name": "generated", **images}),
        "train": recipe.train.model_copy(
            update={"epochs": 1, "batch_size": batch, "workers": 0, "precision": precision, "report": False}
        ),
        "optim": recipe.optim.model_copy(update={"warmup_epochs": 0}),
        "eval": {key: {**part, "k": [1]} if "k" in part else part for key, part in recipe.eval.items()},
        "expect": None,
    }
    return recipe.model_copy(update=few)


def _list() -> int:
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "data", "loss", "positives", "backbone", "epochs", "measured"):
        table.add_column(column, no_wrap=True)
    for name, path in sorted(config.available().items()):
        try:
            table.add_row(name, *_summary(config.read(path)))
        except UsageError as error:
            table.add_row(name, str(error))
    console = Console(highlight=False)
    Console(highlight=False, width=max(console.width, 140) if not console.is_terminal else None).print(table)
    return 0


def _summary(raw: dict[str, Any]) -> list[str]:
    def text(section: str, key: str) -> str:
        part = raw.get(section, {})
        return str(part.get(key, "?")) if isinstance(part, dict) else "?"

    expect = raw.get("expect")
    complete = isinstance(expect, dict) and isinstance(expect.get("value"), float)
    measured = f"{expect.get('metric', '')} {100 * expect['value']:.1f} %" if complete else ""
    pairs = (
        ("data", "name"),
        ("loss", "name"),
        ("method", "positives"),
        ("encoder", "backbone"),
        ("train", "epochs"),
    )
    return [*(text(*pair) for pair in pairs), measured]


def _copy(name: str) -> int:
    source = config.find(name)
    target = Path(source.name)
    if target.exists():
        raise UsageError(f"{target} exists already; remove it, or change to another folder")
    shutil.copyfile(source, target)
    print(f"{target}: change it, then python -m reptk.recipe {target}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m reptk.recipe",
        description="Train and evaluate what a recipe describes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="a recipe's name, a TOML file, or a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key, e.g. loss.k1=4000")
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    parser.add_argument("--out", type=Path, help="folder of the run; default: the next runs/NAME/N")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run: of this folder, or the recipe's newest"
    )
    parser.add_argument("--list", action="store_true", help="all recipes")
    parser.add_argument("--show", action="store_true", help="print the complete recipe, do nothing")
    parser.add_argument("--check", action="store_true", help="validate and build everything, train nothing")
    parser.add_argument("--smoke", action="store_true", help="two steps on generated images, offline")
    parser.add_argument("--copy", action="store_true", help="copy the recipe's file here, to be changed")
    asked = parser.parse_intermixed_args(arguments)
    if asked.name is not None and "=" in asked.name:
        raise UsageError(f"the recipe's name comes first, before {asked.name!r}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
