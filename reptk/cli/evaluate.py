"""All metrics of an encoder on a data set: reptk evaluate runs/tcl_sup_photos/1 data.name=digits"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reptk import config
from reptk.cli.overrides import parse_overrides
from reptk.cli.run_plugins import load_plugins
from reptk.cli.subject import Subject, data_table, open_subject
from reptk.core.command_line import ArgumentParser, add_device_option, add_plugin_options, integer_from, run_command
from reptk.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from reptk.core.console import Logger
    from reptk.data import Data
    from reptk.evaluate import Evaluation, Evaluator

EXAMPLES = """examples:
  reptk evaluate runs/tcl_sup_photos/1
  reptk evaluate runs/tcl_sup_photos/1 data.name=folder data.root=my_photos --out numbers
  reptk evaluate resnet50 --pretrained data.name=cifar10 size=224
  reptk evaluate tf_efficientnet_lite0 --weights lite0.pth data.name=photos size=96 --only knn eval.knn.k=[1,20]
  reptk evaluate runs/tcl_sup_photos/1 eval.linear_stage.epochs=10
  reptk evaluate train.safetensors --queries test.safetensors eval.knn.index=IVF1024,Flat
"""
EMBEDDING_SUFFIXES = (".safetensors", ".parquet")
DEFAULT_EVALUATORS = ("knn", "linear", "few_shot")
DEFAULT_VIEWS = "simclr"

Tables = dict[str, config.Table]


class Evaluated(NamedTuple):
    """The evaluations by row of the results ("encoder" among them), the data set, and how they were measured."""

    rows: "dict[str, Evaluation]"
    data: "Data"
    protocol: config.Table
    has_images: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.core.console import Logger

    load_plugins(args.source, args.plugin, trust=args.trust)
    allowed = "data.*, eval.NAME.* and size"
    overrides = parse_overrides(args.overrides, tables=["data", "eval"], keys=["size"], allowed=allowed)
    tables = _evaluator_tables(overrides.get("eval", {}), args.only)
    _check_out(args.out, force=args.force)  # before the evaluation, which may take hours
    logger = Logger()
    if Path(args.source).suffix in EMBEDDING_SUFFIXES or _holds_parts(args.source):
        evaluated = _evaluate_file(args, overrides, tables, logger)
    else:
        evaluated = _evaluate_encoder(args, overrides, tables, logger)
    _report(evaluated, args.out, logger)
    return 0


def _holds_parts(source: str) -> bool:
    from reptk.embeddings.files.parts_manifest import is_parts_folder

    return is_parts_folder(source)


def _evaluate_file(args: argparse.Namespace, overrides: config.Table, tables: Tables, logger: "Logger") -> Evaluated:
    """Evaluate a file or a folder of embeddings."""
    from reptk.config.registry import EVALUATORS
    from reptk.embeddings import Embeddings, evaluate_embeddings
    from reptk.evaluate.results import software

    is_about_images = "data" in overrides or "size" in overrides
    if is_about_images or args.weights or args.pretrained or args.limit:
        raise UsageError(
            "a file of embeddings is evaluated as it is: data.*, size, --weights, --pretrained and --limit are not for it"
        )
    bank = Embeddings.load(args.source)
    queries = None
    if args.queries is not None:
        queries = Embeddings.load(args.queries)
    evaluators = [config.build(EVALUATORS, table) for table in tables.values()]
    with logger.stages("embeddings") as progress:
        evaluation, data = evaluate_embeddings(bank, queries, evaluators, progress=progress)
    logger.line(f"{args.source}: {data.protocol}")
    protocol = {
        "of": args.source,
        "queries": args.queries,
        "embeddings": bank.metadata,
        "splits": data.protocol,
        "evaluators": tables,
        **software(),
    }
    return Evaluated({"encoder": evaluation}, data, protocol, has_images=False)


def _evaluate_encoder(args: argparse.Namespace, overrides: config.Table, tables: Tables, logger: "Logger") -> Evaluated:
    """Evaluate the encoder of a run or a timm backbone, and its baselines."""
    from reptk.config.registry import DATASETS
    from reptk.core.device import choose_device
    from reptk.data import num_cpus, subsample
    from reptk.data.bad_samples import BadSamples
    from reptk.evaluate import build_evaluators
    from reptk.evaluate.results import protocol

    if args.queries is not None:
        raise UsageError("--queries goes with a file of embeddings as the bank")
    table = data_table(args.source, overrides.get("data", {}))
    subject = open_subject(
        args.source,
        size=overrides.get("size"),
        pretrained=args.pretrained,
        weights=args.weights,
        baselines=args.baselines,
    )
    table = subject.complete_data(table)
    data = config.build(DATASETS, table)
    if args.limit is not None:
        data = subsample(data, args.limit)
    classifier = _suitable_classifier(subject, data, args.only, logger)
    evaluators, _ = build_evaluators(tables, data, has_classifier=classifier is not None)
    if classifier is not None and args.only is not None:
        # `build_evaluators` adds the accuracy of a classifier.
        evaluators = {key: evaluator for key, evaluator in evaluators.items() if key in args.only}
    # `build_evaluators` drops those that need labels if there are none.
    if args.only is not None and not set(evaluators) & set(args.only):
        raise DataError(f"{', '.join(args.only)} need labels, and {data.protocol} has none; leave out --only")
    logger.line(f"{subject.name}  on  {table['name']}: {data.protocol}")
    device = choose_device(args.device)
    workers = args.workers
    if workers is None:
        workers = num_cpus()
    rows = _evaluate_rows(subject, data, list(evaluators.values()), classifier, device, workers, args.baselines, logger)
    BadSamples(data, logger).update()
    return Evaluated(
        rows,
        data,
        {
            "of": subject.name,
            "encoder": subject.encoder.config,
            "untrained": "the same architecture with random weights",
            **protocol(table, data, _tables_of(evaluators, tables), subject.encoder),
            "limit": args.limit,
            "device": str(device),
        },
    )


def _suitable_classifier(
    subject: Subject, data: "Data", only: Sequence[str] | None, logger: "Logger"
) -> "nn.Linear | None":
    """Return the classifier of a run if it knows the classes of the data set; say so if it does not."""
    if subject.classifier is None:
        return None
    difference = subject.classifier.difference_to(data.classes)
    if difference is None:
        return subject.classifier.module
    reason = f"the classifier of {subject.name} has other classes: {difference}"
    if only is not None and "accuracy" in only:
        raise DataError(reason)
    logger.line(f"accuracy is left out: {reason}")
    return None


def _evaluate_rows(
    subject: Subject,
    data: "Data",
    evaluators: "list[Evaluator]",
    classifier: "nn.Linear | None",
    device: Any,
    workers: int,
    baselines: bool,
    logger: "Logger",
) -> "dict[str, Evaluation]":
    from reptk.config.registry import VIEWS
    from reptk.evaluate import evaluate_encoder, evaluate_pixels
    from reptk.evaluate.run import Execution

    # Used by evaluators that compare views of images. A timm backbone does not say which views it was trained with.
    default_views = {"name": DEFAULT_VIEWS, "size": subject.encoder.config["size"]}
    views = config.build(VIEWS, config.complete("views", subject.recipe.get("views", default_views)))
    rows = {}
    encoders = {"encoder": subject.encoder}
    # The untrained encoder has none: a classifier of other features would guess.
    classifiers = {"encoder": classifier, "untrained": None}
    if baselines:
        with logger.stages("raw pixels") as progress:
            rows["raw pixels"] = evaluate_pixels(data, evaluators, views=views, workers=workers, progress=progress)
        if subject.untrained is not None:
            encoders = {"untrained": subject.untrained, **encoders}
    for row, encoder in encoders.items():
        title = "encoder"
        if row == "untrained":
            title = "untrained encoder"
        with logger.stages(title) as progress:
            rows[row] = evaluate_encoder(
                encoder,
                data,
                evaluators,
                classifier=classifiers[row],
                views=views,
                execution=Execution(device, subject.precision, workers),
                progress=progress,
            )
    return rows


def _report(evaluated: Evaluated, out: Path | None, logger: "Logger") -> None:
    """Print the metrics, and write them to the file `out`, or with a report into the folder `out`."""
    from reptk import report
    from reptk.core.disk_space import explain_write_errors
    from reptk.core.files import json_text, write_text
    from reptk.evaluate.results import build_results, remarks, table_columns, write_results

    evaluation = evaluated.rows["encoder"]
    results = build_results(evaluated.rows, evaluated.data, evaluated.protocol)
    logger.results(table_columns(evaluation.metrics), results["metrics"])
    logger.verdict(results["verdict"], remarks(evaluation))
    if out is None:
        return
    with explain_write_errors(out):
        if out.suffix == ".json":
            write_text(out, json_text(results, indent=2) + "\n")
        else:
            out.mkdir(parents=True, exist_ok=True)
            write_results(out, results, evaluation)
            with logger.status("drawing the report"):
                # The splits of a file of embeddings hold vectors, which the report cannot show.
                data_with_images = None
                if evaluated.has_images:
                    data_with_images = evaluated.data
                report.write(out, data=data_with_images)
    logger.line(f"  results  {out}")


def _evaluator_tables(overrides: Tables, only: Sequence[str] | None) -> Tables:
    """Return the complete tables of evaluators by name: those of `only`, else the default ones and those with an override."""
    if any(not isinstance(table, dict) for table in overrides.values()):
        raise UsageError("evaluators are set by name, e.g. eval.knn.k=[1,20]")
    if only is None:
        names = dict.fromkeys([*DEFAULT_EVALUATORS, *overrides])
    else:
        names = dict.fromkeys(only)
    unused = sorted(set(overrides) - set(names))
    if unused:
        raise UsageError(f"eval.{unused[0]} is set, but --only leaves it out")
    return {name: _complete(name, overrides.get(name, {})) for name in names}


def _tables_of(evaluators: "dict[str, Evaluator]", tables: Tables) -> Tables:
    """Return the tables of the evaluators that ran. Without labels, `build_evaluators` may have added one with its defaults."""
    return {name: tables.get(name) or _complete(name, {}) for name in evaluators}


def _complete(name: str, overrides: config.Table) -> config.Table:
    return config.complete(f"eval.{name}", {"name": name, **overrides})


def _check_out(out: Path | None, *, force: bool) -> None:
    from reptk.core.files import holds_only, sweep_leftovers
    from reptk.embeddings.files.output_path import check_new_folder, check_output_file
    from reptk.evaluate.results import FILE_NAMES
    from reptk.report.write_report import FILE as REPORT_FILE

    if out is None:
        return
    if out.suffix == ".json":
        check_output_file(out, force=force)
    elif out.exists():
        # The report is written last. Without it, a process was killed before it had written all, and all is written again.
        is_unfinished = holds_only(out, FILE_NAMES | {REPORT_FILE}) and not (out / REPORT_FILE).exists()
        sweep_leftovers(out)
        if not is_unfinished:
            raise UsageError(f"{out} is there already; choose another --out")
    else:
        check_new_folder(out)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk evaluate",
        description="All metrics of an encoder on a data set, with intervals, next to raw pixels and the untrained encoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a run's folder or its model folder, any timm name, or a file of embeddings")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.name=..., data.root=..., eval.knn.k=[1,20], size=96"
    )
    parser.add_argument(
        "--only", type=lambda names: names.split(","), metavar="NAMES", help="only these evaluators, e.g. knn,linear"
    )
    parser.add_argument(
        "--queries",
        metavar="FILE",
        help="with a file of embeddings as the bank: the queries; default: every embedding of the bank",
    )
    add_device_option(parser)
    parser.add_argument("--pretrained", action="store_true", help="with a timm name: timm's weights")
    parser.add_argument("--weights", help="with a timm name: a checkpoint, FILE or FILE:PART, a folder or hf-hub:NAME")
    parser.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="leave out raw pixels and the untrained encoder"
    )
    parser.add_argument(
        "--limit", type=integer_from(2), metavar="N", help="a quick look: at most N images of the bank, and N queries"
    )
    parser.add_argument(
        "--workers", type=integer_from(0), help="threads that decode images; default: as many as processor cores"
    )
    add_plugin_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help="write results.json and report.html into this folder; or only the results, into a .json file",
    )
    parser.add_argument("--force", action="store_true", help="write over --out if it is a file that exists")
    args = parser.parse_intermixed_args(arguments)
    if "=" in args.source:
        raise UsageError(f"what is to be evaluated comes first, before {args.source!r}")
    return args
