"""A process killed at any moment leaves a whole checkpoint, and damage is detected."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import model_state
from torch import nn

import reptk
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.files import LOCK_FILE, sha256_of
from reptk.training.build import build
from reptk.training.checkpoint import last_step, load_newest, mark_best, save
from reptk.training.load_data import load_data
from reptk.training.run_status import write_status
from reptk.training.state import restore
from tiny_runs import run_silently, tiny

SaveFunction = Callable[[Path, int, dict[str, Any]], object]


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": 1.5,
        "baselines": {"untrained": {"knn@1": 0.25}},
        "method": {
            "weight": torch.arange(6.0).view(2, 3) * step,
            "bias": torch.full((3,), 0.1, dtype=torch.bfloat16),
            "seen": torch.tensor(step),
            "nothing": None,
        },
    }


def are_equal(a: Any, b: Any) -> bool:
    """Whether two nested states are the same, types and dtypes included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(are_equal(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def load_last(folder: Path) -> dict[str, Any] | None:
    checkpoint = load_newest(folder)
    return None if checkpoint is None else checkpoint.state


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Round trip


def test_model_state_is_loaded(tmp_path: Path) -> None:
    assert load_last(tmp_path / "none") is None
    checkpoint = save(tmp_path / "checkpoints", 42, state(42))
    assert checkpoint == tmp_path / "checkpoints" / "step_00000042"
    assert are_equal(load_last(tmp_path / "checkpoints"), state(42))
    assert not are_equal(load_last(tmp_path / "checkpoints"), state(41))


def test_optimizer_state_is_restored(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for _ in range(2)]
    model(torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    save(tmp_path, 1, {"optimizer": optimizers[0].state_dict()})
    optimizers[1].load_state_dict(load_last(tmp_path)["optimizer"])
    assert are_equal(optimizers[1].state_dict()["state"], optimizers[0].state_dict()["state"])


def test_last_checkpoints_remain(tmp_path: Path) -> None:
    for step in (1, 2, 30, 100):
        save(tmp_path, step, state(step))
        assert load_last(tmp_path)["step"] == last_step(tmp_path) == step
    assert file_names(tmp_path) == ["step_00000030", "step_00000100"]
    save(tmp_path, 100, state(100))
    assert file_names(tmp_path) == ["step_00000100", "step_00000100.1"]
    save(tmp_path, 101, state(101), keep=3)
    assert len(file_names(tmp_path)) == 3
    save(tmp_path, 102, state(102), keep=1)
    assert file_names(tmp_path) == ["step_00000102"]


def test_the_newest_checkpoint_is_that_of_the_last_step_whatever_clocks_say(tmp_path: Path) -> None:
    """Clocks of two machines differ, and are set back."""
    for step in (9, 10, 11):
        save(tmp_path, step, state(step), keep=3)
        for path in (tmp_path / f"step_{step:08}").iterdir():
            os.utime(path, (0, 2_000_000_000 - 1_000_000 * step))
        os.utime(tmp_path / f"step_{step:08}", (0, 2_000_000_000 - 1_000_000 * step))
    assert load_last(tmp_path)["step"] == 11
    save(tmp_path, 12, state(12), keep=2)
    assert file_names(tmp_path) == ["step_00000011", "step_00000012"]


def test_checkpoints_of_a_run_that_went_back_are_deleted(tmp_path: Path) -> None:
    """It went on from step 20, since 30 and 40 were damaged."""
    for step in (20, 30, 40, 25):
        save(tmp_path, step, state(step), keep=4)
    assert file_names(tmp_path) == ["step_00000020", "step_00000025"]


def test_the_best_checkpoint_remains_until_there_is_a_better_one(tmp_path: Path) -> None:
    for step, is_best in ((1, True), (2, True), (3, False), (4, False)):
        save(tmp_path, step, state(step), keep=1)
        if is_best:
            mark_best(tmp_path, step)
    assert file_names(tmp_path) == ["best.json", "step_00000002", "step_00000004"]
    assert load_last(tmp_path)["step"] == 4
    # A damaged mark is none.
    (tmp_path / "best.json").write_text("[2]")
    save(tmp_path, 5, state(5), keep=1)
    assert file_names(tmp_path) == ["best.json", "step_00000005"]


def test_the_manifest_says_what_wrote_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 3, state(3), details={"ranks": 2})
    manifest = load_newest(tmp_path).manifest
    assert (manifest["step"], manifest["format"], manifest["reptk"], manifest["ranks"]) == (3, 1, reptk.__version__, 2)


# A process killed at any moment


class Killed(BaseException):
    """Raised where the process would be killed; no `except Exception` catches it."""


def write_half(path: Path, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123 (Path.open is one of DISK_OPERATIONS)
        file.write(text[: len(text) // 2])


DISK_OPERATIONS = (
    *((torch, "save"), (os, "fsync"), (shutil, "rmtree")),
    *((Path, name) for name in ("mkdir", "open", "write_text", "rename", "replace")),
)

PARTIAL_OPERATIONS: dict[str, Callable[..., object]] = {
    "save": lambda state, file: file.write(b"PK half an archive"),
    "write_text": write_half,
}


class KillAt:
    """From the `moment`-th disk operation on, the process does nothing more, cleaning up included.

    Operations that can be killed halfway leave a part of the file.
    """

    def __init__(self, patch: pytest.MonkeyPatch, moment: int) -> None:
        self.operations_left = moment
        for owner, name in DISK_OPERATIONS:
            patch.setattr(owner, name, self.interruptible(name, getattr(owner, name)))

    def interruptible(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.operations_left -= 1
            if self.operations_left < 0:
                if self.operations_left == -1 and name in PARTIAL_OPERATIONS:
                    PARTIAL_OPERATIONS[name](*args)
                raise Killed
            return operation(*args, **kwargs)

        return run


def is_killed(action: Callable[[], object], moment: int) -> bool:
    """Run `action`, killed at this moment; False if it ends before."""
    with pytest.MonkeyPatch.context() as patch:
        KillAt(patch, moment)
        try:
            action()
        except Killed:
            return True
    return False


def check_every_moment(save_function: SaveFunction, step: int, tmp_path: Path) -> int:
    """Save steps 1 and 2, then kill `save_function` at every moment of saving `step`; return the number of moments.

    The checkpoint that is loaded afterwards must be whole: the new one or the one before (1, if 2 is saved again).
    """
    for moment in count():
        folder = tmp_path / str(moment)
        for earlier_step in (1, 2):
            save(folder, earlier_step, state(earlier_step))
        killed = is_killed(lambda folder=folder: save_function(folder, step, state(step)), moment)
        loaded = load_last(folder)
        assert are_equal(loaded, state(loaded["step"]))
        assert loaded["step"] == step or (killed and loaded["step"] == min(2, step - 1))
        save(folder, step, state(step))  # the run that is started again can go on
        assert load_last(folder)["step"] == step
        if not killed:
            return moment
    raise AssertionError


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    assert check_every_moment(save, 3, tmp_path) >= 12


def save_in_place(folder: Path, step: int, state: dict[str, Any]) -> None:
    """A wrong way to save, which the test must detect."""
    shutil.rmtree(folder / "step_00000002", ignore_errors=True)
    checkpoint = folder / f"step_{step:08d}"
    checkpoint.mkdir()
    with (checkpoint / "state.pt").open("wb") as file:
        torch.save(state, file)


def test_saving_in_place_fails_this_test(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_every_moment(save_in_place, 3, tmp_path)


def test_kill_while_a_step_is_saved_again_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    check_every_moment(save, 2, tmp_path)


@pytest.mark.parametrize(("owner", "name"), [(torch, "save"), (os, "fsync"), (Path, "rename")])
def test_full_disk_leaves_the_earlier_checkpoints(owner: Any, name: str, tmp_path: Path) -> None:
    def fail_with_full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        save(tmp_path, step, state(step))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail_with_full_disk)
        with pytest.raises(EnvironmentProblem, match=r"step_00000003 is full \(No space left on device\)"):
            save(tmp_path, 3, state(3))
    assert file_names(tmp_path) == ["step_00000001", "step_00000002"]
    assert load_last(tmp_path)["step"] == 2


def test_leftovers_of_a_killed_save_are_removed_by_the_next(tmp_path: Path) -> None:
    save(tmp_path, 1, state(1))
    leftover = tmp_path / ".step_00000002.0123abcd.writing"
    shutil.copytree(tmp_path / "step_00000001", leftover / "step_00000002")
    (leftover / LOCK_FILE).touch()
    save(tmp_path, 3, state(3))
    assert file_names(tmp_path) == ["step_00000001", "step_00000003"]


# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda folder: truncate(folder / "state.pt"), "state.pt has"),
    "a bit flipped": (lambda folder: flip_bit(folder / "state.pt"), "does not match its manifest"),
    "no state": (lambda folder: (folder / "state.pt").unlink(), "state.pt cannot be read: No such file"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
    "half a manifest": (lambda folder: truncate(folder / "manifest.json"), "manifest.json cannot be read"),
    "another manifest": (lambda folder: (folder / "manifest.json").write_text('{"step": 2}'), "lacks bytes"),
    "a list": (lambda folder: (folder / "manifest.json").write_text("[1]"), "is no table"),
    "no step": (
        lambda folder: (folder / "manifest.json").write_text('{"step": "2", "bytes": 1, "sha256": ""}'),
        "step in manifest.json is no number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_read(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, state(step))
    inflict, message = DAMAGES[damage]
    inflict(tmp_path / "step_00000002")
    checkpoint = load_newest(tmp_path)
    assert checkpoint.path == tmp_path / "step_00000001"
    assert are_equal(checkpoint.state, state(1))
    assert len(checkpoint.damaged) == 1
    assert checkpoint.damaged[0].startswith(f"checkpoint {tmp_path / 'step_00000002'} is damaged: ")
    assert message in checkpoint.damaged[0]
    # A run does not begin anew because all of them are damaged.
    inflict(tmp_path / "step_00000001")
    with pytest.raises(DataError, match=r"no checkpoint in .* is intact") as error:
        load_newest(tmp_path)
    assert str(error.value).count("is damaged") == 2


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system is away, or there is no memory: an older one must not take its place."""
    for step in (1, 2):
        save(tmp_path, step, state(step))
    for error, expected in ((OSError(116, "Stale file handle"), EnvironmentProblem), (MemoryError(), MemoryError)):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", fail)
            patch.setattr("reptk.training.checkpoint.sha256_of", fail if isinstance(error, OSError) else sha256_of)
            with pytest.raises(expected):
                load_newest(tmp_path)
    assert load_newest(tmp_path).manifest["step"] == 2


def test_checkpoints_of_one_step_are_ordered_by_number(tmp_path: Path) -> None:
    for _ in range(12):
        newest = save(tmp_path, 1, state(1), keep=20)
    assert newest.name == "step_00000001.11"
    assert load_newest(tmp_path).path == newest


@pytest.mark.parametrize("key", ["step", "ranks"])
def test_a_manifest_whose_numbers_are_none_is_damage(key: str, tmp_path: Path) -> None:
    save(tmp_path, 1, state(1))
    path = save(tmp_path, 2, state(2)) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: [2]}))
    checkpoint = load_newest(tmp_path)
    assert checkpoint.state["step"] == 1
    assert f"{key} in manifest.json is no number" in checkpoint.damaged[0]


def test_a_checkpoint_of_a_newer_reptk_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1, state(1)) / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match=r"was written by a newer reptk \(.*, format 2; this one reads up to 1\)"):
        load_newest(tmp_path)


class CodeInPickle:
    """Runs code when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    checkpoint = save(tmp_path / "checkpoints", 1, {**state(1), "extra": CodeInPickle(marker)})
    with pytest.raises(DataError, match="holds more than tensors and plain values") as error:
        load_last(tmp_path / "checkpoints")
    # torch advises to permit the code.
    assert "weights_only" not in str(error.value)
    assert not marker.exists()
    torch.load(checkpoint / "state.pt", weights_only=False)
    assert marker.exists()  # without the restriction the code runs


def test_a_checkpoint_of_another_version_is_refused() -> None:
    recipe = tiny()
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    with pytest.raises(DataError, match="written by another version of reptk"):
        restore(parts, {"step": 3, "method": parts.method.state_dict(), "optimizer": parts.optimizer.state_dict()})


@pytest.mark.parametrize("damage", ["shape", "type", "option", "missing entry"])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_state_that_the_optimizer_cannot_use_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    """By the first step at the latest. Kernels of fused optimizers do not look at shapes."""
    recipe = tiny(f"optim.name={name}", "train.report=false", "train.baselines=false")
    run_silently(recipe, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000006")
    write_status(tmp_path, "running", step=3)
    saved = load_newest(tmp_path / "checkpoints").state
    first = saved["optimizer"]["state"][0]
    if damage == "shape":
        first["exp_avg"] = torch.zeros(7)
    elif damage == "type":
        first["exp_avg"] = "often"
    elif damage == "option":
        saved["optimizer"]["param_groups"][0]["betas"] = "often"
    else:
        del first["exp_avg"]
    save(tmp_path / "checkpoints", saved["step"], saved)
    with pytest.raises(DataError, match=r"the checkpoint (is damaged|does not fit)"):
        run_silently(recipe, tmp_path)


@pytest.mark.parametrize("name", ["adafactorbv", "muon", "lamb", "lars", "lion"])
def test_states_of_all_kinds_of_optimizers_are_restored(name: str, tmp_path: Path) -> None:
    """Factored moments, several kinds of state in one optimizer."""
    recipe = tiny(f"optim.name={name}", "train.report=false", "train.baselines=false", "encoder.backbone=test_vit")
    run_silently(recipe, tmp_path / "whole")
    run_silently(recipe, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_00000006")
    write_status(tmp_path / "resumed", "running", step=3)
    run_silently(recipe, tmp_path / "resumed")
    weights = [model_state(tmp_path / run / "model") for run in ("whole", "resumed")]
    assert are_equal(*weights)
