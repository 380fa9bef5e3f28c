"""Every number of an encoder on a data set: reptk evaluate runs/tcl_sup_photos/1 data.name=digits"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptk import config
from reptk.cli.subject import Subject, data_part, subject_of
from reptk.config.registry import load_plugin
from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.errors import DataError, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from reptk.core.console import Logger
    from reptk.data import Data
    from reptk.evaluate import Measured

EXAMPLES = """examples:
  reptk evaluate runs/tcl_sup_photos/1
  reptk evaluate runs/tcl_sup_photos/1 data.name=folder data.root=my_photos --out numbers
  reptk evaluate resnet50 --pretrained data.name=cifar10 size=224
  reptk evaluate tf_efficientnet_lite0 --weights lite0.pth data.name=photos size=96 --only knn eval.knn.k=[1,20]
  reptk evaluate runs/tcl_sup_photos/1 eval.linear_stage.epochs=10
  reptk evaluate train.safetensors --queries test.safetensors eval.knn.index=IVF1024,Flat
"""
EMBEDDINGS = (".safetensors", ".parquet")
LABELLED, UNLABELLED = ("knn", "linear", "few_shot"), ("view_retrieval",)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(asked: argparse.Namespace) -> int:
    from reptk.config.registry import DATASETS, EVALUATORS
    from reptk.core.console import Logger
    from reptk.data import num_cpus, subsample

    for plugin in asked.plugin:
        load_plugin(plugin)
    chosen = config.override({}, asked.overrides)
    strange = sorted(set(chosen) - {"data", "eval", "size"})
    if strange:
        raise UsageError(f"{', '.join(strange)}: what can be set here is data.*, eval.NAME.* and size")
    tables = _tables(chosen.get("eval", {}), asked.only)
    _check_out(asked.out)
    if Path(asked.source).suffix in EMBEDDINGS:
        return _evaluate_file(asked, chosen, tables)
    if asked.queries is not None:
        raise UsageError("--queries goes with a file of embeddings as the bank")
    part = data_part(asked.source, chosen.get("data", {}))
    subject = subject_of(asked, chosen.get("size"))
    log, data = Logger(), config.build(DATASETS, part)
    data = data if asked.limit is None else subsample(data, asked.limit)
    asked.workers = num_cpus() if asked.workers is None else asked.workers
    tables = _fitting(tables, data, asked.only)
    evaluators = [config.build(EVALUATORS, table) for table in tables.values()]
    log.line(f"{subject.name}  on  {part['name']}: {data.protocol}")
    rows = _measure(asked, subject, data, evaluators, log)
    _finish(asked, data, rows, _protocol(asked, subject, part, data, tables), log)
    return 0


def _evaluate_file(asked: argparse.Namespace, chosen: config.Table, tables: dict[str, config.Table]) -> int:
    """Numbers of embeddings as they lie in files."""
    from reptk.config.registry import EVALUATORS
    from reptk.core import environment
    from reptk.core.console import Logger
    from reptk.embeddings import Embeddings, evaluate_embeddings
    from reptk.evaluate import engine

    if {"data", "size"} & set(chosen) or asked.weights or asked.pretrained or asked.limit:
        raise UsageError(
            "a file of embeddings is evaluated as it is: data.*, size, --weights, --pretrained and --limit are not for it"
        )
    log, bank = Logger(), Embeddings.load(asked.source)
    queries = None if asked.queries is None else Embeddings.load(asked.queries)
    evaluators = [config.build(EVALUATORS, table) for table in tables.values()]
    measured, data = evaluate_embeddings(bank, queries, evaluators)
    log.line(f"{asked.source}: {data.protocol}")
    protocol = {"of": asked.source, "queries": asked.queries, "embeddings": bank.about, "splits": data.protocol}
    protocol |= {
        "evaluators": tables,
        "search_engine": engine(),
        "versions": environment.package_versions(),
        "commit": environment.git_commit(),
    }
    _finish(asked, data, {"encoder": measured}, protocol, log)
    return 0


def _measure(
    asked: argparse.Namespace, subject: Subject, data: "Data", evaluators: list[Any], log: "Logger"
) -> "dict[str, Measured]":
    from reptk.config.registry import VIEWS
    from reptk.evaluate import measure, measure_pixels

    table = subject.recipe.get("views", {"name": "simclr", "size": subject.encoder.config["size"]})
    views = config.build(VIEWS, table)
    with_encoder = {"views": views, "device": _device(), "bf16": subject.bf16, "workers": asked.workers}
    searched = (data.train,) if data.query is None else (data.bank, data.query)
    images = sum(len(split) for split in {id(split): split for split in searched}.values())
    rows = {}
    if asked.baselines:
        with log.status("raw pixels"):
            rows["raw pixels"] = measure_pixels(data, evaluators, views, asked.workers)
        if subject.untrained is not None:
            with log.count("untrained encoder", images) as progress:
                rows["untrained"] = measure(subject.untrained, data, evaluators, **with_encoder, progress=progress)
    with log.count("encoder", images) as progress:
        rows["encoder"] = measure(subject.encoder, data, evaluators, **with_encoder, progress=progress)
    return rows


def _finish(
    asked: argparse.Namespace,
    data: "Data",
    rows: "dict[str, Measured]",
    protocol: config.Table,
    log: "Logger",
) -> None:
    from reptk import report
    from reptk.evaluate.results import columns, remarks, results, write

    found = results(rows, data, protocol)
    log.results(columns(rows["encoder"].numbers), found["metrics"])
    log.verdict(found["verdict"], remarks(rows["encoder"]))
    if asked.out is None:
        return
    try:
        if asked.out.suffix == ".json":
            asked.out.write_text(json.dumps(found, indent=2) + "\n")
        else:
            asked.out.mkdir(parents=True, exist_ok=True)
            write(asked.out, found, rows["encoder"], "encoder", data.classes)
            with log.status("drawing the report"):
                report.write(asked.out, data=data)
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write {asked.out}: {cause}") from cause
    log.line(f"  results  {asked.out}")


def _protocol(
    asked: argparse.Namespace, subject: Subject, part: config.Table, data: "Data", tables: dict[str, config.Table]
) -> config.Table:
    from reptk.core import environment
    from reptk.evaluate.results import protocol

    return {
        "of": subject.name,
        "encoder": subject.encoder.config,
        **protocol(part, data, tables, subject.encoder),
        "limit": asked.limit,
        "device": str(_device()),
        "versions": environment.package_versions(),
        "commit": environment.git_commit(),
    }


# How it is evaluated


def _tables(chosen: config.Table, only: Sequence[str] | None) -> dict[str, config.Table]:
    """The evaluators' complete tables by name: the usual ones, and those that an override names; or `only` these."""
    if any(not isinstance(table, dict) for table in chosen.values()):
        raise UsageError("evaluators are set by name, e.g. eval.knn.k=[1,20]")
    names = dict.fromkeys([*LABELLED, *chosen]) if only is None else dict.fromkeys(only)
    if unused := sorted(set(chosen) - set(names)):
        raise UsageError(f"eval.{unused[0]} is set, but --only leaves it out")
    return {name: config.complete(f"eval.{name}", {"name": name, **chosen.get(name, {})}) for name in names}


def _fitting(tables: dict[str, config.Table], data: "Data", only: Sequence[str] | None) -> dict[str, config.Table]:
    """Those that the data set has labels for; without labels, view retrieval."""
    from reptk.config.registry import EVALUATORS

    if data.query is not None:
        return tables
    kept = {name: table for name, table in tables.items() if not getattr(EVALUATORS.get(name), "needs_labels", True)}
    if only is not None and not kept:
        raise DataError(f"{', '.join(only)} need labels, and {data.protocol} has none; leave out --only")
    return kept or {name: config.complete(f"eval.{name}", {"name": name}) for name in UNLABELLED}


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.suffix == ".json":
        if not out.parent.is_dir():
            raise EnvironmentProblem(f"cannot write {out}: there is no folder {out.parent}")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; choose another --out")


def _at_least_2(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 2, got {text}")
    return int(text)


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk evaluate",
        description="Every number of an encoder on a data set, with intervals, beside raw pixels and the untrained encoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a run's folder or its model folder, any timm name, or a file of embeddings")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.name=..., data.root=..., eval.knn.k=[1,20], size=96"
    )
    parser.add_argument(
        "--only", type=lambda names: names.split(","), metavar="NAMES", help="these evaluators alone, e.g. knn,linear"
    )
    parser.add_argument(
        "--queries",
        metavar="FILE",
        help="with a file of embeddings as the bank: those to look for; else each of its own",
    )
    parser.add_argument("--pretrained", action="store_true", help="with a timm name: timm's weights")
    parser.add_argument("--weights", help="with a timm name: a local file of weights")
    parser.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="leave out raw pixels and the untrained encoder"
    )
    parser.add_argument(
        "--limit", type=_at_least_2, metavar="N", help="a quick look: at most N images of the bank, and N queries"
    )
    parser.add_argument("--workers", type=int, help="threads that decode images; default: as many as num_cpus")
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="write results.json and report.html into this folder; or results alone into a .json file",
    )
    asked = parser.parse_intermixed_args(arguments)
    if "=" in asked.source:
        raise UsageError(f"what is to be evaluated comes first, before {asked.source!r}")
    return asked
