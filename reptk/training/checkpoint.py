"""Atomic checkpoints: written to a temporary folder with a checksum, flushed to disk, then renamed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from reptk.core.errors import DataError
from reptk.core.files import sha256_of, write_text
from reptk.core.foreign_files import read_json, read_text

MAX_NAME_BYTES = 4096


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `folder/step_00000042` (state and manifest), and its name into the file `folder/last`.

    Older checkpoints are deleted, except for the one before, which is there in case the new one is damaged.

    Args:
        folder: the run's `checkpoints`.
        step: number of steps done.
        state: tensors and plain values only, so that reading it back executes no code.

    Returns:
        The folder of the new checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Left by a process that was killed while it wrote.
    for abandoned in folder.glob(".step_*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    previous = _last_name(folder)
    target = _unused_path(folder, f"step_{step:08d}")
    temporary = folder / f".{target.name}"
    temporary.mkdir()
    try:
        _write_state(temporary, step, state)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # Before older checkpoints are deleted, so that the file never names one that is gone.
    write_text(folder / "last", target.name + "\n")
    for older in folder.glob("step_*"):
        if older.name not in (target.name, previous):
            shutil.rmtree(older, ignore_errors=True)
    return target


def load_last(folder: Path) -> dict[str, Any] | None:
    """Return the state of the checkpoint that `folder/last` names, verified by its manifest; None if there is none yet.

    Raises:
        DataError: the checkpoint is damaged or incomplete.
    """
    name = _last_name(folder)
    if name is None:
        return None
    checkpoint = folder / name
    state_file = checkpoint / "state.pt"
    try:
        manifest = read_json(checkpoint / "manifest.json")
        if state_file.stat().st_size != manifest["bytes"] or sha256_of(state_file) != manifest["sha256"]:
            raise DataError(f"checkpoint {checkpoint} is damaged: its content does not match its manifest")
        return torch.load(state_file, map_location="cpu", weights_only=True)
    except DataError as error:
        raise DataError(f"{error}.{_hint_at_older(folder, checkpoint)}") from error
    except Exception as cause:
        raise DataError(f"checkpoint {checkpoint} is damaged: {cause}.{_hint_at_older(folder, checkpoint)}") from cause


def last_step(folder: Path) -> int:
    """Return the number of steps done at the checkpoint that `folder/last` names; 0 if there is none, or it is damaged."""
    name = _last_name(folder)
    if name is None:
        return 0
    try:
        return int(read_json(folder / name / "manifest.json")["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # `load_last` raises, and says what to do


def _write_state(folder: Path, step: int, state: dict[str, Any]) -> None:
    state_file = folder / "state.pt"
    with state_file.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    manifest = {"step": step, "bytes": state_file.stat().st_size, "sha256": sha256_of(state_file)}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _last_name(folder: Path) -> str | None:
    pointer = folder / "last"
    if not pointer.is_file():
        return None
    name = read_text(pointer, MAX_NAME_BYTES, errors="replace").strip()
    if not name or Path(name).name != name:
        raise DataError(f"{pointer} is damaged: it must hold the name of a folder next to it, such as step_00000042")
    return name


def _unused_path(folder: Path, name: str) -> Path:
    """Return `folder/name`, or `folder/name.1`, ... if that step was saved before; a checkpoint is never overwritten."""
    path = folder / name
    number = 0
    while path.exists():
        number += 1
        path = folder / f"{name}.{number}"
    return path


def _hint_at_older(folder: Path, damaged: Path) -> str:
    others = [path.name for path in sorted(folder.glob("step_*")) if path != damaged]
    if not others:
        return ""
    return f" To go on from {others[-1]}, write that name into {folder / 'last'}"
