"""The files of a run's folder: recipe, results, metrics by step, status and per-query predictions.

Any of them may be missing, as long as there is a number in results.json or metrics.jsonl.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from reptk import config
from reptk.core.counts import format_count
from reptk.core.errors import DataError, UsageError
from reptk.core.files import parse_json, real_path
from reptk.core.foreign_files import open_regular, read_json
from reptk.evaluate.predictions import Predictions
from reptk.evaluate.verdict import row_label

Table = dict[str, Any]

MAX_LINE_BYTES = 1 << 20
MAX_LOG_BYTES = 1 << 26
"""Of the rows of metrics.jsonl that are in memory: about half a million."""


class SavedConfusion(BaseModel):
    """`count` of the `of` queries of a class (in the extra field "class") were predicted as another."""

    model_config = ConfigDict(extra="allow")

    # "class" cannot be the name of a field: it is a keyword.
    taken_for: str
    count: int
    of: int


class SavedVerdict(BaseModel):
    """The judgement in plain words: a level, a sentence, and what to do next."""

    level: str = ""
    sentence: str = ""
    advice: list[str] = []


class SavedResults(BaseModel):
    """The content of results.json; see `reptk.evaluate.results`.

    Old files have metrics and protocol only; an unfinished run has no such file.
    """

    # Later versions may write more; a report of what is understood is better than none.
    model_config = ConfigDict(extra="ignore", frozen=True)

    headline: str = ""
    metrics: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    gains: dict[str, dict[str, tuple[float, float, float]]] = {}
    classes: list[Table] = []
    confusions: list[SavedConfusion] = []
    health: dict[str, dict[str, float]] = {}
    verdict: SavedVerdict | None = None
    protocol: Table = {}

    @property
    def main_row(self) -> str:
        """The row that the run is about, which is the last one; empty if there is none."""
        return next(reversed(self.metrics), "")

    @property
    def baseline_rows(self) -> list[str]:
        """The rows that the main row is compared with."""
        return [row for row in self.metrics if row != self.main_row]

    def label_of(self, row: str) -> str:
        """What a row is called in a table or a plot. The row "untrained" of a run may have begun with pretrained weights."""
        return row_label(row, self.protocol)

    @property
    def main_metrics(self) -> dict[str, float]:
        """The metrics of the main row."""
        return self.metrics.get(self.main_row, {})

    @property
    def main_intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of the main row."""
        return self.intervals.get(self.main_row, {})


@dataclass(frozen=True)
class Run:
    """What was read from a run's folder.

    Args:
        name: what distinguishes the run from the others on the page, with the parts that overrides replaced.
        recipe: recipe.toml, empty if there is none.
        log: the rows of metrics.jsonl.
        status: the status in status.json, empty if there is none.
        predictions: per-query predictions, None if there are none.
    """

    folder: Path
    name: str
    results: SavedResults = field(default_factory=SavedResults)
    recipe: Table = field(default_factory=dict)
    log: list[Table] = field(default_factory=list)
    status: str = ""
    predictions: Predictions | None = None

    @property
    def title(self) -> str:
        """The name of the recipe that the run was trained by with what overrides changed, else the run's own name."""
        if self.recipe.get("name"):
            return config.title_of(str(self.recipe["name"]), overrides_of(self.recipe))
        return str(self.results.protocol.get("recipe") or self.name)

    @property
    def data_part(self) -> Table:
        """The data set that was evaluated, with its arguments; empty if it is not known."""
        part = self.results.protocol.get("data") or self.recipe.get("data")
        if isinstance(part, dict):
            return part
        return {}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs in `folders` and give each a name that no other has.

    Raises:
        UsageError: no folder, the same folder twice, or a folder that holds no run.
        DataError: a file of a run is damaged.
    """
    if not folders:
        raise UsageError("which run? e.g. reptk report runs/tcl_selfsup_photos/1")
    # Resolved, so that runs/a and runs/../runs/a are one run.
    paths = [real_path(folder) for folder in folders]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UsageError(f"{folders[number]} is named twice")
    names = _distinct_names(paths)
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read one run.

    Raises:
        UsageError: the folder holds no run, or no number yet.
        DataError: a file of the run is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"no run in {folder}: there is no such folder")
    results_path = folder / "results.json"
    log_path = folder / "metrics.jsonl"
    recipe_path = folder / "recipe.toml"
    if not results_path.is_file() and not log_path.is_file():
        raise UsageError(f"no run in {folder}: it holds neither results.json nor metrics.jsonl")
    recipe = {}
    # An evaluation of an encoder that was not trained by a recipe has none.
    if recipe_path.is_file():
        recipe = config.read(recipe_path)
    results = read_results(results_path)
    log = _read_log(log_path)
    if not results.metrics and not log:
        raise UsageError(f"no number in {folder} yet; ask again after the first steps of the run")
    # A folder is named by its recipe, whatever part of it was replaced: supcon_digits/2 may be a run of another loss.
    name = " ".join([name, *config.part_replacements(overrides_of(recipe))])
    return Run(
        folder=folder,
        name=name,
        results=results,
        recipe=recipe,
        log=log,
        status=_read_status(folder / "status.json"),
        predictions=Predictions.load(folder),
    )


def overrides_of(recipe: Table) -> list[str]:
    """Return the overrides that recipe.toml records; those written by earlier versions have none."""
    overrides = recipe.get("overrides")
    if not isinstance(overrides, list):
        return []
    return [str(pair) for pair in overrides]


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the ends of the paths, with as many folders as distinguish them; a bare number is no name."""
    longest = max(len(path.parts) for path in paths)
    for num_parts in range(1, longest + 1):
        names = ["/".join(path.parts[-num_parts:]) for path in paths]
        # Runs are numbered within the folder of their recipe: 1 says less than tcl_selfsup_photos/1.
        has_number = any(name.isdigit() for name in names)
        if len(set(names)) == len(names) and not has_number:
            return names
    return [str(path) for path in paths]


def read_results(path: Path) -> SavedResults:
    """Return the content of a results.json; empty if there is none.

    Raises:
        DataError: it is damaged.
    """
    if not path.is_file():
        return SavedResults()
    advice = f"evaluate the run again: reptk evaluate {path.parent} --out FOLDER"
    try:
        return SavedResults.model_validate(read_json(path))
    except ValidationError as error:
        # One problem is enough: the file was not written by reptk, or was damaged as a whole.
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged: {key or 'its content'}: {first['msg']}; {advice}") from error
    except (OSError, ValueError, RecursionError) as cause:
        raise DataError(f"{path} is damaged: {cause}; {advice}") from cause


def _read_log(path: Path) -> list[Table]:
    """Return every complete line; the last line of a run that was killed may be cut off."""
    if not path.is_file():
        return []
    rows: list[Table] = []
    num_lines = 0
    num_bytes = 0
    every = 1
    try:
        with open_regular(path) as file:
            # Line by line, since the log of a long run is large.
            while line := file.readline(MAX_LINE_BYTES):
                num_lines += 1
                if num_lines % every:
                    continue
                # A run that was killed may have left half a character.
                row = _parse_line(line.decode("utf-8", "replace"))
                if row:
                    rows.append(row)
                    num_bytes += len(line)
                if num_bytes > MAX_LOG_BYTES:
                    # Half of the rows draw the same curves.
                    rows, num_bytes, every = rows[::2], num_bytes // 2, 2 * every
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause}") from cause
    if num_lines and not rows:
        raise DataError(f"{path} is damaged: none of its {format_count(num_lines, 'line')} is a JSON object")
    return rows


def _parse_line(line: str) -> Table:
    try:
        row = parse_json(line)
    except (ValueError, RecursionError):
        return {}
    if isinstance(row, dict):
        return row
    return {}


def _read_status(path: Path) -> str:
    try:
        return str(read_json(path)["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
