"""The recipe of a run against the shipped one, and the command that repeats it."""

import re
import shlex
from pathlib import Path

import pytest

import reptk
from report_pages import Page
from report_runs import make_run
from reptk.report import write
from reptk.report.recipe_diff import described_values, shipped_recipe, training_command
from reptk.report.run_files import read_run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_changes_to_the_shipped_recipe_are_listed(tmp_path: Path) -> None:
    changes = {"name": "simclr_digits", "loss": {"temperature": 0.31}}
    text = Page(write(make_run(tmp_path / "run", **changes))).text()
    assert "loss.temperature" in text
    assert "0.31" in text
    assert re.search(r"simclr_digits , with \d+ values changed", text)


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.temperature=0.25", "train.epochs=3", "eval.knn.k=[1, 5]"],
        ["loss.temperature={start=0.25, end=0.1}", "optim.weight_decay.end=0.3", "train.sampler.name=positives"],
        ["data.labelled=0.1", "train.sampler.labeled_per_batch=8"],
    ],
    ids=["numbers", "schedules", "few labels"],
)
def test_the_command_repeats_the_recipe(overrides: list[str], tmp_path: Path) -> None:
    recipe = reptk.load("simclr_digits", overrides)
    (tmp_path / "recipe.toml").write_text(recipe.dump())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 2.0}\n')
    run = read_run(tmp_path, "run")
    command = training_command(run, shipped_recipe(run))
    assert command.startswith("python -m reptk.recipe simclr_digits ")
    words = shlex.split(command)
    repeated = reptk.load(words[3], words[4:])
    # The command names every value, also those that followed from others, such as the shorter warm-up.
    ignored = {"expect": None, "overrides": ()}
    assert repeated.model_copy(update=ignored) == recipe.model_copy(update=ignored)


def test_described_values() -> None:
    a = {"loss.name": "supcon", "optim.lr": 0.1}
    b = {"loss.name": "tcl", "loss.k1": 7, "optim.lr": 0.1, "data.labelled": 0.5, "train.sampler.name": "random"}
    c = {"loss.name": "tcl", "loss.k1": 8, "optim.lr": 0.2, "train.ema_decay": 0.9}
    keys = ["loss.name", "loss.k1", "optim.lr", "data.labelled", "train.sampler.name", "train.ema_decay"]
    everything = [a, b, c]
    # An argument of another part says nothing, and a table of which there is nothing is one word.
    assert described_values(a, keys, everything) == [
        ("loss.name", "supcon"),
        ("optim.lr", "0.1"),
        ("data", "unset"),
        ("train", "unset"),
    ]
    assert described_values(b, keys, everything) == [
        ("loss.name", "tcl"),
        ("loss.k1", "7"),
        ("optim.lr", "0.1"),
        ("data.labelled", "0.5"),
        ("train.sampler.name", "random"),
        ("train.ema_decay", "unset"),
    ]
    assert described_values(c, keys, everything)[3:] == [
        ("data", "unset"),
        ("train.sampler", "unset"),
        ("train.ema_decay", "0.9"),
    ]
    # What both losses share is no difference of theirs.
    assert described_values(b, ["loss.name", "loss.k1"], [a, b]) == [("loss.name", "tcl")]
