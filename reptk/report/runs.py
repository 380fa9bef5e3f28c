"""What a run's folder tells: recipe, results, metrics by step, status, evidence. Anything but one of the numbers may lack."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from reptk import config
from reptk.core.errors import DataError, UsageError
from reptk.evaluate.predictions import Predictions

Row = dict[str, Any]


class Confusion(BaseModel):
    """`count` of the `of` queries of `class` were taken for another."""

    model_config = ConfigDict(extra="allow")
    taken_for: str
    count: int
    of: int


class Verdict(BaseModel):
    """A judgement in plain words."""

    level: str = ""
    sentence: str = ""
    advice: list[str] = []


class Results(BaseModel):
    """results.json. Old ones have metrics and protocol only; an unfinished run has none."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    headline: str = ""
    metrics: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    gains: dict[str, dict[str, tuple[float, float, float]]] = {}
    classes: list[Row] = []
    confusions: list[Confusion] = []
    health: dict[str, dict[str, float]] = {}
    verdict: Verdict | None = None
    protocol: Row = {}

    @property
    def main(self) -> str:
        """The row that the run is about: the last one; empty without any."""
        return next(reversed(self.metrics), "")

    @property
    def numbers(self) -> dict[str, float]:
        """The main row."""
        return self.metrics.get(self.main, {})


@dataclass(frozen=True)
class Run:
    """A run as it lies in its folder.

    Args:
        name: how it is told from the others of the page.
        recipe: recipe.toml, empty where there is none.
        rows: metrics.jsonl.
        status: what status.json says, empty where there is none.
    """

    folder: Path
    name: str
    results: Results = field(default_factory=Results)
    recipe: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    status: str = ""
    evidence: Predictions | None = None

    @property
    def title(self) -> str:
        """What it was trained by, else its name."""
        return str(self.results.protocol.get("recipe") or self.recipe.get("name") or self.name)

    @property
    def data_part(self) -> Row:
        """The data set that the numbers belong to."""
        part = self.results.protocol.get("data") or self.recipe.get("data")
        return part if isinstance(part, dict) else {}


def read_all(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, each with a name of its own.

    Raises:
        UsageError: none given, one given twice, or a folder that holds no run.
        DataError: a file of a run is damaged.
    """
    if not folders:
        raise UsageError("which run? e.g. reptk report runs/tcl_selfsup_photos/1")
    places = [folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UsageError(f"{folders[number]} is named twice")
    return [read(folder, name) for folder, name in zip(folders, _names(places), strict=True)]


def read(folder: Path, name: str) -> Run:
    """One run.

    Raises:
        UsageError: there is none in the folder.
        DataError: a file of it is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"no run in {folder}: there is no such folder")
    if not any((folder / file).is_file() for file in ("results.json", "metrics.jsonl")):
        raise UsageError(f"no run in {folder}: it holds neither results.json nor metrics.jsonl")
    recipe = config.read(folder / "recipe.toml") if (folder / "recipe.toml").is_file() else {}
    results, rows = _results(folder / "results.json"), _rows(folder / "metrics.jsonl")
    if not results.metrics and not rows:
        raise UsageError(f"no number in {folder} yet; ask again after the first steps of the run")
    return Run(folder, name, results, recipe, rows, _status(folder / "status.json"), Predictions.load(folder))


def _names(places: Sequence[Path]) -> list[str]:
    """Ends of the paths, as long as it takes to tell them apart."""
    for parts in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-parts:]) for place in places]
        if len(set(names)) == len(names) and not any(name.isdigit() for name in names):
            return names
    return [str(place) for place in places]


def _results(path: Path) -> Results:
    if not path.is_file():
        return Results()
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its content"
        raise DataError(f"{path} is damaged: {where}: {first['msg']}; {_again(path)}") from error
    except (OSError, ValueError, RecursionError) as cause:
        raise DataError(f"{path} is damaged: {cause}; {_again(path)}") from cause


def _again(path: Path) -> str:
    return f"evaluate the run again: reptk evaluate {path.parent} --out FOLDER"


def _rows(path: Path) -> list[Row]:
    """Every whole line; the last one of a run that was killed may be none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause}") from cause
    rows = [row for row in map(_row, lines) if row]
    if lines and not rows:
        raise DataError(f"{path} is damaged: none of its {len(lines)} lines is a JSON object")
    return rows


def _row(line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _status(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
