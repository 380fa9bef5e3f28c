"""Checkpoints of a run: folders that appear as a whole, with a checksum.

`checkpoints/step_00000042` holds `state.pt`, tensors and plain values only, and `manifest.json`. A checkpoint is intact if its
state has the length and the SHA-256 that its manifest says.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

import reptk
from reptk.core import distributed
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.files import atomic_folder, remove_folder, sha256_of, sweep_leftovers, write_text
from reptk.core.foreign_files import UnsuitableFile, read_json, require_regular_file

FORMAT = 1
"""Number of the layout of `state.pt`. A change that older files do not fit needs a higher one, and code that reads both."""

BEST_FILE = "best.json"
NAME = re.compile(r"step_[0-9]+(\.[0-9]+)?")


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    path: its folder.
    state: what was saved.
    manifest: `step`, `format`, `reptk`, `torch`, and what was passed to `save`.
    damaged: messages about newer checkpoints that could not be read.
    """

    path: Path
    state: dict[str, Any]
    manifest: dict[str, Any]
    damaged: list[str]


def save(
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int = 2,
    keep_initial: bool = False,
    details: dict[str, Any] | None = None,
) -> Path:
    """Write `folder/step_00000042`, then delete older checkpoints.

    Args:
        folder: the run's `checkpoints`.
        step: number of steps done.
        state: tensors and plain values only, so that reading it back executes no code.
        keep: how many of the last checkpoints remain, this one included; the best one (`mark_best`) remains, too.
        keep_initial: whether that of step 0 remains, too.
        details: further entries of the manifest.

    Returns:
        The folder of the new checkpoint.

    Raises:
        EnvironmentProblem: the disk is full.
        OSError: the checkpoint cannot be written for another reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder)
    target = _unused_path(folder, f"step_{step:08d}")
    with atomic_folder(target) as temporary:
        _write(temporary, state, {"step": step, **(details or {})})
    _delete_others(folder, target, keep, keep_initial=keep_initial)
    return target


def load_newest(folder: Path) -> Checkpoint | None:
    """Read the newest intact checkpoint; None if there is none at all.

    The newest is the one with the most steps, whatever the times of the files say.

    Raises:
        DataError: there are checkpoints, but none is intact; or the newest was written by a newer reptk.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        try:
            manifest = _read_manifest(path)
            state = _read_state(path, manifest)
        except _DamagedError as error:
            damaged.append(f"checkpoint {path} is damaged: {error}")
            continue
        return Checkpoint(path, state, manifest, damaged)
    if damaged:
        listed = "\n  ".join(damaged)
        raise DataError(f"no checkpoint in {folder} is intact. To train from step 0, delete that folder:\n  {listed}")
    return None


def load(checkpoint: Path, wait_seconds: float = 60.0) -> Checkpoint:
    """Read a checkpoint that another machine has just written or read.

    Args:
        checkpoint: its folder.
        wait_seconds: how long to wait for a file system that shows new files late.

    Raises:
        DataError: it is damaged or missing.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            manifest = _read_manifest(checkpoint)
            return Checkpoint(checkpoint, _read_state(checkpoint, manifest), manifest, [])
        except _DamagedError as error:
            if time.monotonic() >= deadline:
                raise DataError(f"checkpoint {checkpoint}, which rank 0 has read, cannot be read: {error}") from error
            time.sleep(1.0)


def load_step(folder: Path, step: int) -> Checkpoint | None:
    """Read the checkpoint of a step; None if there is none that is intact.

    Raises:
        EnvironmentProblem: it cannot be read now.
        DataError: it was written by a newer reptk.
    """
    for path in _newest_first(folder):
        if _step_of(path) != step:
            continue
        try:
            manifest = _read_manifest(path)
            return Checkpoint(path, _read_state(path, manifest), manifest, [])
        except _DamagedError:
            continue
    return None


def chosen_by_rank_0(read: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """Return the checkpoint that `read` returns on rank 0, on all ranks, which may see the folder at other times.

    Raises:
        DataError, EnvironmentProblem: it cannot be read, on any rank.
    """
    chosen: Checkpoint | None = None

    def choose() -> Checkpoint | None:
        nonlocal chosen
        chosen = read()
        if chosen is None:
            return None
        return chosen._replace(state={})

    without_state = distributed.run_on_main(choose)
    if without_state is None or distributed.is_main():
        return chosen
    return load(without_state.path)


def last_step(folder: Path) -> int:
    """Return the number of steps done at the newest checkpoint whose manifest can be read; 0 if there is none."""
    for path in _newest_first(folder):
        try:
            return int(_read_manifest(path)["step"])
        except _DamagedError:
            continue
    return 0


def mark_best(folder: Path, step: int) -> None:
    """Let the checkpoint of a step remain, in place of the one that was marked before.

    What makes it the best is in the state of the run (`reptk.training.early_stopping`).

    Args:
        folder: the run's `checkpoints`.
        step: number of steps done.
    """
    write_text(folder / BEST_FILE, json.dumps({"step": step}) + "\n")


class _DamagedError(Exception):
    """A checkpoint is not intact; the message says why."""


def _write(folder: Path, state: dict[str, Any], details: dict[str, Any]) -> None:
    with (folder / "state.pt").open("wb") as file:
        hashing = _HashingFile(file)
        torch.save(state, hashing)
    manifest = {
        "format": FORMAT,
        "reptk": reptk.__version__,
        "torch": torch.__version__,
        **details,
        "bytes": hashing.num_bytes,
        "sha256": hashing.sha256.hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


class _HashingFile:
    """Passes what is written on to a file, and computes its hash on the way, which saves reading it again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, content: bytes | memoryview) -> int:
        self.sha256.update(content)
        self.num_bytes += len(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    with _damage_or_problem(checkpoint, "manifest.json"):
        manifest = read_json(checkpoint / "manifest.json")
    if not isinstance(manifest, dict):
        raise _DamagedError("manifest.json is no table")
    for key in ("step", "bytes", "sha256"):
        if key not in manifest:
            raise _DamagedError(f"manifest.json lacks {key}")
    for key in ("step", "ranks"):
        if not isinstance(manifest.get(key, 0), int):
            raise _DamagedError(f"{key} in manifest.json is no number")
    version = manifest.get("format", 0)
    if not isinstance(version, int) or version > FORMAT:
        raise DataError(
            f"{checkpoint} was written by a newer reptk ({manifest.get('reptk')}, format {version}; this one reads up to "
            f"{FORMAT}); update reptk to resume it"
        )
    return manifest


def _read_state(checkpoint: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    state_file = checkpoint / "state.pt"
    with _damage_or_problem(checkpoint, "state.pt"):
        num_bytes = require_regular_file(state_file)
        if num_bytes != manifest["bytes"]:
            raise _DamagedError(f"state.pt has {num_bytes:,} bytes, its manifest says {manifest['bytes']}")
        if sha256_of(state_file) != manifest["sha256"]:
            raise _DamagedError("the content of state.pt does not match its manifest")
    try:
        state = torch.load(state_file, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as cause:
        # It is as it was written, so no older one is better. Without torch's message, which advises to permit code.
        raise DataError(
            f"{state_file} holds more than tensors and plain values ({type(cause).__name__}), so reptk has not written it"
        ) from cause
    if not isinstance(state, dict):
        raise _DamagedError("state.pt holds no table")
    return state


@contextmanager
def _damage_or_problem(checkpoint: Path, name: str) -> Iterator[None]:
    """Call what the block raises damage if it will not go away: a file that is missing, or that holds something else.

    Raises:
        _DamagedError: the file is damaged.
        EnvironmentProblem: it cannot be read now, e.g. since a network file system is away, and may be intact.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, UnsuitableFile, ValueError) as cause:
        reason = cause
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        raise _DamagedError(f"{name} cannot be read: {reason}") from cause
    except OSError as cause:
        raise EnvironmentProblem(f"cannot read {checkpoint / name}: {cause.strerror}. Try again") from cause


def _delete_others(folder: Path, newest: Path, keep: int, *, keep_initial: bool) -> None:
    """Delete all but the last `keep` checkpoints up to the newest, the best one and, if it is to remain, that of step 0.

    Those of later steps are of a run that was resumed from an earlier checkpoint since they were damaged.
    """
    paths = _newest_first(folder)
    position = paths.index(newest)
    remaining = {path.name for path in paths[position : position + keep]}
    remaining_steps = {_marked_step(folder)}
    if keep_initial:
        remaining_steps.add(0)
    for path in paths:
        if path.name not in remaining and _step_of(path) not in remaining_steps:
            # A failure leaves a folder too many, no more.
            with suppress(OSError):
                remove_folder(path)


def _newest_first(folder: Path) -> list[Path]:
    """Return the folders of checkpoints by their steps; of those of one step, the one that was written last comes first."""
    paths = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(paths, key=_step_and_number, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return _step_and_number(checkpoint)[0]


def _step_and_number(checkpoint: Path) -> tuple[int, int]:
    """Return the step and which of several checkpoints of this step it is, from 0."""
    step, _, number = checkpoint.name.removeprefix("step_").partition(".")
    return int(step), int(number or 0)


def _unused_path(folder: Path, name: str) -> Path:
    """Return `folder/name`, or `folder/name.1`, ... if that step was saved before; a checkpoint is never overwritten."""
    path = folder / name
    number = 0
    while path.exists():
        number += 1
        path = folder / f"{name}.{number}"
    return path


def _marked_step(folder: Path) -> int | None:
    """Return the step of the checkpoint that `mark_best` has marked; None if there is none."""
    try:
        return read_json(folder / BEST_FILE)["step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
