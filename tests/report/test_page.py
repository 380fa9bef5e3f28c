"""The whole page: order of sections, nothing from outside, names that stay text."""

import base64
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from report_pages import HOSTILE_NAMES, Page
from report_runs import copy_files, make_run
from reptk.report import write
from reptk.report.formatting import printable
from reptk.report.section_curves import _line_style

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sections_are_in_order(page: Page) -> None:
    assert page.ids("section") == [
        "verdict",
        "numbers",
        "gallery",
        "space",
        "classes",
        "curves",
        "health",
        "recipe",
        "views",
        "protocol",
        "repeat",
    ]


def test_the_page_is_well_formed(page: Page) -> None:
    assert not page.open, "every element is closed"
    assert len(set(page.ids())) == len(page.ids())


def test_the_page_loads_nothing_from_outside(page: Page) -> None:
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        event_handlers = [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "style", *event_handlers):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
    assert not re.search(r"@import|url\(|https?:(?!//www\.w3\.org)", page.source.replace("http-equiv", ""))


def test_the_security_policy_allows_this_style_and_this_script_alone(page: Page) -> None:
    policies = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data: blob:; ")
    assert "unsafe" not in policies[0]
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policies[0]


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    first = write(run, tmp_path / "1.html").read_bytes()
    second = write(run, tmp_path / "2.html").read_bytes()
    assert first == second


def test_names_stay_text(tmp_path: Path) -> None:
    page = Page(write(make_run(tmp_path / "r & <i>'\"", classes=HOSTILE_NAMES)))
    assert not page.open
    assert {tag for tag, _ in page.elements}.isdisjoint({"b1", "i"})
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    text = page.text()
    assert printable(HOSTILE_NAMES[0]) in text
    assert "two\u240alines" in text
    assert "\u202e" not in page.source
    assert page.data["maps"][0]["classes"] == [printable(name) for name in HOSTILE_NAMES]


def test_several_runs_are_on_one_page(run: Path, other: Path, tmp_path: Path) -> None:
    page = Page(write([run, other], tmp_path / "both.html"))
    text = page.text()
    assert "a has the highest kNN@5" in text
    assert "Each is one run; differences between seeds were not measured." in text
    assert [packed["name"] for packed in page.data["maps"]] == ["a", "b"]
    assert len(page.data["atlases"]) == 1, "the same images once"
    assert {"gallery-tab-0", "gallery-tab-1", "g0-tab-0", "g1-tab-3"} <= set(page.ids())
    assert "loss.temperature" in text
    assert "lower, significant at 95 %" in text


def test_runs_on_different_images_are_not_compared(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "elsewhere", seed=2)
    results = json.loads((other / "results.json").read_text())
    results["protocol"]["data"] = {"name": "folder", "root": "elsewhere"}
    (other / "results.json").write_text(json.dumps(results))
    text = Page(write([run, other], tmp_path / "both.html")).text()
    assert "2 runs measured on different images: their numbers cannot be compared." in text
    assert "has the highest" not in text


def test_what_differs_between_runs_is_above_their_numbers(run: Path, other: Path, tmp_path: Path) -> None:
    text = Page(write([run, other], tmp_path / "both.html")).text()
    difference = re.search(r"What differs run loss\.temperature a [\d.]+ b 0\.3", text).start()
    assert text.index("a has the highest") < difference < text.index("raw pixels")
    same = Page(write([run, make_run(tmp_path / "c", seed=2)], tmp_path / "same.html")).text()
    assert "All of them have the same recipe." in same


def test_a_page_has_any_number_of_runs(run: Path, tmp_path: Path) -> None:
    folders = []
    for number in range(13):
        folder = copy_files(run, tmp_path / f"r{number}", "results.json", "recipe.toml")
        recipe = (folder / "recipe.toml").read_text()
        (folder / "recipe.toml").write_text(recipe.replace("\nepochs = 3", f"\nepochs = {number + 3}"))
        folders.append(folder)
    page = Page(write(folders, tmp_path / "page.html"))
    assert not page.open
    text = page.text()
    assert "What differs run train.epochs r0 3 r1 4 r2 5" in text
    assert text.count("over r0") >= 12
    lines = {line.css_class + line.dashes for line in map(_line_style, range(36))}
    assert len(lines) == 36


def test_elements_have_the_names_that_screen_readers_say(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(next_level <= level + 1 for level, next_level in pairwise(levels))
    landmarks = [tag for tag, _ in page.elements if tag in ("header", "nav", "main")]
    assert landmarks == ["header", "nav", "main"]
    for tag, attrs in page.elements:
        assert tag != "th" or attrs["scope"] in ("row", "col")
        assert tag != "img" or "alt" in attrs
        assert tag != "nav" or attrs["aria-label"]
    assert all(attrs["alt"] for _, attrs in page.elements if "data-image" in attrs)
    assert not re.search(r"<th[^>]*></th>", page.source), "an empty cell is no heading"


def test_runs_are_called_by_the_parts_that_replaced_those_of_their_recipe(run: Path, tmp_path: Path) -> None:
    changes = {"overrides": ("loss.name=tcl", "train.workers=1", "optim.lr=0.1"), "loss": {"name": "tcl"}}
    changed = make_run(tmp_path / "b", **changes)
    title = "tiny loss.name=tcl optim.lr=0.1"
    assert title in Page(write(changed)).text()
    text = Page(write([run, changed], tmp_path / "both.html")).text()
    assert "b loss.name=tcl" in text
    # The parts come first, then their arguments.
    assert re.search(r"What differs[^.]*run loss\.name loss\.", text)


def test_curves_of_several_runs_are_in_one_plot(run: Path, other: Path, tmp_path: Path) -> None:

    page = Page(write([run, other], tmp_path / "both.html"))
    series = [json.loads(attrs["data-series"]) for _, attrs in page.elements if "data-series" in attrs]
    assert sum(len(lines) == 2 for lines in series) >= 3
