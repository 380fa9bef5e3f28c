"""The page of a comparison: which runs it shows, and what its first sentence says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from reptk import report
from reptk.report.run_files import read_run
from reptk.report.section_settings import ComparedSettings
from reptk.sweep.comparison_page import compared_settings, result_sentence, settings_over_seeds, write_page
from reptk.sweep.comparison_table import ComparisonTable, FailedRun, Reference, SettingRun, build_table
from reptk.sweep.table_texts import difference_text, footnotes
from sweep_runs import tiny, write_run

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_SEED = "b has the highest kNN@5, 90.0 %, from one seed; differences between seeds were not measured."

APART = {"a": [0.50, 0.51, 0.52], "b": [0.80, 0.82, 0.81]}


def table_of(
    folder: Path,
    values: Mapping[str, Sequence[float]],
    failed: Sequence[FailedRun] = (),
    reference: Reference = "best",
) -> ComparisonTable:
    """The table of settings with these values over the seeds 0, 1, 2, ...; a seed is left out by NaN."""
    runs = []
    for setting, numbers in values.items():
        for seed, value in enumerate(numbers):
            if value == value:
                path = write_run(folder / f"{setting}{seed}", {"knn@5": value}, tiny(f"seed={seed}"))
                runs.append(SettingRun(setting, seed, read_run(path, path.name)))
    return build_table(runs, reference=reference, failed=failed)


class Written:
    """What `report.write` was called with."""

    folders: Sequence[Path] = ()
    settings: ComparedSettings | None = None


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    record = Written()

    def write(folders: Sequence[Path], out: Path, *, settings: ComparedSettings | None, **options) -> Path:
        record.folders = folders
        record.settings = settings
        return out

    monkeypatch.setattr(report, "write", write)
    return record


def names(written: Written) -> list[str]:
    return [folder.name for folder in written.folders]


def test_of_several_settings_the_best_ones_are_shown(tmp_path: Path, written: Written) -> None:
    values = {f"s{number}": [0.1 * number, 0.1 * number + 0.01] for number in range(8)}
    line = write_page(table_of(tmp_path, values), tmp_path, title="t")
    assert names(written) == [f"s{number}0" for number in (7, 6, 5, 4, 3, 2)]
    assert line == f"report   {tmp_path / 'report.html'} (a run of each of the best 6 settings of 8)"
    assert [setting.name for setting in written.settings.settings] == [f"s{number}" for number in range(7, -1, -1)]


def test_the_only_setting_with_a_result_is_shown_with_all_seeds(tmp_path: Path, written: Written) -> None:
    failed = [FailedRun("b", 0, "no luck"), FailedRun("b", 1, "no luck")]
    table = table_of(tmp_path, {"a": [0.50, 0.52]}, failed)
    line = write_page(table, tmp_path, title="t")
    assert names(written) == ["a0", "a1"]
    assert "settings of" not in line
    assert written.settings.sentence == (
        "Only a has a result, so there is nothing to compare: its kNN@5 is 51.0 % over 2 seeds."
    )
    assert written.settings.about == "2 settings, 2 runs with a result"
    assert [(setting.name, setting.count) for setting in written.settings.settings] == [("a", "2"), ("b", "0 of 2")]
    assert "no result of b seed=0: no luck" in written.settings.notes
    assert written.settings.run_names == ["a seed=0", "a seed=1"]


def test_seeds_of_one_setting(tmp_path: Path, written: Written) -> None:
    write_page(table_of(tmp_path, {"": [0.50, 0.52]}), tmp_path, title="t")
    assert names(written) == ["0", "1"]
    assert written.settings.sentence == "kNN@5 is 51.0 % over 2 seeds."


def test_a_single_run_has_its_own_page(tmp_path: Path) -> None:
    assert compared_settings(table_of(tmp_path / "a", {"": [0.5]}), "t", []) is None
    assert (
        compared_settings(table_of(tmp_path / "b", {"a": [0.5]}, [FailedRun("a", 1, "no luck")]), "t", []) is not None
    )


@pytest.mark.parametrize(
    ("values", "reference", "sentence"),
    [
        (APART, "best", "b leads in kNN@5, 30.0 points above a, more than chance explains."),
        (APART, "first", "b leads in kNN@5, 30.0 points above a, more than chance explains."),
        ({**APART, "c": [0.81, 0.80, 0.81]}, "best", "b and c do not differ in kNN@5 beyond chance."),
        (
            {**APART, "c": [0.81, 0.80, 0.81]},
            "first",
            "b leads in kNN@5, 30.0 points above a, more than chance explains.",
        ),
        (
            {"a": [0.5, 0.4, 0.9], "b": [0.55, 0.45, float("nan")]},
            "best",
            "a has the highest mean of kNN@5, 60.0 % over 3 seeds. On the seeds that both have, b is 5.0 points above it.",
        ),
        (
            {"a": [0.5], "b": [float("nan"), 0.6, 0.7]},
            "best",
            "b has the highest kNN@5, 65.0 % over 2 seeds; the difference has no interval.",
        ),
        ({"a": [0.5], "b": [0.9]}, "best", ONE_SEED),
        ({"a": [0.5], "b": [0.9]}, "first", ONE_SEED),
        (
            {"a": [0.5], "b": [0.9, 0.8, 0.7]},
            "best",
            "b has the highest kNN@5, 80.0 % over 3 seeds. Its difference to a is of one seed; differences between seeds were "
            "not measured.",
        ),
        (
            {"a": [0.5, 0.5], "b": [0.7, 0.7]},
            "best",
            "b has the highest kNN@5, 70.0 % over 2 seeds; the difference has no interval.",
        ),
    ],
)
def test_the_sentence(tmp_path: Path, values: Mapping, reference: Reference, sentence: str) -> None:
    assert result_sentence(table_of(tmp_path, values, reference=reference)) == sentence


def test_a_difference_of_single_runs_has_no_asterisk(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"a": [0.5], "b": [0.9]})
    difference = table.rows[1].differences["knn@5"]
    assert difference.high < 0, "the interval over the queries does not contain 0"
    assert not difference.is_significant
    assert "*" not in difference_text(table.rows[1], table)
    assert not any(line.startswith("*") for line in footnotes(table))
    seeds = table_of(tmp_path / "seeds", APART)
    assert difference_text(seeds.rows[1], seeds).endswith(" *")


def test_the_page_is_written(tmp_path: Path) -> None:
    failed = [FailedRun("b", 0, "no luck")]
    line = write_page(table_of(tmp_path, {"a": [0.50, 0.52]}, failed), tmp_path, title="reptk sweep x")
    assert line == f"report   {tmp_path / 'report.html'}"
    page = (tmp_path / "report.html").read_text()
    assert "<title>reptk sweep x" in page
    assert "Only a has a result" in page


def test_a_page_of_runs_groups_those_that_differ_by_their_seed_alone(tmp_path: Path) -> None:
    folders = []
    for temperature, values in {"0.1": (0.50, 0.52), "0.5": (0.80, 0.84)}.items():
        for seed, value in enumerate(values):
            recipe = tiny(f"seed={seed}", f"loss.temperature={temperature}")
            folders.append(write_run(tmp_path / f"t{temperature}s{seed}", {"knn@5": value}, recipe))
    settings = settings_over_seeds(folders)
    assert [(setting.name, setting.count) for setting in settings.settings] == [
        ("loss.temperature=0.5", "2"),
        ("loss.temperature=0.1", "2"),
    ]
    assert settings.settings[0].mean == pytest.approx(0.82)
    assert settings.differences == ["loss.temperature: 0.1, 0.5"]
    assert len(settings.run_names) == len(set(settings.run_names)) == 4
    page = report.write(folders, tmp_path / "page.html", settings=settings).read_text()
    assert page.index("loss.temperature: 0.1, 0.5") < page.index('id="settings"') < page.index('id="numbers"')


def test_runs_that_differ_by_more_than_seeds_are_compared_one_by_one(tmp_path: Path) -> None:
    folders = []
    for temperature in ("0.1", "0.5"):
        recipe = tiny(f"loss.temperature={temperature}")
        folders.append(write_run(tmp_path / temperature, {"knn@5": 0.5}, recipe))
    assert settings_over_seeds(folders) is None
    # The same seed again is no further seed.
    assert settings_over_seeds([folders[0], folders[0]]) is None
