"""Write the page of some runs, and its plots as PNG."""

from collections.abc import Sequence
from pathlib import Path

from reptk.core import files
from reptk.core.errors import EnvironmentProblem
from reptk.data import Data
from reptk.report import layouts, plots
from reptk.report.page import page
from reptk.report.pictures import Sources
from reptk.report.runs import read_all

FILE = "report.html"


def write(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    map: str | Sequence[str] = "pca",
    png: str | Path | None = None,
    data: Data | None = None,
) -> Path:
    """One self-contained HTML page on one run, or on several beside each other.

    Args:
        folders: runs, finished or not; the first is what others are compared with.
        out: the page; `report.html` in the run's folder, or for several runs in the current one.
        map: layouts of the embedding besides PCA, which is always there: "tsne", "umap", or several.
        png: a folder for the plots as PNG (curves, map, confusions), drawn by matplotlib.
        data: the first run's data set, if it is open already.

    Returns:
        Where the page lies.

    Raises:
        UsageError: no run in a folder, or no such layout.
        DataError: a file of a run is damaged.
        EnvironmentProblem: the page cannot be written, or a package is missing.
    """
    kinds = tuple(dict.fromkeys(["pca", *([map] if isinstance(map, str) else map)]))
    layouts.check(kinds)
    places = [Path(folder) for folder in ([folders] if isinstance(folders, (str, Path)) else folders)]
    runs, sources = read_all(places), Sources()
    if data is not None:
        sources.know(runs[0], data)
    path = Path(out) if out is not None else places[0] / FILE if len(places) == 1 else Path(FILE)
    if path.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: it is a folder. Name a file, e.g. {path / FILE}")
    text = page(runs, [sources.of(run) for run in runs], kinds)
    try:
        files.write_text(path, text)
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write {path}: {cause.strerror or cause}. Choose another --out") from cause
    if png is not None:
        plots.write(runs, Path(png))
    return path
