"""The page's plots as PNG files, for slides and papers: curves, map, confusions. Drawn by matplotlib, where it is there."""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from reptk.core import rng
from reptk.core.errors import EnvironmentProblem
from reptk.report import answers, curves, layouts
from reptk.report.runs import Run
from reptk.report.words import class_name

DPI = 150
MOST_CLASSES = 40
"""Of a matrix whose names can still be read."""
COLOURS = ("#0f6b6b", "#b5541c", "#5b4fa0", "#8a7a12", "#a03a66", "#4c6a2f")
INK, QUIET, HAIRLINE = "#1f1f1d", "#6a6a66", "#d9d9d6"
CLASS_COLOURS = [
    "#2f6db5",
    "#d9770f",
    "#2a8f57",
    "#c8403a",
    "#7a57c2",
    "#84563a",
    "#c64d94",
    "#858a12",
    "#1791a0",
    "#6c7178",
]
CLASS_COLOURS += [
    "#8fb8e8",
    "#f3b877",
    "#85cfa5",
    "#ec9a92",
    "#bcaae6",
    "#bb9a82",
    "#e79fca",
    "#c3c76b",
    "#77c6d0",
    "#b1b6bc",
]
STYLE = {
    "font.size": 9,
    "axes.edgecolor": HAIRLINE,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "figure.facecolor": "white",
    "svg.hashsalt": "reptk",
}
MISSING = "PNG plots need matplotlib, which is not installed: pip install 'reptk[viz]'"


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """`curves.png`, `map.png` and `confusion.png`, as far as the runs have them; one warning without matplotlib.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    if find_spec("matplotlib") is None:
        warnings.warn(MISSING, stacklevel=2)
        return []
    import matplotlib as mpl

    made = []
    with mpl.rc_context(STYLE):
        for name, draw in (("curves", _curves), ("map", _map), ("confusion", _confusion)):
            figure = draw(runs)
            if figure is not None:
                made.append(_saved(figure, folder / f"{name}.png"))
    return made


def _saved(figure: Any, path: Path) -> Path:
    unfinished = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(unfinished, dpi=DPI, format="png", metadata={"Software": None})
        unfinished.replace(path)
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write {path}: {cause.strerror or cause}. Choose another --png") from cause
    return path


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _curves(runs: Sequence[Run]) -> Any:
    panels = curves.panels(runs)
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(3.6 * columns, 2.4 * rows)
    for panel, axes in zip(panels, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        for line in panel.series:
            style = {"color": COLOURS[line.style % len(COLOURS)], "linewidth": 1.5, "label": line.name}
            axes.plot(
                *zip(*line.points, strict=True), marker="o" if len(line.points) <= 20 else None, markersize=3, **style
            )
        for name, value, _ in panel.levels:
            axes.axhline(value, color=QUIET, linewidth=0.8, linestyle="--")
            axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
        axes.set_title(panel.title)
        axes.yaxis.set_major_formatter(_formatter(panel.write))
        axes.grid(axis="y", color=HAIRLINE, linewidth=0.5)
    for axes in list(figure.axes)[len(panels) :]:
        axes.set_axis_off()
    if len(runs) > 1:
        figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def _formatter(write: Callable[[float], str]) -> Callable[[float, int], str]:
    return lambda value, _: write(value)


def _map(runs: Sequence[Run]) -> Any:
    shown = [run for run in runs if run.evidence is not None and len(run.evidence.index)]
    if not shown:
        return None
    figure = _figure(5.2 * len(shown), 5)
    for run, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False).flat, strict=True):
        evidence, points = run.evidence, layouts.layout("pca", run.evidence.features).numpy()
        order = torch.randperm(len(points), generator=rng.generator("report", "map", len(points))).numpy()
        colours = [_colour(label) for label in evidence.labels[order].tolist()]
        axes.scatter(*points[order].T, s=4, c=colours, linewidths=0, alpha=0.7)
        axes.set_title(f"{run.title if len(shown) == 1 else run.name}: PCA of {len(points):,} queries")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(False)
    labels = shown[-1].evidence.labels.unique().tolist()
    if 1 < len(labels) <= 20:
        for label in labels:
            axes.scatter([], [], s=24, c=[_colour(label)], label=class_name(shown[-1].evidence.classes, label))
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _colour(label: int) -> str:
    return QUIET if label < 0 else CLASS_COLOURS[label % len(CLASS_COLOURS)]


def _confusion(runs: Sequence[Run]) -> Any:
    shown = [run for run in runs if run.evidence is not None and run.evidence.vote and len(run.evidence.classes) > 1]
    shown = [run for run in shown if len(run.evidence.classes) <= MOST_CLASSES]
    if not shown:
        return None
    size = 2.2 + 0.24 * max(len(run.evidence.classes) for run in shown)
    figure = _figure(size * len(shown), size)
    for run, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False).flat, strict=True):
        counts = answers.matrix(run.evidence).double()
        names = [class_name(run.evidence.classes, label) for label in range(len(counts))]
        axes.imshow((counts / counts.sum(1, keepdim=True).clamp_min(1)).numpy(), cmap="Greys", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlabel("taken for")
        axes.set_ylabel("class")
        axes.set_title(run.title if len(shown) == 1 else run.name)
    return figure
