"""Runs at hand as settings of one comparison: which of them differ by their seed alone, and what differs between the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reptk.config import PART_NAMES
from reptk.config.dotted_keys import flatten
from reptk.core.counts import format_count
from reptk.core.errors import UsageError
from reptk.core.name_lists import first_names_and_count
from reptk.core.printable_names import in_one_line
from reptk.data.labels.label_selection import without_label_selection
from reptk.report.recipe_diff import FlatRecipe, described_values, differing_keys, format_value, recipe_values
from reptk.report.run_comparison import ROOT, data_identity, have_same_root
from reptk.report.run_files import Run, overrides_of
from reptk.sweep.comparison_table import SettingRun
from reptk.sweep.grid import SEED_KEY
from reptk.sweep.measured_runs import read_measured_run
from reptk.sweep.setting_values import seed_of_start, setting_values, with_common_starts

RUN_FILES = ("results.json", "metrics.jsonl", "recipe.toml")
"""A folder with one of these is a run; without, it may hold runs."""

MAX_RUNS = 10_000
MAX_LABEL_KEYS = 4
MAX_VALUES = 8
"""Values of a key, and keys of a label, that are written out."""

EVALUATED_SPLITS = ("bank", "query")

PROTOCOL_KEYS = ("splits", "leave_one_out", "features", "votes", "evaluators", "evaluation_image")
"""Entries of a protocol that say how numbers were measured; others say where and when."""

EVALUATE_BOTH = "Evaluate both on the same data: reptk evaluate RUN data.name=... --out FOLDER"

KeyText = tuple[str, str]
"""A key of a recipe and its value as text."""


class Seeds(NamedTuple):
    """What distinguishes a run from the others of its setting.

    start: seed of the run that it starts from; None where `seed` is enough.
    seed: of the run; where the start is None, it may be that of the run that it starts from.
    """

    start: int | None
    seed: int


class GroupedRuns(NamedTuple):
    """Runs by setting.

    runs: in the order of the command; at most one per setting and seeds.
    differences: lines that say what differs between the settings.
    warnings: lines about what makes the comparison doubtful, and about runs that were left out.
    """

    runs: list[SettingRun]
    differences: list[str]
    warnings: list[str]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the runs that folders are or hold: a run, a sweep, or a folder of runs such as runs/supcon_digits.

    Raises:
        UsageError: a folder holds none, or does not exist, or there are too many runs.
    """
    runs: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no run in {folder}: there is no such folder")
        if _is_run(folder):
            inner = [folder]
        else:
            inner = _runs_in(folder) or _runs_in(folder / "runs")
        if not inner:
            raise UsageError(f"no run in {folder}: it holds none of {', '.join(RUN_FILES)}, and neither do its folders")
        runs |= dict.fromkeys(inner)
    if len(runs) > MAX_RUNS:
        raise UsageError(f"these are {len(runs):,} runs, more than {MAX_RUNS:,}")
    return list(runs)


def group_runs(folders: Sequence[Path]) -> GroupedRuns:
    """Read runs and group those whose recipes differ in nothing but the seed and how they were executed.

    Stages that start from runs of such a group are of one group, too.

    Raises:
        UsageError: the runs were evaluated on different data, or none of them can be used.
    """
    runs = []
    warnings = []
    for folder in folders:
        result = read_measured_run(folder, _name(folder))
        if isinstance(result, str):
            warnings.append(f"left out: {result}")
        else:
            runs.append(result)
    if not runs:
        raise UsageError("no run can be used:\n  " + "\n  ".join(warnings))
    warnings += _check_same_data(runs)
    warnings += _protocol_warnings(runs)
    values = with_common_starts([_training_values(run) for run in runs])
    with_recipe = [recipe for recipe in values if recipe]
    keys = _ordered(differing_keys(with_recipe)) if with_recipe else []
    names = {str(run.recipe.get("name", "")) for run in runs if run.recipe}
    labels = _labels(runs, values, keys, has_names=len(names) > 1)
    grouped: dict[tuple[str, Seeds], SettingRun] = {}
    for run, label, seeds in zip(runs, labels, _seeds(runs, labels), strict=True):
        item = SettingRun(label, seeds.seed, run, seeds.start)
        same = grouped.setdefault((label, seeds), item)
        if same is not item:
            # The same seed once more is no further seed: its numbers are those of the first run, up to rounding.
            warnings.append(f"left out: {run.folder} repeats {same.run.folder} (seed {item.seed_text})")
    differences = _describe_differences(keys, with_recipe, names)
    # Everything in a run's files is untrusted.
    return GroupedRuns(list(grouped.values()), list(map(in_one_line, differences)), list(map(in_one_line, warnings)))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inner = [path for path in folder.iterdir() if path.is_dir() and _is_run(path)]
    # Runs are numbered: 2 comes before 10.
    return sorted(
        inner, key=lambda path: (not path.name.isdecimal(), len(path.name) * path.name.isdecimal(), path.name)
    )


def _name(folder: Path) -> str:
    name = folder.name
    if name.isdecimal():
        return f"{folder.parent.name}/{name}"
    return name


def _training_values(run: Run) -> dict[str, Any]:
    """Return the values of a run's recipe that are part of its setting; empty for a run without a recipe."""
    if not run.recipe:
        return {}
    values = setting_values(recipe_values(run))
    # Runs of different data are refused, so this key says no more than where the same files were.
    values.pop(f"data.{ROOT}", None)
    return values


def _ordered(keys: Sequence[str]) -> list[str]:
    """Return the keys with those first that replace a part."""
    return sorted(keys, key=lambda key: key not in PART_NAMES)


def _labels(runs: Sequence[Run], values: Sequence[FlatRecipe], keys: Sequence[str], *, has_names: bool) -> list[str]:
    """Return the label of each run; those of runs with other values differ.

    Args:
        runs: all of them.
        values: of the recipe of each; empty for an encoder that no recipe has trained.
        keys: in which the recipes differ.
        has_names: whether the runs are of recipes with several names, which then begin the labels.
    """
    with_recipe = [recipe for recipe in values if recipe]
    described: list[list[KeyText]] = []
    for run, recipe in zip(runs, values, strict=True):
        pairs = []
        if recipe:
            pairs = described_values(recipe, keys, with_recipe)
        if has_names:
            # A recipe by another name differs in many keys; its overrides say in which it differs from other runs of its own.
            overridden = {pair.partition("=")[0] for pair in overrides_of(run.recipe)}
            pairs = [(key, text) for key, text in pairs if key in overridden]
        described.append(pairs)
    first_words = [_first_word(run, has_names=has_names) for run in runs]
    named = _named_pairs(first_words, described, values)
    labels = []
    for first_word, pairs, names in zip(first_words, described, named, strict=True):
        words = [first_word, *(f"{key}={text}" for key, text in names)]
        num_more = sum(pair not in names for pair in pairs)
        if num_more:
            words.append(f"and {num_more} more")
        labels.append(in_one_line(" ".join(word for word in words if word)))
    return _distinct_labels(labels, values)


def _named_pairs(
    first_words: Sequence[str], described: Sequence[list[KeyText]], values: Sequence[FlatRecipe]
) -> list[list[KeyText]]:
    """Return those of the pairs that labels name: the first of all, and those that tell apart runs that share these."""
    named = [pairs[:MAX_LABEL_KEYS] for pairs in described]
    groups: dict[str, list[int]] = {}
    for position, (first_word, pairs) in enumerate(zip(first_words, named, strict=True)):
        if values[position]:
            groups.setdefault(repr([first_word, pairs]), []).append(position)
    for group in groups.values():
        recipes = [values[position] for position in group]
        keys = _ordered(differing_keys(recipes))
        for position in group:
            more = described_values(values[position], keys, recipes)[:MAX_LABEL_KEYS]
            named[position] = list(dict.fromkeys([*named[position], *more]))
    return named


def _first_word(run: Run, *, has_names: bool) -> str:
    """Return the word that a run's label begins with: the name of its recipe if there are several, or of its encoder."""
    if not run.recipe:
        return run.name
    if has_names:
        return str(run.recipe.get("name", ""))
    return ""


def _distinct_labels(labels: Sequence[str], values: Sequence[dict[str, Any]]) -> list[str]:
    """Return the labels with a number behind those that different settings have in common."""
    numbers: dict[str, list[str]] = {}
    distinct = []
    for label, recipe in zip(labels, values, strict=True):
        content = repr(sorted(recipe.items()))
        contents = numbers.setdefault(label, [])
        if content not in contents:
            contents.append(content)
        number = contents.index(content) + 1
        if number > 1:
            label = f"{label} ({number})"
        distinct.append(label)
    return distinct


def _seed(run: Run) -> int:
    seed = run.recipe.get(SEED_KEY, run.results.protocol.get(SEED_KEY, 0))
    if isinstance(seed, int):
        return seed
    return 0


def _seeds(runs: Sequence[Run], labels: Sequence[str]) -> list[Seeds]:
    """Return what distinguishes the runs of each label: their seeds, those of the runs that they start from, or both.

    One number is enough for most, and runs of settings that share it are compared in pairs. If stages start from several
    runs with several seeds each, no single number is.
    """
    pairs = [Seeds(_start_seed(run), _seed(run)) for run in runs]
    by_label: dict[str, list[Seeds]] = {}
    for label, pair in zip(labels, pairs, strict=True):
        by_label.setdefault(label, []).append(pair)
    numbers = []
    for label, pair in zip(labels, pairs, strict=True):
        number = pair.seed
        if pair.start is not None and _vary_by_start(by_label[label]):
            number = pair.start
        numbers.append(number)
    different_runs = set(zip(labels, pairs, strict=True))
    if len(set(zip(labels, numbers, strict=True))) < len(different_runs):
        return pairs
    return [Seeds(None, number) for number in numbers]


def _vary_by_start(pairs: Sequence[Seeds]) -> bool:
    """Return whether runs of one setting start from runs of more seeds than they have themselves."""
    starts = {pair.start for pair in pairs}
    return None not in starts and len(starts) > len({pair.seed for pair in pairs})


def _start_seed(run: Run) -> int | None:
    if not run.recipe:
        return None
    return seed_of_start(flatten(run.recipe))


def _describe_differences(keys: Sequence[str], recipes: Sequence[dict[str, Any]], names: set[str]) -> list[str]:
    lines = []
    if len(names) > 1:
        lines.append(f"recipe: {first_names_and_count(sorted(names), MAX_VALUES)}")
    for key in keys:
        values = dict.fromkeys(format_value(recipe.get(key)) for recipe in recipes)
        lines.append(f"{key}: {first_names_and_count(list(values), MAX_VALUES)}")
    return lines


def _check_same_data(runs: Sequence[Run]) -> list[str]:
    """Return lines about arguments of the data that differ, where the evaluated images may still be the same.

    Raises:
        UsageError: they cannot be.
    """
    first = runs[0]
    lines: dict[str, None] = {}
    for run in runs[1:]:
        names = (run.data_part.get("name"), first.data_part.get("name"))
        if names[0] != names[1]:
            raise UsageError(_other_data(run, first, "data.name", *names))
        if not have_same_root(run, first):
            raise UsageError(_other_data(run, first, "data.root", run.data_part.get(ROOT), first.data_part.get(ROOT)))
        for split in EVALUATED_SPLITS:
            a, b = _num_images(run, split), _num_images(first, split)
            if a is not None and b is not None and a != b:
                raise UsageError(_other_data(run, first, f"number of {split} images", a, b))
        if not _labels_agree(run, first):
            raise UsageError(
                f"the labels of the queries in {run.folder} and {first.folder} differ, so their numbers cannot be compared. "
                f"{EVALUATE_BOTH}"
            )
        a, b = flatten(data_identity(run.data_part)), flatten(data_identity(first.data_part))
        for key in {**a, **b}:
            if key != ROOT and a.get(key) != b.get(key):
                lines[f"data.{key} differs; the numbers of evaluated images are the same"] = None
    return list(lines)


def _other_data(run: Run, first: Run, what: str, value: Any, first_value: Any) -> str:
    return (
        f"{run.folder} and {first.folder} were evaluated on different data, and their numbers cannot be compared: {what} "
        f"{format_value(value)} and {format_value(first_value)}. {EVALUATE_BOTH}"
    )


def _num_images(run: Run, split: str) -> int | None:
    images = run.results.protocol.get("images")
    if not isinstance(images, dict):
        return None
    count = images.get(split)
    if isinstance(count, int):
        return count
    return None


def _labels_agree(run: Run, other: Run) -> bool:
    """Return whether the predictions of both have the same labels, as far as both have any of the same queries."""
    a, b = run.predictions, other.predictions
    if a is None or b is None or a.query_split != b.query_split or not torch.equal(a.index, b.index):
        return True
    return torch.equal(a.labels, b.labels)


def _protocol_warnings(runs: Sequence[Run]) -> list[str]:
    """Return lines about what was measured in another way."""
    first = _protocol(runs[0])
    counts: dict[str, int] = {}
    for run in runs[1:]:
        other = _protocol(run)
        shared_evaluators = _evaluators(first) & _evaluators(other)
        for key in {**first, **other}:
            evaluator = _evaluator_of(key)
            if evaluator is not None and evaluator not in shared_evaluators:
                continue  # its metrics are compared with nothing
            if first.get(key) != other.get(key):
                counts[key] = counts.get(key, 0) + 1
    lines = []
    for key, count in counts.items():
        of_runs = format_count(count, "run")
        lines.append(f"the protocol differs: {key} of {of_runs} is not that of {runs[0].folder}; compare with care")
    return lines


def _evaluators(protocol: Mapping[str, Any]) -> set[str]:
    """Return the names of the evaluators that a flat protocol has settings of."""
    names = {_evaluator_of(key) for key in protocol}
    return {name for name in names if name is not None}


def _evaluator_of(key: str) -> str | None:
    """Return `knn` of `evaluators.knn.k`; None of a key that belongs to no evaluator."""
    first, *others = key.split(".")
    if first == "evaluators" and others:
        return others[0]
    return None


def _protocol(run: Run) -> dict[str, Any]:
    values = {}
    for key in PROTOCOL_KEYS:
        if key in run.results.protocol:
            values |= flatten(run.results.protocol[key], key)
    if isinstance(values.get("splits"), str):
        values["splits"] = without_label_selection(values["splits"])
    # How often a run was evaluated while it was trained changes nothing about its last evaluation.
    return {key: value for key, value in values.items() if not key.endswith(".every_epochs")}
