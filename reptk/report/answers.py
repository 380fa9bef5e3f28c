"""Classes and confusions: as results.json has them, else counted from the evidence."""

from typing import Any

import torch

from reptk.evaluate.predictions import Predictions
from reptk.report.runs import Run
from reptk.report.words import class_name

WORST = 12


def by_class(run: Run) -> tuple[list[str], list[dict[str, Any]]]:
    """Metrics and one row a class; both empty without labels."""
    if run.results.classes:
        rows = run.results.classes
        measured = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in APART]
        told = [key for key in dict.fromkeys((run.results.headline, *TOLD)) if key in measured]
        return told or measured[: len(TOLD)], rows
    evidence = run.evidence
    if evidence is None or not evidence.vote or not bool((evidence.labels >= 0).any()):
        return [], []
    known = evidence.labels >= 0
    labels, size = evidence.labels[known], int(evidence.labels.max()) + 1
    total = torch.bincount(labels, minlength=size)
    hits = {
        evidence.vote: evidence.predicted[known] == labels,
        "recall@1": evidence.neighbor_labels[known][:, 0] == labels,
    }
    right = {name: torch.bincount(labels[hit], minlength=size) for name, hit in hits.items()}
    rows = [
        {"name": class_name(evidence.classes, label), "queries": int(total[label])}
        | {name: int(counts[label]) / int(total[label]) for name, counts in right.items()}
        for label in total.nonzero().flatten().tolist()
    ]
    return list(hits), rows


TOLD = ("recall@1", "r_precision", "linear")
"""Beside the headline, of all that is measured of a class."""
APART = ("name", "bank", "queries", "label")


def confusions(run: Run) -> list[tuple[str, str, int, int]]:
    """(class, taken for, count, of how many), worst first; empty without labels."""
    listed = [
        (str((row.model_extra or {}).get("class", "?")), row.taken_for, row.count, row.of)
        for row in run.results.confusions
    ]
    return listed[:WORST] if listed else _counted(run.evidence) if run.evidence else []


def matrix(evidence: Predictions) -> torch.Tensor:
    """(C, C) how many labelled queries of a class (row) were taken for each (column)."""
    known = (evidence.labels >= 0) & (evidence.predicted >= 0)
    labels, predicted = evidence.labels[known], evidence.predicted[known]
    size = max(len(evidence.classes), int(torch.cat([labels, predicted, labels.new_zeros(1)]).max()) + 1)
    return torch.bincount(labels * size + predicted, minlength=size * size).view(size, size)


def _counted(evidence: Predictions) -> list[tuple[str, str, int, int]]:
    if not evidence.vote:
        return []
    counts = matrix(evidence)
    total = counts.sum(1)
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:WORST]
    pairs = [divmod(int(place), len(counts)) for place in order if wrong.flatten()[place] > 0]
    named = [
        (own, other, class_name(evidence.classes, own), class_name(evidence.classes, other)) for own, other in pairs
    ]
    return [(name, taken_for, int(wrong[own, other]), int(total[own])) for own, other, name, taken_for in named]
