"""reptk report: what stands on the page of a run, and that names stay text."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from report_pages import EVIL, Page, opened
from report_runs import RECIPE, make_run
from reptk import DATASETS
from reptk.config import build
from reptk.report import write
from reptk.report.formatting import printable
from reptk.report.run_files import read_run
from reptk.report.section_gallery import select_queries

pytestmark = pytest.mark.usefixtures("one_thread")


# What stands on it


def test_the_sections_come_in_the_order_in_which_one_wants_to_know(page: Page) -> None:
    order = page.ids("section")
    assert order[:6] == ["verdict", "numbers", "curves", "gallery", "space", "classes"]
    assert order[6:] == ["health", "recipe", "views", "protocol", "repeat"]
    assert not page.open, "every element is closed"
    assert len(set(page.ids())) == len(page.ids())


def test_numbers_with_intervals_baselines_and_gains(page: Page, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    text = page.text()
    assert results["verdict"]["sentence"] in text
    assert results["verdict"]["advice"][0] in text
    for row, values in results["metrics"].items():
        assert row in text
        for metric, value in values.items():
            low, high = results["intervals"][row][metric]
            assert f"{100 * value:.1f}" in text
            if row == "trained":
                assert f"{100 * low:.1f} \u2013 {100 * high:.1f}" in text
    gain = results["gains"]["raw pixels"]["knn@5"][0]
    assert f"{100 * gain:+.1f}" in text


def test_it_needs_nothing_from_outside(page: Page) -> None:
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name in ("src", "href", "srcset", "action", "style", *(key for key in attrs if key.startswith("on"))):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
    assert not re.search(r"@import|url\(|https?:(?!//www\.w3\.org)", page.source.replace("http-equiv", ""))


def test_its_policy_allows_this_style_and_this_script_alone(page: Page) -> None:
    policy = next(
        attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data: blob:; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_each_picture_is_the_image_of_its_number(page: Page, run: Path) -> None:
    data = build(DATASETS, RECIPE["data"])
    names = [attrs["data-picture"] for tag, attrs in page.elements if tag == "img"]
    shown = [name for name in names if not name.startswith("view/")]
    assert len(shown) > 100
    for name in set(shown):
        _, split, number = name.split("/")
        expected = getattr(data, split).images.fetch(torch.tensor([int(number)]))[0]
        assert (opened(page.data["pictures"][name]) == expected.permute(1, 2, 0).numpy()).all()


def test_the_thumbnails_are_those_of_the_points(page: Page) -> None:
    atlas, data = page.data["atlases"]["a0"], build(DATASETS, RECIPE["data"])
    sheet = opened(atlas["uri"]).astype(int)
    assert page.data["maps"][0]["atlas"] == "a0"
    for point in range(40):
        top, left = (place * atlas["cell"] for place in divmod(point, atlas["columns"]))
        expected = data.query.images.fetch(torch.tensor([point]))[0].permute(1, 2, 0).numpy().astype(int)
        shown = sheet[top : top + atlas["height"], left : left + atlas["width"]]
        gaps = [
            abs(shown - image.permute(1, 2, 0).numpy().astype(int)).mean()
            for image in data.query.images.fetch(torch.arange(40))
        ]
        assert shown.shape == expected.shape
        assert int(np.argmin(gaps)) == point


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    first, second = (write(run, tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_the_recipe_beside_the_shipped_one(tmp_path: Path) -> None:
    changed = {"name": "simclr_digits", "loss": {"temperature": 0.31}}
    text = Page(write(make_run(tmp_path / "run", **changed))).text()
    assert "loss.temperature" in text
    assert "0.31" in text
    assert re.search(r"simclr_digits , with \d+ values changed", text)


def test_the_command_repeats_the_recipe(tmp_path: Path) -> None:
    from reptk.report import recipe_diff

    folder = tmp_path / "run"
    folder.mkdir()
    import reptk

    overrides = ["loss.temperature=0.25", "train.epochs=3", "eval.knn.k=[1, 5]"]
    (folder / "recipe.toml").write_text(reptk.load("simclr_digits", overrides).dump())
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 2.0}\n')
    made = read_run(folder, "run")
    command = recipe_diff.training_command(made, recipe_diff.shipped_recipe(made))
    assert command.startswith("python -m reptk.recipe simclr_digits ")
    import shlex

    again = reptk.load(*(lambda words: (words[3], words[4:]))(shlex.split(command)))
    assert again.model_copy(update={"expect": None}) == reptk.load("simclr_digits", overrides)


# Names


def test_names_stay_text(tmp_path: Path) -> None:
    page = Page(write(make_run(tmp_path / "r & <i>'\"", classes=EVIL)))
    assert not page.open
    assert {tag for tag, _ in page.elements}.isdisjoint({"b1", "i"})
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    text = page.text()
    assert printable(EVIL[0]) in text
    assert "two\u240alines" in text
    assert "\u202e" not in page.source
    assert page.data["maps"][0]["classes"] == [printable(name) for name in EVIL]


def test_file_names_of_any_kind(tmp_path: Path) -> None:
    for name in ("<b>", "\u5199\u771f"):
        for number in range(20):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.effect_noise((20, 20), 90 + number).convert("RGB").save(
                tmp_path / "photos" / name / f"<u>'{number}.png"
            )
    part = {"name": "folder", "root": str(tmp_path / "photos"), "size": 16, "holdout": 4}
    run = make_run(tmp_path / "run", data=part)
    text = Page(write(run)).text()
    assert re.search(r"<u>'\d+\.png", text)


# The gallery


def test_surest_failures_come_first(other: Path) -> None:
    evidence = read_run(other, "b").predictions
    tabs = {selection.title: selection.rows for selection in select_queries(evidence)}
    wrong = evidence.predicted != evidence.labels
    assert list(tabs) == ["Surest failures", "Failures", "Right", "Random"]
    assert bool(wrong[tabs["Surest failures"]].all())
    assert bool(wrong[tabs["Failures"]].all())
    assert not bool(wrong[tabs["Right"]].any())
    assert len(evidence.confidence[wrong].unique()) > 1
    confidence = evidence.confidence[tabs["Surest failures"]].tolist()
    assert confidence == sorted(confidence, reverse=True)
    assert confidence[0] == evidence.confidence[wrong].max()
