"""Run a recipe: python -m reptk.recipe tcl_selfsup_photos train.epochs=5"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reptk import config
from reptk.config.run_paths import describe_no_run
from reptk.config.value_lists import several_values_hint
from reptk.core.command_line import ArgumentParser, add_plugin_options, run_command
from reptk.core.errors import DataError, UsageError
from reptk.core.files import write_bytes

EXAMPLES = """examples:
  python -m reptk.recipe --list
  python -m reptk.recipe tcl_selfsup_photos
  python -m reptk.recipe tcl_selfsup_folder data.root=my_photos
  python -m reptk.recipe supcon_cifar100 loss.temperature=0.2 encoder.backbone=vit_tiny_patch16_224
  python -m reptk.recipe linear --from runs/supcon_digits/1
  python -m reptk.recipe simclr_photos --plugin my_loss.py loss.name=my_loss
  torchrun --nproc-per-node 8 -m reptk.recipe tcl_selfsup_imagenet100 data.root=/data/imagenet

The same command resumes a run that was stopped or killed, if it names the folder (--out), or with --resume auto.

exit codes: 2 usage or recipe, 3 data, 4 environment, 5 not a finite number, 130 interrupted, 143 stopped by another signal
"""

RESUME = {None: None, "last": True, "auto": "auto"}
"""The option `--resume` as the argument of `train`."""

LIST_WIDTH = 140
"""Characters of the list of recipes where there is no terminal to fit it to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(lambda: _run(_parse(argv)))


def _run(args: argparse.Namespace) -> int:
    if args.list:
        return _list()
    if args.name is None:
        raise UsageError("which recipe? All of them: python -m reptk.recipe --list")
    if args.copy:
        return _copy(args.name)
    folder = _run_to_resume(args)
    # The folder of the run is a recipe as well, whose warm-up is not shortened once more.
    recipe = _load(args, folder)
    if args.show:
        print(recipe.dump(), end="")
        return 0
    notes = [] if folder is not None else config.override_notes(args.name, args.overrides, recipe)
    if args.smoke:
        recipe = smoke_version(recipe)
    if args.check:
        return _check(recipe, notes)
    if args.smoke and args.out is None:
        return _smoke(recipe, notes)
    return _train(recipe, folder or args.out, resume=RESUME[args.resume], allow=args.allow, notes=notes)


def _load(args: argparse.Namespace, folder: Path | None) -> config.Recipe:
    """Return the recipe of the command, or that of the run in `folder` that is resumed."""
    try:
        return config.load(
            folder or args.name,
            args.overrides,
            plugins=args.plugin,
            trust=args.trust,
            shorten_warmup=folder is None,
            start_option=args.start_option,
        )
    except config.RecipeError as error:
        hint = several_values_hint(args.name, args.overrides, [key for key, _ in error.problems])
        if not hint:
            raise
        raise UsageError(f"{error}\n{hint}") from error


def _train(
    recipe: config.Recipe,
    out: Path | None,
    *,
    resume: "bool | str | None" = None,
    allow: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> int:
    from reptk.core import distributed
    from reptk.training import find_run, run_folder
    from reptk.training.loop import train

    is_single = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if out is not None and is_single and (out / "recipe.toml").is_file():
        # Before data and parts are built, which may take minutes. Several ranks have to decide together.
        run_folder.check_same_recipe(recipe, out)
        if run_folder.is_complete(recipe, out) and not run_folder.lacks_report(recipe, out):
            run_folder.remove_leftovers_of_run(out)
            hint = run_folder.how_to_train_on(recipe, out)
            print(f"already complete: {out / 'results.json'}. To train for longer: {hint}")
            return 0
    elif out is None and resume is None:
        notes = [*notes, *find_run.unfinished_run_note(recipe)]
    train(recipe, out, resume=resume, allow=allow, notes=notes)
    distributed.cleanup()
    return 0


def _smoke(recipe: config.Recipe, notes: Sequence[str]) -> int:
    """Train in a temporary folder, which is removed."""
    with tempfile.TemporaryDirectory(prefix="reptk-smoke-") as folder:
        exit_code = _train(recipe, Path(folder) / recipe.name, notes=notes)
    # The process group is closed already, so the rank is read from torchrun's environment.
    if int(os.environ.get("RANK", 0)) == 0:
        print("smoke passed: two steps and the evaluation ran on generated images; nothing was kept")
    return exit_code


def _run_to_resume(args: argparse.Namespace) -> Path | None:
    """Return the folder of the run that `--resume` names; None if the recipe decides, or nothing is to be resumed.

    It is the named folder, else that in --out, else the newest run of the named recipe.
    """
    if args.resume != "last":
        return None
    from reptk.training import find_run

    if (Path(args.name) / "recipe.toml").is_file():
        return Path(args.name)
    if args.out is None:
        if Path(args.name).is_dir():
            no_run = describe_no_run(args.name)
            raise UsageError(f"nothing to resume in {args.name}: {no_run.what}{no_run.hint()}")
        return find_run.newest(Path(args.name).stem)
    if not (args.out / "recipe.toml").is_file():
        no_run = describe_no_run(str(args.out))
        raise UsageError(f"nothing to resume in {args.out}: {no_run.what}{no_run.hint()}")
    return args.out


def _check(recipe: config.Recipe, notes: Sequence[str]) -> int:
    """Build everything, and train nothing.

    If the data is missing, everything else is checked with generated images before the error is raised.
    """
    from reptk.core import distributed
    from reptk.core.console import Logger
    from reptk.training.build import build
    from reptk.training.describe import describe, dropped_images_note, random_weights_note, unused_share_note
    from reptk.training.load_data import load_data
    from reptk.training.plan import plan
    from reptk.training.tracking import build_trackers

    device = distributed.setup(recipe.train.device)
    logger = Logger(prints=distributed.is_main())
    data_error = None
    try:
        data = load_data(recipe, logger)
    except DataError as error:
        data_error = error
        generated = smoke_version(recipe)
        parts = build(generated, load_data(generated), device)
    else:
        parts = build(recipe, data, device)
    if data_error is None:
        logger.line(f"{recipe.title}: valid, everything could be built")
    else:
        logger.line(f"{recipe.title}: valid, but its data cannot be used; everything else could be built")
    # The recipe's numbers, not those of the generated images.
    logger.facts(describe(recipe, parts, has_data=data_error is None))
    notes = [*notes, *build_trackers(recipe)[1]]
    if data_error is None:
        notes = [*notes, *random_weights_note(recipe), *unused_share_note(recipe, parts)]
        notes += dropped_images_note(parts)
    for note in notes:
        logger.line(f"note: {note}")
    if data_error is None:
        for line in plan(recipe, parts):
            logger.line(f"plan: {line}")
    distributed.cleanup()
    if data_error is not None:
        raise data_error
    return 0


def smoke_version(recipe: config.Recipe) -> config.Recipe:
    """Return the recipe on generated images, for two steps.

    The images have the size and the number of classes of the recipe's data set. Without a GPU, training is in fp32.
    """
    import torch

    from reptk.config.registry import DATASETS
    from reptk.config.schema import SamplerSection

    dataset = recipe.data["name"]
    classes = DATASETS.hint(dataset, "classes") or 10
    size = recipe.data.get("size") or DATASETS.hint(dataset, "size_px") or recipe.views.get("size", 32)
    # From torchrun's environment, since there may be no process group yet.
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    images_per_rank = 4 if size > 64 else 8
    batch_size = min(recipe.train.batch_size, images_per_rank * world_size)
    images = {"size": size, "classes": classes, "train": 2 * batch_size, "bank": 16, "query": 8}
    train = {"epochs": 1, "batch_size": batch_size, "workers": 0, "report": False, "trackers": ()}
    # One epoch is too short for early stopping.
    train |= {"early_stopping_epochs": 0, "final_weights": "auto"}
    # The few generated images allow no other.
    train["sampler"] = SamplerSection()
    if not torch.cuda.is_available():
        train["precision"] = "fp32"  # bf16 is emulated, and slow, on many CPUs
    evaluators = dict(recipe.eval)
    for key, part in recipe.eval.items():
        # The recipe's k may be larger than the bank.
        if isinstance(part.get("k"), list):
            evaluators[key] = {**part, "k": [1]}
        elif "k" in part:
            evaluators[key] = {**part, "k": 1}
    changes = {
        "data": config.complete("data", {"name": "generated", **images}),
        "train": recipe.train.model_copy(update=train),
        "optim": recipe.optim.model_copy(update={"warmup_epochs": 0}),
        "eval": evaluators,
        "expect": None,
    }
    if recipe.start is not None:
        # Generated images have classes of other names than those of the run.
        changes["start"] = recipe.start.model_copy(update={"classifier": "new"})
    return recipe.model_copy(update=changes)


def _list() -> int:
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "data", "method", "loss", "positives", "backbone", "epochs", "measured"):
        table.add_column(column, no_wrap=True)
    broken = []
    for name, path in sorted(config.available().items()):
        try:
            table.add_row(name, *_summary(config.read(path)))
        except UsageError as error:
            broken.append(f"{name}: {error}")
    console = Console(highlight=False)
    # A file or a pipe has no width, for which rich assumes 80 characters.
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, LIST_WIDTH))
    console.print(table)
    # In the table, a long message would leave no room for the names of the others.
    for message in broken:
        print(message)
    return 0


def _summary(table: dict[str, Any]) -> list[str]:
    """Return a recipe's cells in the list, with "?" where a key is missing.

    The table is that of the file as it is: to validate it would import all parts, which takes seconds.
    """
    loss = ""
    if "loss" in table:
        loss = _cell(table, "loss", "name")
    missing = "?"
    if "start" in table:
        missing = "of --from"
    expect = table.get("expect")
    measured = ""
    if isinstance(expect, dict) and isinstance(expect.get("value"), float):
        measured = f"{expect.get('metric', '')} {100 * expect['value']:.1f} %"
    return [
        _cell(table, "data", "name", missing=missing),
        _cell(table, "method", "name"),
        loss,
        _cell(table, "method", "positives", missing=""),
        _cell(table, "encoder", "backbone", missing=missing),
        _cell(table, "train", "epochs"),
        measured,
    ]


def _cell(table: dict[str, Any], section: str, key: str, missing: str = "?") -> str:
    part = table.get(section, {})
    if not isinstance(part, dict):
        return "?"
    return str(part.get(key, missing))


def _copy(name: str) -> int:
    source = config.find(name)
    target = Path(source.name)
    if target.exists():
        raise UsageError(f"{target} exists already; remove it, or change to another folder")
    write_bytes(target, source.read_bytes())
    print(f"{target}: change it, then python -m reptk.recipe {shlex.quote(str(target))}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m reptk.recipe",
        description="Train and evaluate what a recipe describes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="a recipe's name, a TOML file, or a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key, e.g. loss.k1=4000")
    add_plugin_options(parser)
    parser.add_argument(
        "--from",
        dest="start_run",
        metavar="RUN",
        help="the finished run that a stage (linear, linear_tcl, finetune) starts from",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the run; default: the next runs/NAME/N. An unfinished run of this recipe in it is resumed",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=("data", "ranks"),
        help="what may have changed since the run was started; repeatable",
    )
    # Each of these decides what the command does. With --check ignored, for example, --resume would train.
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--resume",
        choices=("last", "auto"),
        metavar="[auto]",
        help="resume a run: of this folder, or the recipe's newest. auto: if there is one, else start one",
    )
    action.add_argument("--list", action="store_true", help="all recipes")
    action.add_argument("--show", action="store_true", help="print the complete recipe, do nothing")
    action.add_argument("--check", action="store_true", help="validate and build everything, train nothing")
    action.add_argument("--copy", action="store_true", help="copy the recipe's file here, to be changed")
    parser.add_argument("--smoke", action="store_true", help="two steps on generated images, offline")
    args = parser.parse_intermixed_args(_joined_resume(argv))
    if args.name is not None and "=" in args.name:
        raise UsageError(f"the recipe's name comes first, before {args.name!r}")
    args.start_option = "--from "
    if any(pair.startswith("start.run=") for pair in args.overrides):
        args.start_option = "start.run="
    if args.start_run is not None:
        args.overrides = [f"start.run={args.start_run}", *args.overrides]
    return args


def _joined_resume(argv: Sequence[str] | None) -> list[str]:
    """Return the arguments with `--resume auto` joined to one, and `--resume` given its other value.

    argparse would take the recipe's name in `--resume NAME` for the value of the option.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    joined = []
    for position, argument in enumerate(arguments):
        follows_resume = position > 0 and arguments[position - 1] == "--resume"
        if follows_resume and argument == "auto":
            joined[-1] = "--resume=auto"
        elif argument == "--resume":
            joined.append("--resume=last")
        else:
            joined.append(argument)
    return joined


if __name__ == "__main__":
    sys.exit(main())
