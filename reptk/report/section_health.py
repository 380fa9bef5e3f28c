"""The health of the embeddings: whether they use the space they have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reptk.report.formatting import format_number
from reptk.report.run_files import Run


@dataclass(frozen=True)
class Measure:
    """A measure of health: its name on the page, and how to read it."""

    name: str
    explanation: str


MEASURES = {
    "alignment": Measure(
        "alignment",
        "Squared distance of images that belong together: 0, they lie in one place; 2, no nearer than by chance.",
    ),
    "uniformity": Measure(
        "uniformity",
        "How evenly the embeddings cover the sphere: 0 is collapse, lower is more even, about \u22124 the best.",
    ),
    "rank": Measure(
        "rank",
        "Dimensions in use (RankMe). A few of many: collapse; much that could be told apart is not.",
    ),
    "std": Measure(
        "deviation",
        "How far a dimension spreads over the images: 1, all are used evenly; near 0, collapse.",
    ),
}


@dataclass(frozen=True)
class HealthRow:
    """One measure of all encoders."""

    name: str
    values: list[str]
    explanation: str


@dataclass(frozen=True)
class HealthSection:
    """What templates/health.html.j2 shows; `encoders` are the heads of the columns."""

    encoders: list[str]
    rows: list[HealthRow]


def health_section(runs: Sequence[Run]) -> HealthSection | None:
    """Return the health of all encoders of the runs; None if it was not measured."""
    encoders = []
    tables = []
    for run in runs:
        for row, table in run.results.health.items():
            label = run.results.label_of(row)
            encoders.append(label if len(runs) == 1 else f"{run.name}: {label}")
            tables.append(table)
    if not tables:
        return None
    measured: dict[str, None] = {}
    for table in tables:
        measured |= dict.fromkeys(table)
    rows = []
    for key in measured:
        if key in MEASURES:
            values = [_format_measure(key, table) for table in tables]
            rows.append(HealthRow(MEASURES[key].name, values, MEASURES[key].explanation))
    return HealthSection(encoders, rows)


def _format_measure(key: str, table: dict[str, float]) -> str:
    if key == "rank" and table.get("dimensions"):
        return f"{table['rank']:.0f} of {table['dimensions']:.0f}"
    return format_number(table.get(key, math.nan))
