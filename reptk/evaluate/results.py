"""results.json: every number with its interval, gains and protocol. One schema for runs and for `reptk evaluate`.

schema      1; raised when a reader of the previous schema would be wrong
headline    the main metric, which early stopping and the choice of the best weights compare, too: "accuracy" where the recipe
            lists that evaluator first, as the stages do, and where a classifier is trained on a frozen backbone, whose features
            no training changes; else the weighted kNN with k nearest to 20, e.g. "knn@20", so that cross-entropy and
            contrastive losses are compared in one number; else the first metric
metrics     {row: {name: value}}; shares between 0 and 1; the last row is the encoder that is evaluated ("trained" in a run,
            "encoder" elsewhere), the others are its baselines; "untrained" is the encoder before training, and
            protocol["untrained"] says with which weights (protocol["initial_weights"]: "pretrained", "random", or "starting",
            in a stage); "trained" is the encoder with the weights that `model` names, or, where those are "pretrained", with
            those that it is better than
intervals   {row: {name: [low, high]}}: 95 % bootstrap over queries, for every metric that is a mean over queries
gains       {row: {name: [value, low, high]}}: the last row minus this one, by paired bootstrap
classes     [{"name", "bank", "queries", name: value, ...}] of the last row: images of the class, and its own metrics
confusions  [{"class", "taken_for", "count", "of"}], the most frequent first
health      {row: {"alignment", "uniformity", "rank", "dimensions", "std"}}, see `reptk.evaluate.health`
copies      share of the queries that have a copy of themselves in the bank (by raw pixels, if they were evaluated)
notes       {row: {evaluator: ...}}: what evaluators chose, e.g. the probe's regularization, and the accuracy of chance
training    {"epochs": number that was trained,
            "warnings": {"collapse" | "prototypes" | "divergence" | "temperature" | "shortcut": [epochs]},
            "advice": {"prototypes" | "temperature": what to change, with the keys of the method}, if it warned of them,
            "frozen_backbone": true if none of its weights was trained, so that its features are those before training;
            "stopped_early": {"epochs": of the recipe, "best_epoch", "metric", "value", "patience_epochs"} if it ended
            before}; of a run only
model       {"weights": "last" | "best" | "pretrained", "epoch", "rule": train.final_weights, "metric": by which the best
            evaluation was chosen, "sentence": if they are not the last ones}: which weights are in model/; of a run only
verdict     {"level": "good" | "fair" | "poor" | "", "sentence", "advice": [...]}, see `reptk.evaluate.verdict`; "": nothing to
            compare with
protocol    how all of it was measured: data, splits, evaluators, image size, seed, device, versions, commit
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core import environment
from reptk.core.errors import UsageError
from reptk.core.files import json_text, write_text
from reptk.data import Data
from reptk.evaluate.comparison import knn_metric
from reptk.evaluate.intervals import NUM_DRAWS, QueryMean, gains, intervals
from reptk.evaluate.predictions import FILE as PREDICTIONS_FILE
from reptk.evaluate.run import Evaluation
from reptk.evaluate.verdict import RAW_PIXELS, verdict
from reptk.evaluate.voting import WEIGHTING
from reptk.models.encoder import Encoder
from reptk.neighbors import engine_name

SCHEMA = 1
FILE = "results.json"
FILE_NAMES = frozenset({FILE, PREDICTIONS_FILE})
"""All that `write_results` writes."""
MAX_CONFUSIONS = 50

COPY_TOLERANCE = 1e-6
"""How far below 1 the cosine similarity of a copy may be."""

Table = dict[str, Any]


def build_results(
    rows: Mapping[str, Evaluation], data: Data, protocol: Table, *, training: Table | None = None
) -> Table:
    """Return the content of results.json.

    Args:
        rows: evaluations by row; the last is the encoder that is evaluated, the others are its baselines.
        data: that they were evaluated on.
        protocol: see `protocol`.
        training: how a run was trained, see `training` above; None for what is not a run.
    """
    *baselines, last = rows
    evaluation = rows[last]
    results: Table = {
        "schema": SCHEMA,
        "headline": headline(evaluation.metrics),
        "metrics": {row: dict(rows[row].metrics) for row in rows},
        "intervals": {row: intervals(rows[row].metrics) for row in rows},
        "gains": {row: gains(evaluation.metrics, rows[row].metrics) for row in baselines},
        "classes": class_table(evaluation, data),
        "confusions": confusions(evaluation, data.classes),
        "health": {row: rows[row].health for row in rows if rows[row].health},
        "copies": share_of_copies(rows),
        "notes": {row: rows[row].notes for row in rows if rows[row].notes},
    }
    if training is not None:
        results["training"] = training
    # The verdict names the baselines by the protocol; in the file it stands above it.
    results["verdict"] = verdict({**results, "protocol": protocol})
    results["protocol"] = protocol
    return results


def with_model(results: Table, model: Table) -> Table:
    """Return results of a run with `model`, which weights it ends in, and with the verdict that says so."""
    table = {}
    for key, value in results.items():
        if key == "verdict":
            table["model"] = model
        table[key] = value
    table["verdict"] = verdict(table)
    return table


def protocol(
    data_table: Table, data: Data, evaluators: Mapping[str, Any], encoder: Encoder, *, commit: str | None = None
) -> Table:
    """Return how metrics of images are measured.

    Args:
        data_table: the `[data]` table.
        data: its data set.
        evaluators: their tables by key.
        encoder: that is evaluated.
        commit: of the code that ran; None for the present one.
    """
    splits = {"train": data.train, "bank": data.bank, "query": data.query}
    table = {
        "data": data_table,
        "splits": data.protocol,
        "images": {name: len(split) for name, split in splits.items() if split is not None},
        "classes": len(data.classes),
        "leave_one_out": data.bank is not None and data.bank is data.query,
        "evaluators": dict(evaluators),
        "features": "backbone output, evaluation mode, L2-normalized; similarity: cosine",
        "votes": f"knn: weighted by {WEIGHTING}; knn_majority: one vote each, ties to the larger weight",
        "intervals": f"95 %, percentile bootstrap over queries, {NUM_DRAWS} draws",
        "evaluation_image": {
            "size_px": encoder.config["size"],
            "crop": data.crop,
            "resize": data.resize,
            "interpolation": data.interpolation,
        },
        "threads": torch.get_num_threads(),
        **software(commit),
    }
    decoded_by = data.train.images.decoded_by
    if decoded_by is not None:
        table["decoded_by"] = decoded_by
    return table


def software(commit: str | None = None) -> Table:
    """Return the part of a protocol that names the software: search engine, versions of packages, commit of reptk."""
    return {
        "search_engine": engine_name(),
        "versions": environment.package_versions(),
        "commit": commit or environment.git_commit(),
    }


def write_results(folder: Path, results: Table, evaluation: Evaluation) -> None:
    """Write results.json and the predictions of its last row into a folder.

    Args:
        folder: an existing folder.
        results: see `build_results`.
        evaluation: of the last row.
    """
    if evaluation.predictions is not None:
        last_row = list(results["metrics"])[-1]
        evaluation.predictions.sampled(row=last_row).save(folder)
    write_text(folder / FILE, json_text(results, indent=2) + "\n")


def headline(metrics: Mapping[str, float]) -> str:
    """Return the name of the main metric: the weighted kNN with k nearest to 20, else the first metric.

    If the first metric is `accuracy`, that of a trained classifier, then it is the main one: the recipe lists it first.

    Raises:
        UsageError: there are no metrics.
    """
    if next(iter(metrics), None) == "accuracy":
        return "accuracy"
    knn = knn_metric(metrics)
    if knn:
        return knn[0]
    if not metrics:
        raise UsageError("no evaluator returned a metric; name one that does in an [eval.NAME] table")
    return next(iter(metrics))


def table_columns(metrics: Mapping[str, float]) -> list[str]:
    """Return the metrics that fit into a table on a terminal; all of them are in results.json."""
    left_out = ("knn_majority", "precision", "few_shot_std", "mrr")
    return [name for name in metrics if not name.startswith(left_out) and "," not in name]


def remarks(evaluation: Evaluation) -> list[str]:
    """Return what has to be printed with the metrics: the recall of an approximate index."""
    note = evaluation.notes.get("knn", {})
    lines = []
    for name, value in note.items():
        prefix, _, k = name.partition("@")
        if prefix == "index_recall":
            lines.append(f"searched by {note['index']}, which finds {100 * value:.1f} % of the {k} nearest")
    return lines


def class_table(evaluation: Evaluation, data: Data) -> list[Table]:
    """Return a row for each class that has queries: how many images it has, and its mean of every metric of queries."""
    predictions = evaluation.predictions
    if predictions is None or not predictions.vote or not data.classes:
        return []
    num_classes = len(data.classes)
    bank_labels = data.bank.labels
    bank_counts = torch.bincount(bank_labels[bank_labels >= 0], minlength=num_classes)
    query_counts = torch.bincount(predictions.labels, minlength=num_classes)
    means: dict[str, list[float | None]] = {}
    for name, value in evaluation.metrics.items():
        # Only with a value for every query can the values be assigned to classes.
        is_of_all_queries = isinstance(value, QueryMean) and len(value.values) == len(predictions)
        if is_of_all_queries and not name.startswith("knn_majority"):
            means[name] = _class_means(value.values, predictions.labels, num_classes)
    table = []
    for label, class_name in enumerate(data.classes):
        if not query_counts[label]:
            continue
        row = {"name": class_name, "bank": int(bank_counts[label]), "queries": int(query_counts[label])}
        for name, values in means.items():
            if values[label] is not None:
                row[name] = values[label]
        table.append(row)
    return table


def confusions(evaluation: Evaluation, classes: Sequence[str]) -> list[Table]:
    """Return which classes are taken for which by the headline's vote, the most frequent first."""
    predictions = evaluation.predictions
    if predictions is None or not predictions.vote:
        return []
    labels, predicted = predictions.labels, predictions.predicted
    query_counts = torch.bincount(labels, minlength=len(classes))
    is_wrong = predicted != labels
    # Each different column of (2, errors) is a confusion.
    pairs, counts = torch.stack([labels, predicted])[:, is_wrong].unique(dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MAX_CONFUSIONS]
    table = []
    for (label, taken_for), count in zip(pairs.T[order].tolist(), counts[order].tolist(), strict=True):
        table.append(
            {
                "class": classes[label],
                "taken_for": classes[taken_for],
                "count": count,
                "of": int(query_counts[label]),
            }
        )
    return table


def share_of_copies(rows: Mapping[str, Evaluation]) -> float:
    """Return the share of queries whose nearest neighbor, other than themselves, is practically identical."""
    last = list(rows.values())[-1]
    # An encoder may map different images to one point; pixels tell copies from those.
    predictions = rows.get(RAW_PIXELS, last).predictions
    if predictions is None or not predictions.vote:
        return 0.0
    return (predictions.similarities[:, 0] > 1 - COPY_TOLERANCE).double().mean().item()


def _class_means(values: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """The mean of the values (q,) that are not NaN by class, rounded; None for a class without any."""
    # Summed in float64: float32 loses digits over many queries.
    is_present = ~values.isnan()
    sums = torch.zeros(num_classes, dtype=torch.float64)
    sums.index_add_(0, labels[is_present], values[is_present].double())
    counts = torch.bincount(labels[is_present], minlength=num_classes)
    means: list[float | None] = []
    for total, count in zip(sums.tolist(), counts.tolist(), strict=True):
        if count:
            means.append(round(total / count, 6))
        else:
            means.append(None)
    return means
