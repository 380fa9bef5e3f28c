"""Write the page of one or several runs, and its plots as PNG files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.files import write_text
from reptk.data import Data
from reptk.report.layouts import check_layouts
from reptk.report.page import render_page
from reptk.report.plots import write_plots
from reptk.report.run_files import read_runs
from reptk.report.run_images import OpenedDatasets
from reptk.report.section_settings import ComparedSettings

FILE = "report.html"


def write(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    map: str | Sequence[str] = "pca",
    png: str | Path | None = None,
    data: Data | None = None,
    force: bool = False,
    trust: bool = False,
    settings: ComparedSettings | None = None,
) -> Path:
    """Write one self-contained HTML page about one run, or about several next to each other.

    Args:
        folders: folders of runs, finished or not; the first run is what the others are compared with.
        out: the page; by default `report.html` in the run's folder, or for several runs in the current one.
        map: layouts of the map besides PCA, which is always included: "tsne", "umap", or several.
        png: a folder for the plots as PNG files (curves, map, confusions), drawn by matplotlib.
        data: the first run's data set, if it is open already.
        force: write over a page that exists. The page in the folder of its run is written again in any case.
        trust: execute the plugin files in the folders of the runs. Without it, a page whose images come from a data set of
            such a plugin has no images, unless the plugin is imported already.
        settings: a comparison of settings over seeds, some of whose runs these are; it comes first on the page.

    Returns:
        The path of the page.

    Raises:
        UsageError: a folder without a run, no such layout, or the page exists and `force` is not set.
        DataError: a file of a run is damaged.
        EnvironmentProblem: the page cannot be written, or a package is missing.
    """
    requested_layouts = [map] if isinstance(map, str) else map
    # PCA first and always: it is fast, and its distances mean something.
    layouts = tuple(dict.fromkeys(["pca", *requested_layouts]))
    # Before the data set is opened, which may take minutes.
    check_layouts(layouts)
    if isinstance(folders, (str, Path)):
        folders = [folders]
    paths = [Path(folder) for folder in folders]
    runs = read_runs(paths)
    if settings is not None:
        runs = [replace(run, name=name) for run, name in zip(runs, settings.run_names, strict=True)]
    path = _page_path(paths, out, force)
    datasets = OpenedDatasets(trust)
    if data is not None:
        datasets.add(runs[0], data)
    images = [datasets.images_of(run) for run in runs]
    page = render_page(runs, images, layouts, settings, path.parent)
    with explain_write_errors(path):
        write_text(path, page)
    if png is not None:
        write_plots(runs, Path(png))
    return path


def _page_path(folders: Sequence[Path], out: str | Path | None, force: bool) -> Path:
    if out is not None:
        path = Path(out)
    elif len(folders) == 1:
        path = folders[0] / FILE
    else:
        path = Path(FILE)
    if out is None and path.is_symlink():
        # A run from elsewhere may hold a link to any file of the user's.
        raise EnvironmentProblem(
            f"cannot write {path}: it is a link to {path.readlink()}. Remove it, or name the page: --out"
        )
    if path.is_dir():
        raise EnvironmentProblem(f"cannot write {path}: it is a folder. Name a file, e.g. {path / FILE}")
    # A run has one page, which is a function of its files. Any other file may be something else.
    is_page_of_run = len(folders) == 1 and path == folders[0] / FILE
    if path.exists() and not (is_page_of_run or force):
        raise UsageError(f"{path} exists. Choose another --out, or write over it: --force")
    return path
