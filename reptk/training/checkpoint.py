"""Checkpoints that are whole or absent: written beside their place, checksummed, then moved into it."""

import json
import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import torch

from reptk.core.errors import DataError
from reptk.core.files import sha256_of, write_text


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `folder/step_00000042` (state and manifest) and point `folder/last` at it; of the older ones the last remains.

    Args:
        folder: the run's `checkpoints`.
        step: steps done.
        state: tensors and plain values only, so that it can be read back without running code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(".step_*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    before = (folder / "last").read_text().strip() if (folder / "last").is_file() else None
    place = _free_name(folder, f"step_{step:08d}")
    unfinished = folder / f".{place.name}"
    unfinished.mkdir()
    try:
        with (unfinished / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "step": step,
            "bytes": (unfinished / "state.pt").stat().st_size,
            "sha256": sha256_of(unfinished / "state.pt"),
        }
        write_text(unfinished / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    write_text(folder / "last", place.name + "\n")
    for old in folder.glob("step_*"):
        if old.name not in (place.name, before):
            shutil.rmtree(old, ignore_errors=True)
    return place


def load_last(folder: Path) -> dict[str, Any] | None:
    """The state that `folder/last` points at, verified; None if there is no checkpoint yet.

    Raises:
        DataError: the checkpoint is damaged or incomplete.
    """
    if not (folder / "last").is_file():
        return None
    place = folder / (folder / "last").read_text().strip()
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        path = place / "state.pt"
        if path.stat().st_size != manifest["bytes"] or sha256_of(path) != manifest["sha256"]:
            raise DataError(f"checkpoint {place} is damaged: its content does not match its manifest")
        return torch.load(path, map_location="cpu", weights_only=True)
    except DataError as error:
        raise DataError(f"{error}.{_others(folder, place)}") from error
    except Exception as cause:
        raise DataError(f"checkpoint {place} is damaged: {cause}.{_others(folder, place)}") from cause


def _free_name(folder: Path, name: str) -> Path:
    """`folder/name`, or with a number behind it if that step was saved before: nothing whole is ever written over."""
    names = (name if number == 0 else f"{name}.{number}" for number in count())
    return next(folder / free for free in names if not (folder / free).exists())


def _others(folder: Path, damaged: Path) -> str:
    others = [place.name for place in sorted(folder.glob("step_*")) if place != damaged]
    return f" To go on from {others[-1]}, write that name into {folder / 'last'}" if others else ""
