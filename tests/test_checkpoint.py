"""What a run leaves on disk: checkpoints that survive a death at any moment, its folder, its metrics, what it prints."""

import io
import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from reptk import run
from reptk.checkpoint import load_last, replace_text, save
from reptk.config import Recipe, load, override, validate
from reptk.errors import DataError, EnvironmentProblem, UsageError
from reptk.log import Log, clock, title

Save = Callable[[Path, int, dict[str, Any]], object]


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": 1.5,
        "baselines": {"untrained": {"knn@1": 0.25}},
        "objective": {
            "weight": torch.arange(6.0).view(2, 3) * step,
            "bias": torch.full((3,), 0.1, dtype=torch.bfloat16),
            "seen": torch.tensor(step),
            "nothing": None,
        },
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


# Round trip


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert load_last(tmp_path / "none") is None
    place = save(tmp_path / "checkpoints", 42, state(42))
    assert place == tmp_path / "checkpoints" / "step_00000042"
    assert same(load_last(tmp_path / "checkpoints"), state(42))
    assert not same(load_last(tmp_path / "checkpoints"), state(41))


def test_an_optimizer_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for _ in range(2)]
    model(torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    save(tmp_path, 1, {"optimizer": optimizers[0].state_dict()})
    optimizers[1].load_state_dict(load_last(tmp_path)["optimizer"])
    assert same(optimizers[1].state_dict()["state"], optimizers[0].state_dict()["state"])


def test_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 100):
        save(tmp_path, step, state(step))
        assert load_last(tmp_path)["step"] == step
        assert len(names(tmp_path)) <= 3
    assert names(tmp_path) == ["last", "step_00000030", "step_00000100"]
    save(tmp_path, 100, state(100))
    assert names(tmp_path) == ["last", "step_00000100", "step_00000100.1"]


def test_what_was_just_saved_is_kept(tmp_path: Path) -> None:
    for step in (30, 40, 10):
        save(tmp_path, step, state(step))
    assert load_last(tmp_path)["step"] == 10


# Death at any moment


class Killed(BaseException):
    """The process is no more."""


def write_half(path: Path, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123 (Path.open is watched)
        file.write(text[: len(text) // 2])


WATCHED = (
    *((torch, "save"), (os, "fsync"), (shutil, "rmtree")),
    *((Path, name) for name in ("mkdir", "open", "write_text", "rename", "replace")),
)

HALFWAY: dict[str, Callable[..., object]] = {
    "save": lambda state, file: file.write(b"PK half an archive"),
    "write_text": write_half,
}


class Death:
    """From its `moment`-th change to the disk on, a process does nothing more, cleaning up included."""

    def __init__(self, patch: pytest.MonkeyPatch, moment: int) -> None:
        self.left = moment
        for owner, name in WATCHED:
            patch.setattr(owner, name, self.watch(name, getattr(owner, name)))

    def watch(self, name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                if self.left == -1 and name in HALFWAY:
                    HALFWAY[name](*arguments)
                raise Killed
            return action(*arguments, **options)

        return act


def dies(act: Callable[[], object], moment: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        Death(patch, moment)
        try:
            act()
        except Killed:
            return True
    return False


def survive(save_it: Save, step: int, tmp_path: Path) -> int:
    """Save 1 and 2 and let `save_it` die at every moment of `step`: what is selected is whole. Number of moments.

    It is the new one or the one before; where 2 itself is saved again, 1 will do.
    """
    for moment in count():
        folder = tmp_path / str(moment)
        for before in (1, 2):
            save(folder, before, state(before))
        died = dies(lambda folder=folder: save_it(folder, step, state(step)), moment)
        found = load_last(folder)
        assert same(found, state(found["step"]))
        assert found["step"] == step or (died and found["step"] == min(2, step - 1))
        save(folder, step, state(step))  # and the run that is started again goes on
        assert load_last(folder)["step"] == step
        if not died:
            return moment
    raise AssertionError


def test_a_death_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    assert survive(save, 3, tmp_path) >= 12


def save_in_place(folder: Path, step: int, state: dict[str, Any]) -> None:
    replace_text(folder / "last", f"step_{step:08d}\n")
    place = folder / f"step_{step:08d}"
    place.mkdir()
    with (place / "state.pt").open("wb") as file:
        torch.save(state, file)


def test_a_careless_save_does_not_survive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="step_00000003 is damaged"):
        survive(save_in_place, 3, tmp_path)


def test_a_death_while_a_step_is_saved_again_leaves_a_whole_one(tmp_path: Path) -> None:
    survive(save, 2, tmp_path)


@pytest.mark.parametrize(("owner", "name"), [(torch, "save"), (os, "fsync"), (Path, "rename")])
def test_a_full_disk_leaves_nothing_half_done(owner: Any, name: str, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        save(tmp_path, step, state(step))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 3, state(3))
    assert names(tmp_path) == ["last", "step_00000001", "step_00000002"]
    assert load_last(tmp_path)["step"] == 2


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path: Path) -> None:
    save(tmp_path, 1, state(1))
    shutil.copytree(tmp_path / "step_00000001", tmp_path / ".step_00000002.999999")
    save(tmp_path, 3, state(3))
    assert names(tmp_path) == ["last", "step_00000001", "step_00000003"]


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    seen = []
    for moment in count():
        (tmp_path / "status.json").write_text("old")
        died = dies(lambda: replace_text(tmp_path / "status.json", "the new text"), moment)
        seen.append((tmp_path / "status.json").read_text())
        if not died:
            break
    assert seen == ["old"] * (len(seen) - 1) + ["the new text"]
    assert len(seen) == 4  # open, fsync, replace; then no death


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda place: cut(place / "state.pt"), "its content does not match its manifest"),
    "a bit flipped": (lambda place: flip(place / "state.pt"), "its content does not match its manifest"),
    "no state": (lambda place: (place / "state.pt").unlink(), "state.pt"),
    "no manifest": (lambda place: (place / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (lambda place: cut(place / "manifest.json"), "Expecting"),
    "another manifest": (lambda place: (place / "manifest.json").write_text('{"step": 2}'), "bytes"),
    "no folder": (shutil.rmtree, "manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_the_way_out(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, state(step))
    inflict, message = DAMAGES[damage]
    inflict(tmp_path / "step_00000002")
    with pytest.raises(DataError, match=message) as caught:
        load_last(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"checkpoint {tmp_path / 'step_00000002'} is damaged: ")
    assert text.endswith(f". To go on from step_00000001, write that name into {tmp_path / 'last'}")
    (tmp_path / "last").write_text("step_00000001\n")
    assert same(load_last(tmp_path), state(1))


def test_damage_without_another_checkpoint_promises_none(tmp_path: Path) -> None:
    save(tmp_path, 1, state(1))
    cut(tmp_path / "step_00000001" / "state.pt")
    with pytest.raises(DataError, match=r"its manifest\.$"):
        load_last(tmp_path)


class Malicious:
    """Runs code when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_code_in_a_checkpoint_is_refused_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    place = save(tmp_path / "checkpoints", 1, {**state(1), "extra": Malicious(marker)})
    with pytest.raises(DataError, match="step_00000001 is damaged"):
        load_last(tmp_path / "checkpoints")
    assert not marker.exists()
    torch.load(place / "state.pt", weights_only=False)
    assert marker.exists()  # it would have run


# The run's folder


def recipe(*overrides: str, **changes: Any) -> Recipe:
    table = {
        "name": "tiny",
        "data": {"name": "generated"},
        "views": {"name": "simclr_small"},
        "encoder": {"backbone": "test_resnet"},
        "objective": {"name": "contrastive"},
        "loss": {"name": "tcl"},
        "optim": {"lr": 0.1},
        "train": {"epochs": 2, "batch_size": 16},
        "eval": {"knn": {"k": [1, 5]}},
    }
    return validate(override(table, overrides)).model_copy(update=changes)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_are_numbered(here: Path) -> None:
    assert [run.claim(recipe(), None) for _ in range(3)] == [Path(f"runs/tiny/{number}") for number in (1, 2, 3)]
    shutil.rmtree("runs/tiny/2")
    Path("runs/tiny/10").mkdir()
    Path("runs/tiny/notes").mkdir()
    assert run.newest("tiny") == Path("runs/tiny/10")
    assert run.claim(recipe(), None) == Path("runs/tiny/11")
    assert run.claim(recipe(name="other"), None) == Path("runs/other/1")


def test_two_runs_never_get_one_number(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.claim(recipe(), None)
    monkeypatch.setattr(run, "_numbered", lambda runs: [])  # what the second saw before the first had claimed
    assert run.claim(recipe(), None) == first.parent / "2"


def test_a_claimed_folder_holds_the_whole_recipe(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "deep" / "new", tmp_path / "empty"):
        assert run.claim(recipe("loss.k1=7.0"), str(folder)) == folder
        assert load(folder) == recipe("loss.k1=7.0")
        assert run.status(folder) == {"status": "running"}
        assert names(folder) == ["recipe.toml", "status.json"]


@pytest.mark.parametrize("status", ["running", "finished", "failed", "interrupted"])
def test_an_occupied_folder_is_refused_and_described(status: str, tmp_path: Path) -> None:
    folder = run.claim(recipe(), tmp_path / "mine")
    run.set_status(folder, status, reason="why")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=rf"another run \(tiny, {status}\)") as caught:
        run.claim(recipe(name="other"), folder)
    assert str(caught.value).endswith(f"python -m reptk.recipe {folder} --resume")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        run.claim(recipe(), tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


def test_plugin_files_are_copied_and_named_from_the_folder(tmp_path: Path) -> None:
    plugin = tmp_path / "somewhere" / "my_loss.py"
    plugin.parent.mkdir()
    plugin.write_text("# a loss\n")
    folder = run.claim(recipe(plugins=(str(plugin), "reptk.plugins.dcl")), tmp_path / "run")
    plugin.write_text("# changed since\n")
    assert (folder / "plugins" / "my_loss.py").read_text() == "# a loss\n"
    written = tomllib.loads((folder / "recipe.toml").read_text())
    assert written["plugins"] == ["plugins/my_loss.py", "reptk.plugins.dcl"]
    assert str(tmp_path / "somewhere") not in (folder / "recipe.toml").read_text()


@pytest.mark.parametrize("out", ["file/run", "file", None])
def test_a_folder_that_cannot_be_made_is_the_environments(out: str | None, here: Path) -> None:
    Path("file").write_text("")
    Path("runs").write_text("")
    with pytest.raises(EnvironmentProblem, match=re.escape(out or "runs/")):
        run.claim(recipe(), out)


def test_runs_that_point_nowhere_are_the_environments(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs").symlink_to("unmounted")
    monkeypatch.setattr(run, "count", lambda first: range(first, first + 100))
    with pytest.raises(EnvironmentProblem, match="runs"):
        run.claim(recipe(), None)


# Resuming


def test_a_run_is_taken_up_with_its_own_recipe(tmp_path: Path) -> None:
    folder = run.claim(recipe(), tmp_path / "run")
    run.set_status(folder, "interrupted")
    free = ("train.workers=3", "train.device=cpu", "train.log_every_steps=1", "train.checkpoint_every_epochs=2")
    for again in (recipe(), load(folder), recipe(*free), recipe(plugins=("elsewhere.py",))):
        assert run.reopen(again, folder) == folder
        assert run.status(folder) == {"status": "running"}


def test_keys_that_differ_are_listed(tmp_path: Path) -> None:
    folder = run.claim(recipe("encoder.drop_path=0.1"), tmp_path / "run")
    run.set_status(folder, "interrupted")
    other = recipe("loss.k1=7.0", "train.epochs=3", "encoder.head_width=12", "train.workers=3", "encoder.drop_path=0.1")
    with pytest.raises(UsageError) as caught:
        run.reopen(other, folder)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{folder} was started with another recipe; resume it with its own:"
    k1 = recipe().loss["k1"]
    assert [line.split(maxsplit=1) for line in lines] == [
        ["encoder.head_width", "None in the run, 12 now"],
        ["loss.k1", f"{k1!r} in the run, 7.0 now"],
        ["train.epochs", "2 in the run, 3 now"],
    ]
    assert run.status(folder) == {"status": "interrupted"}


def test_nothing_to_resume_is_said(here: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing to resume in empty: there is no recipe\.toml"):
        run.reopen(recipe(), Path("empty"))
    with pytest.raises(UsageError, match="no run of tiny in runs/tiny"):
        run.newest("tiny")


def test_a_run_that_cannot_be_written_is_the_environments(tmp_path: Path) -> None:
    folder = run.claim(recipe(), tmp_path / "run")
    (folder / "status.json").unlink()
    (folder / "status.json").mkdir()
    assert run.status(folder) == {"status": "unknown"}
    with pytest.raises(EnvironmentProblem, match=f"cannot write to {folder}"):
        run.reopen(recipe(), folder)


# metrics.jsonl


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(console=Console(file=io.StringIO()))
    log.write_metrics_to(path)
    for step in range(1, 7):
        log.metrics(step=step, loss=1 / step)
    path.write_text(path.read_text() + '[1]\n{"loss": 3}\n{"step": 7, "lo')  # and a line that a death cut short
    again = Log(console=Console(file=io.StringIO()))
    again.write_metrics_to(path, first_step=4)
    assert steps(path) == [1, 2, 3, 4]
    again.metrics(step=5, loss=0.5)
    assert steps(path) == [1, 2, 3, 4, 5]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 5, "loss": 0.5}


def test_a_silent_log_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    log = Log(speaks=False)
    log.write_metrics_to(path)
    log.metrics(step=10)
    log.line("hello")
    log.facts([("data", "photos", "some")])
    log.results(["knn@1"], {"trained": {"knn@1": 1.0}})
    with log.progress(1, 2, 0) as progress:
        progress.step(1, 0.5, 10.0, 1.0)
        progress.epoch(1, 0.5, 10.0, 1.0)
    assert path.read_text() == '{"step": 9}\n'
    assert capsys.readouterr().out == ""


def test_a_log_may_write_without_speaking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(speaks=False, writes=True)
    log.write_metrics_to(tmp_path / "metrics.jsonl")
    log.metrics(step=1)
    log.line("hello")
    assert steps(tmp_path / "metrics.jsonl") == [1]
    assert capsys.readouterr().out == ""


# What is printed


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0, "0:00"), (0.4, "0:00"), (41, "0:41"), (59.6, "1:00"), (60, "1:00"), (725, "12:05")),
        *((3599.7, "1:00:00"), (10931, "3:02:11"), (360000, "100:00:00")),
    ],
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


METRICS = {
    "knn@1": "kNN@1",
    "knn@10": "kNN@10",
    "knn@20": "kNN@20",
    "knn@100": "kNN@100",
    "knn@200": "kNN@200",
    "knn_majority@20": "majority@20",
    "recall@1": "Recall@1",
    "recall@5": "Recall@5",
    "recall@10": "Recall@10",
    "map@r": "mAP@R",
    "r_precision": "R-prec.",
    "linear": "Linear",
}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or pipe: 80 columns by convention, though nothing there has a width."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_has_a_heading(metric: str) -> None:
    assert title(metric) == METRICS[metric]


def test_results_that_fit_are_a_table(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"raw pixels": {"knn@1": 0.25, "map@r": 0.125}, "trained": {"knn@1": 1.0}}
    Log().results(["knn@1", "map@r"], rows)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["            kNN@1  mAP@R", "raw pixels   25.0   12.5", "trained     100.0"]


def test_results_show_every_column_off_a_terminal(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: dict.fromkeys(METRICS, 0.9876) for name in ("raw pixels", "untrained", "trained")}
    Log().results(list(METRICS), rows)
    head, *lines = capsys.readouterr().out.splitlines()
    families = "kNN@1 @10 @20 @100 @200 majority@20 Recall@1 @5 @10 mAP@R R-prec. Linear"
    assert head.split() == families.split()
    assert [line.split("  ")[0] for line in lines] == ["raw pixels", "untrained", "trained"]
    assert all(line.count("98.8") == len(METRICS) for line in lines)


def test_lines_are_printed_as_they_are(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    long = "[bold]no markup[/bold] " + 30 * "a long path / "
    Log().line(long)
    Log().facts([("data", "photos", long), ("encoder", "resnet10t", "4.9 M weights")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [long, f"  data     photos     {long}", "  encoder  resnet10t  4.9 M weights"]


def test_off_a_terminal_an_epoch_is_a_line(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Log().progress(2, 3, 0) as progress:
        for step in range(1, 7):
            progress.step(step, 0.5, 1234.5, 70.0)
            if step % 3 == 0:
                progress.extra = "rank 7/16"
                progress.epoch(step // 3, 0.5, 1234.5, 70.0 if step < 6 else float("inf"))
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2  loss 0.500  1,234 views/s  1:10 left  rank 7/16",
        "epoch 2/2  loss 0.500  1,234 views/s  ? left  rank 7/16",
    ]


def test_on_a_terminal_there_is_a_bar_instead() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Log(console=terminal).progress(2, 3, 0) as progress:
        progress.step(4, 0.5, 1234.5, 70.0)
        progress.shown.refresh()
        progress.epoch(1, 0.5, 1234.5, 70.0)
    printed = terminal.file.getvalue()
    assert "epoch 2/2" in printed
    assert "epoch 1/2" not in printed
