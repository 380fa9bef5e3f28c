"""The page's plots as PNG files, for slides and papers: curves, map, confusions. They need matplotlib."""

import io
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reptk.core import rng
from reptk.core.counts import format_count
from reptk.core.disk_space import explain_write_errors
from reptk.core.files import write_bytes
from reptk.report.formatting import class_name
from reptk.report.layouts import map_positions
from reptk.report.per_class import confusion_matrix
from reptk.report.run_files import Run
from reptk.report.training_curves import MAX_MARKED_POINTS, Panel, curve_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
MAX_MATRIX_CLASSES = 40
"""Names of more classes cannot be read next to the matrix."""
MAX_LEGEND_CLASSES = 20
MAX_PANEL_COLUMNS = 3
RUN_COLORS = ("#0f6b6b", "#b5541c", "#5b4fa0", "#8a7a12", "#a03a66", "#4c6a2f")
INK, GRAY, HAIRLINE = "#1f1f1d", "#6a6a66", "#d9d9d6"
CLASS_COLORS = [
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
    "axes.labelcolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "text.color": INK,
    "text.parse_math": False,  # a name with dollar signs is no formula
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "figure.facecolor": "white",
    "svg.hashsalt": "reptk",
}
MISSING = "PNG plots need matplotlib, which is not installed: pip install 'reptk[viz]'"


def write_plots(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write `curves.png`, `map.png` and `confusion.png`, those for which the runs have data.

    Without matplotlib nothing is written and a warning says so.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    if find_spec("matplotlib") is None:
        warnings.warn(MISSING, stacklevel=2)
        return []
    import matplotlib as mpl

    plots = {"curves": _draw_curves, "map": _draw_map, "confusion": _draw_confusions}
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in plots.items():
            figure = draw(runs)
            if figure is not None:
                path = folder / f"{name}.png"
                _save(figure, path)
                written.append(path)
    return written


def _save(figure: "Figure", path: Path) -> None:
    png = io.BytesIO()
    # Without the name and version of the software, so that the same plot is the same file.
    figure.savefig(png, dpi=DPI, format="png", metadata={"Software": None})
    with explain_write_errors(path, advice="Choose another --png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()  # a run from elsewhere may hold one that leads to another file
        write_bytes(path, png.getvalue())


def _new_figure(width_inches: float, height_inches: float) -> "Figure":
    from matplotlib.figure import Figure

    # Not through pyplot, which holds figures globally and may want a display.
    return Figure((width_inches, height_inches), layout="constrained")


def _draw_curves(runs: Sequence[Run]) -> "Figure | None":
    panels = curve_panels(runs)
    if not panels:
        return None
    num_columns = min(MAX_PANEL_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = _new_figure(3.6 * num_columns, 2.4 * num_rows)
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for panel, axes in zip(panels, all_axes, strict=False):
        _draw_panel(panel, axes)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    if len(runs) > 1:
        all_axes[0].legend(frameon=False, fontsize=7)
    return figure


def _draw_panel(panel: Panel, axes: "Axes") -> None:
    for series in panel.series:
        epochs = [epoch for epoch, _ in series.points]
        values = [value for _, value in series.points]
        marker = "o" if len(series.points) <= MAX_MARKED_POINTS else None
        color = RUN_COLORS[series.style % len(RUN_COLORS)]
        axes.plot(epochs, values, marker=marker, markersize=3, color=color, linewidth=1.5, label=series.name)
    for level in panel.levels:
        axes.axhline(level.value, color=GRAY, linewidth=0.8, linestyle="--")
        where = (1, level.value)
        axes.annotate(level.name, where, xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    axes.set_title(panel.title)
    axes.yaxis.set_major_formatter(lambda value, _: panel.format_value(value))
    axes.grid(axis="y", color=HAIRLINE, linewidth=0.5)


def _draw_map(runs: Sequence[Run]) -> "Figure | None":
    shown = []
    for run in runs:
        if run.predictions is not None and len(run.predictions.index):
            shown.append(run)
    if not shown:
        return None
    figure = _new_figure(5.2 * len(shown), 5)
    all_axes = figure.subplots(1, len(shown), squeeze=False).flatten()
    for run, axes in zip(shown, all_axes, strict=True):
        title = run.title if len(shown) == 1 else run.name
        _draw_points(run, title, axes)
    last_predictions = shown[-1].predictions
    labels = last_predictions.labels.unique().tolist()
    if 1 < len(labels) <= MAX_LEGEND_CLASSES:
        axes = all_axes[-1]
        # The points are one collection, so the legend gets an empty one for each class.
        for label in labels:
            axes.scatter([], [], s=24, c=[_class_color(label)], label=class_name(last_predictions.classes, label))
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw_points(run: Run, title: str, axes: "Axes") -> None:
    positions = map_positions("pca", run.predictions.features).numpy()
    # In random order, so that no class hides the others.
    order = torch.randperm(len(positions), generator=rng.generator("report", "map", len(positions))).numpy()
    colors = [_class_color(label) for label in run.predictions.labels[order].tolist()]
    axes.scatter(positions[order, 0], positions[order, 1], s=4, c=colors, linewidths=0, alpha=0.7)
    axes.set_title(f"{title}: PCA of {format_count(len(positions), 'query', 'queries')}")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(False)


def _class_color(label: int) -> str:
    if label < 0:
        return GRAY
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def _draw_confusions(runs: Sequence[Run]) -> "Figure | None":
    shown = [run for run in runs if _has_readable_matrix(run)]
    if not shown:
        return None
    most_classes = max(len(run.predictions.classes) for run in shown)
    size_inches = 2.2 + 0.24 * most_classes
    figure = _new_figure(size_inches * len(shown), size_inches)
    all_axes = figure.subplots(1, len(shown), squeeze=False).flatten()
    for run, axes in zip(shown, all_axes, strict=True):
        title = run.title if len(shown) == 1 else run.name
        _draw_matrix(run, title, axes)
    return figure


def _has_readable_matrix(run: Run) -> bool:
    if run.predictions is None or not run.predictions.vote:
        return False
    if not len(run.predictions.labels):
        return False
    # A label may have no name, and needs a row all the same.
    highest = max(int(run.predictions.labels.max()), int(run.predictions.predicted.max()))
    return 1 < len(run.predictions.classes) <= MAX_MATRIX_CLASSES and highest < MAX_MATRIX_CLASSES


def _draw_matrix(run: Run, title: str, axes: "Axes") -> None:
    counts = confusion_matrix(run.predictions).double()
    # By row: how a class is predicted, however many queries it has.
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    names = [class_name(run.predictions.classes, label) for label in range(len(counts))]
    axes.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(title)
