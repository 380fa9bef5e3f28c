"""Run a recipe and compare the result with the one that it records: reptk verify supcon_digits"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reptk.core.command_line import ArgumentParser, add_plugin_options, require_single_process, run_command
from reptk.core.errors import UsageError
from reptk.core.metric_names import display_name

if TYPE_CHECKING:
    from reptk.config import Recipe
    from reptk.report.run_files import SavedResults

EXAMPLES = """examples:
  reptk verify supcon_digits
  reptk verify tcl_sup_photos --out runs/check              # again, it resumes a run that was stopped
  reptk verify supcon_digits --run runs/supcon_digits/1     # compare a run that is finished

The number of the trained encoder agrees if it differs from the recorded one by at most --tolerance. Raw pixels and the encoder
before training are not trained, and have to agree within half a point.

exit codes: 0 all numbers agree, 1 one does not, 2 usage, recipe, or no recorded result, 3 data, 4 environment, 5 not a finite
number
"""

DISAGREES = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    # Imported late, so that --help does not wait for torch.
    from reptk import config
    from reptk.sweep.expected_result import (
        BASELINE_TOLERANCE,
        TOLERANCE,
        check_metric,
        compare_with_recorded,
        recorded_result,
    )

    require_single_process(
        f"train with torchrun ... -m reptk.recipe {args.recipe}, and compare the run: reptk verify {args.recipe} --run RUN"
    )
    recipe = config.load(args.recipe, args.overrides, plugins=args.plugin, trust=args.trust)
    expect = recorded_result(args.recipe, args.overrides, recipe)
    if args.run is not None:
        _check_run(recipe, args.run)
        folder = args.run
    else:
        check_metric(expect, recipe)
        folder = _train(recipe, args.out)
    results = _read_results(folder)
    tolerance = args.tolerance
    if tolerance is None:
        tolerance = expect.tolerance
    if tolerance is None:
        tolerance = TOLERANCE
    agreements = compare_with_recorded(expect, results, tolerance=tolerance)
    print()
    print(f"{recipe.name}: {display_name(expect.metric)} in percent")
    for item in agreements:
        verdict = "DOES NOT AGREE"
        if item.holds:
            verdict = "agrees"
        print(
            f"  {results.label_of(item.row):<16} recorded {100 * item.expected:6.2f}   measured {100 * item.value:6.2f} "
            f"[{100 * item.low:.2f}, {100 * item.high:.2f}]   {verdict}"
        )
    print(f"  recorded by commit {expect.commit} ({expect.versions}; {expect.hardware})")
    print(
        f"  rule: at most {100 * tolerance:g} points of difference, and {100 * BASELINE_TOLERANCE:g} for baselines; in "
        "brackets the 95 % interval over queries"
    )
    print(f"  run: {folder}")
    if all(item.holds for item in agreements):
        return 0
    return DISAGREES


def _train(recipe: "Recipe", out: Path | None) -> Path:
    """Train the recipe, and return the folder of its run."""
    from reptk.core import distributed
    from reptk.training.loop import train

    folder = out
    if folder is None:
        folder = _next_folder(Path("runs") / "verify" / recipe.name)
    train(recipe, folder)
    distributed.cleanup()
    return folder


def _next_folder(parent: Path) -> Path:
    """Return the first numbered folder that does not exist, and create it: two commands must not train in the same one."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return parent / str(number)


def _check_run(recipe: "Recipe", folder: Path) -> None:
    """Raise UsageError unless a folder holds a finished run of exactly this recipe."""
    from reptk.config.run_commands import resume_command
    from reptk.config.run_paths import describe_no_run
    from reptk.config.schema import SAME_RESULT_KEYS
    from reptk.training.run_status import FINISHED, read_status
    from reptk.training.same_run import recipe_differences

    if not (folder / "recipe.toml").is_file():
        no_run = describe_no_run(str(folder))
        raise UsageError(f"no run in {folder}: {no_run.what}{no_run.hint()}")
    lines = recipe_differences(recipe, folder, may_differ=SAME_RESULT_KEYS)
    if lines:
        raise UsageError("\n".join([f"{folder} is a run of another recipe:", *lines]))
    status = read_status(folder)["status"]
    if status != FINISHED:
        raise UsageError(f"{folder} is not finished ({status}); to resume it: {resume_command(folder)}")


def _read_results(folder: Path) -> "SavedResults":
    from reptk.report.run_files import read_run

    return read_run(folder, folder.name).results


def _tolerance(text: str) -> float:
    """An argument type for argparse: a share between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1 (0.01 is a percentage point), got {text}")
    return value


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk verify",
        description="Run a recipe, and compare the result with the one that its [expect] table records.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a recipe's name or TOML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="where and how to run, e.g. train.device=cpu or data.root=my_folder",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", type=Path, help="a finished run to compare; nothing is trained")
    source.add_argument("--out", type=Path, help="the run's folder; default: the next runs/verify/NAME/N")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        help="how far the number of the trained encoder may differ; default: expect.tolerance, else 0.03",
    )
    add_plugin_options(parser)
    return parser.parse_intermixed_args(arguments)
