"""results.json: every number with what stands beside it. One schema for runs and for `reptk evaluate`.

schema      1; raised when a reader of the old one would be wrong
headline    the metric that stands for all, e.g. "knn@20"
metrics     {row: {name: value}}; shares between 0 and 1; the last row is the encoder that was asked about ("trained" in
            a run, "encoder" elsewhere), the others are what it is held against
intervals   {row: {name: [low, high]}}: 95 % bootstrap over queries, for every number that is a mean over queries
gains       {row: {name: [value, low, high]}}: the last row minus this one, by paired bootstrap
classes     [{"name", "bank", "queries", name: value, ...}] of the last row: images of the class, and its own numbers
confusions  [{"class", "taken_for", "count", "of"}], the commonest first
health      {row: {"alignment", "uniformity", "rank", "dimensions", "std"}}, see `reptk.evaluate.health`
copies      share of the queries that have a copy of themselves in the bank (by raw pixels, if they were measured)
notes       {row: {evaluator: ...}}: what evaluators chose, e.g. the probe's regularisation
verdict     {"level": "good" | "fair" | "poor", "sentence", "advice": [...]}, see `reptk.evaluate.verdict`
protocol    how all of it was measured: data, splits, evaluators, image size, seed, device, versions, commit
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.files import write_text
from reptk.data import Data
from reptk.evaluate.evaluators import headline_k
from reptk.evaluate.mean import DRAWS, Mean, gains, intervals
from reptk.evaluate.measure import Measured
from reptk.evaluate.verdict import verdict
from reptk.models.encoder import Encoder
from reptk.neighbors import engine_name

SCHEMA = 1
FILE = "results.json"
MOST_CONFUSIONS = 50
COPY = 1e-6
"""How far below 1 the cosine similarity of a copy may lie."""

Table = dict[str, Any]


def results(rows: Mapping[str, Measured], data: Data, protocol: Table) -> Table:
    """The content of results.json. The last of the rows is the one that was asked about."""
    *others, main = rows
    asked = rows[main]
    made: Table = {
        "schema": SCHEMA,
        "headline": headline(asked.numbers),
        "metrics": {row: dict(measured.numbers) for row, measured in rows.items()},
        "intervals": {row: intervals(measured.numbers) for row, measured in rows.items()},
        "gains": {row: gains(asked.numbers, rows[row].numbers) for row in others},
        "classes": classes(asked, data),
        "confusions": confusions(asked, data.classes),
        "health": {row: measured.health for row, measured in rows.items() if measured.health},
        "copies": copies(rows),
        "notes": {row: measured.notes for row, measured in rows.items() if measured.notes},
    }
    return made | {"verdict": verdict(made), "protocol": protocol}


def protocol(part: Table, data: Data, evaluators: Mapping[str, Any], encoder: Encoder) -> Table:
    """What every number was measured on and by."""
    splits = {name: getattr(data, name) for name in ("train", "bank", "query")}
    return {
        "data": part,
        "splits": data.protocol,
        "images": {name: len(split) for name, split in splits.items() if split is not None},
        "classes": len(data.classes),
        "leave_one_out": data.bank is not None and data.bank is data.query,
        "evaluators": dict(evaluators),
        "features": "backbone output, evaluation mode, L2-normalised; similarity: cosine",
        "votes": "knn: weighted by exp(similarity / temperature); knn_majority: one vote each, ties to the larger weight",
        "intervals": f"95 %, percentile bootstrap over queries, {DRAWS} draws",
        "evaluation_image": {"size_px": encoder.config["size"], "crop": data.crop},
        "search_engine": engine_name(),
        "threads": torch.get_num_threads(),
        **({"decoded_by": decoded_by} if (decoded_by := getattr(data.train.images, "decoded_by", None)) else {}),
    }


def write(folder: Path, made: Table, measured: Measured, row: str, classes: tuple[str, ...]) -> None:
    """Write results.json, and beside it the answers that stand behind it."""
    if measured.answers is not None:
        measured.answers.evidence(row, classes).save(folder)
    write_text(folder / FILE, json.dumps(made, indent=2) + "\n")


def headline(numbers: Mapping[str, float]) -> str:
    """The metric that stands for all: the weighted kNN whose k is nearest to 20, else the first."""
    votes = [int(name[4:]) for name in numbers if name.startswith("knn@") and name[4:].isdigit()]
    return f"knn@{headline_k(votes)}" if votes else next(iter(numbers))


def columns(numbers: Mapping[str, float]) -> list[str]:
    """What a table on a terminal has room for; the rest is in results.json."""
    left_out = ("knn_majority", "precision", "few_shot_std", "mrr")
    return [name for name in numbers if not name.startswith(left_out) and "," not in name]


def remarks(measured: Measured) -> list[str]:
    """What has to stand beside the numbers on a terminal: how much an approximate index finds."""
    knn = measured.notes.get("knn", {})
    return [
        f"searched by {knn['index']}, which finds {100 * value:.1f} % of the {name.partition('@')[2]} nearest"
        for name, value in knn.items()
        if name.startswith("index_recall@")
    ]


def classes(measured: Measured, data: Data) -> list[Table]:
    """A table for each class that has queries: how many images it has, and its share of right answers by each measure."""
    answers = measured.answers
    if answers is None or not data.classes or not answers.k:
        return []
    bank = torch.bincount(data.bank.labels[data.bank.labels >= 0], minlength=len(data.classes))
    queries = torch.bincount(answers.labels, minlength=len(data.classes))
    by_class = {
        name: _by_class(value.values, answers.labels, len(data.classes))
        for name, value in measured.numbers.items()
        if isinstance(value, Mean) and len(value.values) == len(answers.labels) and not name.startswith("knn_majority")
    }
    return [
        {
            "name": name,
            "bank": int(bank[number]),
            "queries": int(queries[number]),
            **{measure: share for measure, shares in by_class.items() if (share := shares[number]) is not None},
        }
        for number, name in enumerate(data.classes)
        if queries[number]
    ]


def confusions(measured: Measured, names: Sequence[str]) -> list[Table]:
    """Which classes are taken for which, by the headline's vote; the commonest first."""
    answers = measured.answers
    if answers is None or not answers.k:
        return []
    of = torch.bincount(answers.labels, minlength=len(names))
    wrong = answers.predicted != answers.labels
    pairs, counts = torch.stack([answers.labels, answers.predicted])[:, wrong].unique(dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_CONFUSIONS]
    return [
        {"class": names[true], "taken_for": names[taken], "count": count, "of": int(of[true])}
        for (true, taken), count in zip(pairs.T[order].tolist(), counts[order].tolist(), strict=True)
    ]


def copies(rows: Mapping[str, Measured]) -> float:
    """The share of queries whose nearest neighbour, other than themselves, is as good as identical."""
    answers = rows.get("raw pixels", list(rows.values())[-1]).answers
    if answers is None or not answers.k:
        return 0.0
    return (answers.similarities[:, 0] > 1 - COPY).double().mean().item()


def _by_class(values: Tensor, labels: Tensor, count: int) -> list[float | None]:
    present = ~values.isnan()
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, labels[present], values[present].double())
    counts = torch.bincount(labels[present], minlength=count)
    return [
        round(total / number, 6) if number else None
        for total, number in zip(sums.tolist(), counts.tolist(), strict=True)
    ]
