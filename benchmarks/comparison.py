"""Cross-entropy, SupCon, TCL and SimCLR compared over seeds: the runs and tables of docs/comparison.md.

python benchmarks/comparison.py photos|fashion_mnist [--tables with_labels ...] [--out comparison] [--epochs 8] [--jobs 2]

Trains every setting with every seed by `reptk sweep` below OUT/DATA/, then a linear classifier on each encoder of the table
`with_labels` (the recipe `linear`), and writes the tables by `reptk compare` to OUT/DATA/tables/. The same command goes on
where an earlier one was stopped. Settings of `with_labels` and `without_labels` differ in the method, the loss or the number of
views alone; those of `methods` and `retrieval` are the recipes' with the same number of epochs.

On a GPU that small images do not fill, several runs share it: `--jobs 3 --sweeps 4` trains twelve at a time.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

Sweeps = dict[str, list[str]]
"""By the name of a folder: a recipe, and the values that it is trained with."""


class Comparison(NamedTuple):
    """The sweeps of one data set.

    with_labels, without_labels: each makes a table.
    methods, retrieval: the other methods without labels, and losses for retrieval; each makes a table.
    few_labels: those of a data set with a recipe for them, which keep the epochs of that recipe.
    seeds: of every setting.
    """

    with_labels: Sweeps
    without_labels: Sweeps
    methods: Sweeps
    retrieval: Sweeps
    few_labels: Sweeps
    seeds: int


SAME_AS_TCL = ["views.size=32", "encoder.stem=timm"]
"""simclr_fashion_mnist has views of 16 px and a stem for them, with which an epoch takes three times as long."""

LINEAR_LEARNING_RATE = 0.5
"""Of the linear stage. With 5.0, as published, the loss diverges on the features of these small backbones."""

TABLES = ("with_labels", "without_labels", "methods", "retrieval", "few_labels")
"""Fields of `Comparison`."""

METHODS = (
    "simclr",
    "moco",
    "moco_v3",
    "byol",
    "simsiam",
    "vicreg",
    "barlow_twins",
    "lejepa",
    "dino",
    "swav",
    "distill",
)
"""With a recipe for each data set."""


def _one_recipe_each(families: Sequence[str], data: str) -> Sweeps:
    return {f"recipe_{family}": [f"{family}_{data}"] for family in families}


COMPARISONS = {
    "photos": Comparison(
        with_labels={
            "ce": ["ce_photos"],
            "supcon": ["supcon_photos", "loss.form=out,in"],
            "tcl_sup_k1_1": ["tcl_sup_photos", "loss.k1=1", "loss.k2=1,4"],
            "tcl_sup_k1_100": ["tcl_sup_photos", "loss.k1=100", "loss.k2=1,4"],
            "tcl_sup_k1_5000": ["tcl_sup_photos", "loss.k1=5000", "loss.k2=1,4"],
        },
        without_labels={
            "simclr": ["simclr_photos", "views.count=2,3"],
            "tcl_selfsup": ["tcl_selfsup_photos", "views.count=2,3"],
        },
        methods=_one_recipe_each(METHODS, "photos"),
        retrieval=_one_recipe_each(
            ("supcon", "supcon_moco", "proxy_anchor", "subcenter_arcface", "siglip", "smooth_ap", "xbm"), "photos"
        ),
        few_labels={},
        seeds=5,
    ),
    "fashion_mnist": Comparison(
        with_labels={
            "ce": ["ce_fashion_mnist"],
            "supcon": ["supcon_fashion_mnist", "loss.form=out,in"],
            "tcl_sup": ["tcl_sup_fashion_mnist", "loss.k1=1,5000"],
        },
        without_labels={
            "simclr": ["simclr_fashion_mnist", "views.count=2,3", *SAME_AS_TCL],
            "tcl_selfsup": [
                "tcl_selfsup_fashion_mnist",
                "views.count=2,3",
                "loss.temperature=0.2",
                "optim.lr=0.003",
            ],
        },
        methods=_one_recipe_each(METHODS, "fashion_mnist"),
        retrieval=_one_recipe_each(("supcon", "supcon_moco", "proxy_anchor"), "fashion_mnist"),
        few_labels={
            "semi": ["tcl_semi_fashion_mnist", "data.labelled=0.01,0.1,1.0"],
            "label_only_1_percent": ["tcl_semi_fashion_mnist", "data.only_labelled=true", "train.epochs=234"],
            "label_only_10_percent": [
                "tcl_semi_fashion_mnist",
                "data.only_labelled=true",
                "data.labelled=0.1",
                "train.epochs=20",
            ],
            "no_labels": [
                "tcl_semi_fashion_mnist",
                "method.positives=instance",
                "train.sampler.name=random",
                "data.labelled=1.0",
            ],
        },
        seeds=3,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and write the tables; returns 1 if a command failed."""
    args = _parse(argv)
    comparison = COMPARISONS[args.data]
    folder = args.out / args.data
    folder.mkdir(parents=True, exist_ok=True)
    num_seeds = args.seeds or comparison.seeds
    epochs = [f"train.epochs={args.epochs}", f"eval.knn.every_epochs={args.epochs}"]
    common = ["eval.linear={}", f"seed=0..{num_seeds - 1}", *args.common]
    sweeps_of_tables = {table: comparison._asdict()[table] for table in args.tables}
    commands = []
    for table, sweeps in sweeps_of_tables.items():
        for name, values in sweeps.items():
            if table != "few_labels":
                values = [*values, *epochs]
            commands.append(_sweep(folder / name, args.jobs, [*values, *common]))
    codes = _run_some_at_a_time(commands, args.sweeps)
    for table, sweeps in sweeps_of_tables.items():
        if sweeps:
            codes.append(subprocess.call(_table(folder, table, list(sweeps))))
    if "with_labels" in args.tables:
        codes += _run_some_at_a_time(_linear_stages(folder, comparison, args), args.sweeps)
        names = [f"linear_{name}" for name in comparison.with_labels]
        codes.append(subprocess.call([*_table(folder, "linear", names), "--metric", "accuracy"]))
    if any(codes):
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(COMPARISONS))
    parser.add_argument("common", nargs="*", metavar="key=value", help="of every run, e.g. train.precision=bf16")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("comparison"))
    parser.add_argument("--epochs", type=int, default=8, help="of all runs but those with few labels; default: 8")
    parser.add_argument("--seeds", type=int, help="of each setting; default: 5 for photos, 3 for fashion_mnist")
    parser.add_argument("--linear-epochs", type=int, default=20, help="of the linear classifier; default: 20")
    parser.add_argument("--jobs", type=int, default=2, help="runs of a sweep at a time; default: 2")
    parser.add_argument("--sweeps", type=int, default=1, help="sweeps at a time; default: 1")
    return parser.parse_intermixed_args(argv)


def _reptk(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "reptk", *map(str, arguments)]


def _sweep(folder: Path, jobs: int, values: Sequence[str]) -> list[str]:
    return _reptk("sweep", *values, "--jobs", str(jobs), "--out", folder, "--no-report")


def _linear_stages(folder: Path, comparison: Comparison, args: argparse.Namespace) -> list[list[str]]:
    """Return a sweep for each one of the runs with labels: the linear stage on its encoder, with its seed."""
    commands = []
    for name in comparison.with_labels:
        runs = sorted(path.parent for path in (folder / name / "runs").glob("*/results.json"))
        if not runs:
            continue
        # A run's folder is named after its values, with commas, which separate values of a sweep outside of quotes.
        starts = ",".join(json.dumps(str(run)) for run in runs)
        values = ["linear", f"start.run={starts}", f"train.epochs={args.linear_epochs}"]
        values += [f"optim.lr={LINEAR_LEARNING_RATE}", *args.common]
        commands.append(_sweep(folder / f"linear_{name}", args.jobs, values))
    return commands


def _run_some_at_a_time(commands: Sequence[list[str]], number: int) -> list[int]:
    """Run commands and return their exit codes."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(subprocess.call, commands))


def _table(folder: Path, table: str, sweeps: Sequence[str]) -> list[str]:
    """Return the command that writes a table of sweeps."""
    folders = [folder / name for name in sweeps]
    return _reptk("compare", *folders, "--out", folder / "tables" / table, "--report", "--force")


if __name__ == "__main__":
    sys.exit(main())
