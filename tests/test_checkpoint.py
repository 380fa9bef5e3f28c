"""Checkpoints that survive a death at any moment, and damage."""

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reptk.core.errors import DataError
from reptk.core.files import write_text
from reptk.training.checkpoint import load_last, save

Save = Callable[[Path, int, dict[str, Any]], object]


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
    write_text(folder / "last", f"step_{step:08d}\n")
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
        died = dies(lambda: write_text(tmp_path / "status.json", "the new text"), moment)
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
