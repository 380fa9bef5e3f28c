"""Settings on the page: positions of dots and intervals, and names that stay text."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from report_pages import HOSTILE_NAMES, Page
from reptk.report import write
from reptk.report.formatting import printable
from reptk.report.section_settings import ComparedSetting, ComparedSettings, settings_section

pytestmark = pytest.mark.usefixtures("one_thread")

GOOD = ComparedSetting("a", "2", 0.6, 0.5, 0.7, [0.58, 0.62], "[50.0, 70.0]", "", "0:41")
FEW = ComparedSetting("b", "1", 0.5, math.nan, math.nan, [0.5], "", "-10.0 (1 shared seed)", "")
FAILED = ComparedSetting("c", "0 of 2", math.nan, math.nan, math.nan, [], "", "", "")
COMPARED = ComparedSettings(
    "reptk sweep x",
    "3 settings",
    "a leads.",
    "knn@20",
    "minus the best",
    [GOOD, FEW, FAILED],
    ["no result of c"],
    ["a seed=0", "b seed=0"],
)


def share(position: str) -> float:
    return float(position.removesuffix("%")) / 100


def test_positions_are_those_of_the_axis() -> None:
    section = settings_section(COMPARED)
    first, last = section.ticks[0], section.ticks[-1]
    assert (first.position, last.position) == ("0.00%", "100.00%")
    low, high = float(first.text) / 100, float(last.text) / 100
    line = section.lines[0]
    for position, value in zip(
        [line.position, line.low, line.high, *line.dots], [0.6, 0.5, 0.7, 0.58, 0.62], strict=True
    ):
        assert low + share(position) * (high - low) == pytest.approx(value, abs=1e-4)
    assert [line.name for line in section.lines] == ["a", "b", "c"]


def test_one_run_has_no_dots_and_a_failed_setting_has_no_position() -> None:
    _, few, failed = settings_section(COMPARED).lines
    assert few.is_single
    assert (few.dots, few.low) == ([], "")
    assert few.difference == "\u221210.0 (1 shared seed)"
    assert (failed.value, failed.position, failed.dots) == ("failed", "", [])


def test_without_a_result_there_is_no_section() -> None:
    assert settings_section(None) is None
    assert settings_section(replace(COMPARED, settings=[FAILED])) is None


def test_equal_values_can_be_drawn() -> None:
    setting = ComparedSetting("a", "2", 0.5, math.nan, math.nan, [0.5, 0.5], "(equal)", "", "")
    line = settings_section(replace(COMPARED, settings=[setting])).lines[0]
    assert share(line.position) == pytest.approx(0.5, abs=0.5)


def test_the_page_begins_with_the_settings(run: Path, other: Path, tmp_path: Path) -> None:
    page = Page(write([run, other], tmp_path / "page.html", settings=COMPARED))
    assert not page.open
    assert page.ids("section")[:3] == ["verdict", "settings", "numbers"]
    text = page.text()
    assert text.startswith("reptk sweep x")
    assert "a leads." in text
    assert "0 of 2 failed" in text
    assert "no result of c" in text
    assert "to a seed=0 in percentage points" in text
    rows = page.source.partition('id="settings"')[2].partition("</section>")[0]
    assert rows.count('class="mean"') == rows.count('class="single"') == rows.count('class="whisker"') == 1
    assert rows.count('class="seed"') == 2
    # Without settings the page is that of the runs.
    assert "settings" not in Page(write([run, other], tmp_path / "runs.html")).ids("section")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_of_settings_stay_text(name: str, run: Path, tmp_path: Path) -> None:
    setting = replace(GOOD, name=name, count=name, interval=name, difference=name, duration=name)
    compared = replace(COMPARED, title=name, about=name, sentence=name, metric=name, settings=[setting], notes=[name])
    compared = replace(compared, run_names=[name])
    page = Page(write(run, tmp_path / "page.html", settings=compared))
    assert not page.open
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert page.text().count(" ".join(printable(name).split())) >= 8
    assert "\u202e" not in page.source
