"""What a run has left in its folder, as a user sees it, and how that differs from what an undisturbed run has left."""

import fcntl
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

TIMING_KEYS = {"seconds", "views_per_second", "waiting"}
"""Keys of metrics.jsonl that depend on the speed of the machine."""

KEPT_CHECKPOINTS = 2
CHECKPOINT_NAME = re.compile(r"step_[0-9]{8}(\.[0-9]+)?")


class Outcome(NamedTuple):
    """What is in a run's folder.

    hashes: SHA-256 of the content of the files of `model/`, and of evaluation.safetensors, by their names.
    metrics: rows of metrics.jsonl, without what depends on the speed.
    results: the metrics of results.json.
    files: names of all files and folders but those below `checkpoints/`.
    status: status.json.
    """

    hashes: dict[str, str]
    metrics: list[dict[str, Any]]
    results: dict[str, Any]
    files: set[str]
    status: dict[str, Any]


def read_outcome(run: Path) -> Outcome:
    """Read a run's folder; whatever is missing is empty."""
    hashes = {}
    for path in [*sorted((run / "model").glob("*")), run / "evaluation.safetensors"]:
        if path.is_file():
            hashes[str(path.relative_to(run))] = _sha256_of_content(path)
    files = set()
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if not name.startswith("checkpoints/"):
            files.add(name)
    return Outcome(
        hashes, metric_rows(run), _read_json(run / "results.json").get("metrics", {}), files, read_status(run)
    )


def _sha256_of_content(path: Path) -> str:
    """Return the hash of a file; of safetensors, that of its tensors, since the order of the header's keys is random."""
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    sha256 = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()


def metric_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl that can be read, without what depends on the speed."""
    rows = []
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = {"damaged": line}
        rows.append({key: value for key, value in row.items() if key not in TIMING_KEYS})
    return rows


def read_status(run: Path) -> dict[str, Any]:
    return _read_json(run / "status.json")


def differences(run: Path, reference: Outcome, *, max_checkpoints: int = KEPT_CHECKPOINTS) -> list[str]:
    """Return in what a finished run differs from the reference, a text each; none if it does not.

    Args:
        max_checkpoints: how many may be left.
    """
    outcome = read_outcome(run)
    problems = []
    if outcome.status.get("status") != "finished":
        problems.append(f"status.json says {outcome.status.get('status')}")
    elif outcome.status["step"] != reference.status["step"]:
        problems.append(f"status.json says step {outcome.status['step']}, not {reference.status['step']}")
    for name in sorted({*outcome.hashes, *reference.hashes}):
        if outcome.hashes.get(name) != reference.hashes.get(name):
            problems.append(f"{name} differs")
    problems += _different_rows(outcome.metrics, reference.metrics)
    if outcome.results != reference.results:
        problems.append("results.json has other metrics")
    left_over, missing = outcome.files - reference.files, reference.files - outcome.files
    if left_over:
        problems.append(f"left over: {', '.join(sorted(left_over))}")
    if missing:
        problems.append(f"missing: {', '.join(sorted(missing))}")
    problems += checkpoint_problems(run, max_checkpoints)
    if is_locked(run):
        problems.append("the folder is still locked")
    return problems


def _different_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> list[str]:
    if rows == expected:
        return []
    if len(rows) != len(expected):
        return [f"metrics.jsonl has {len(rows)} rows, not {len(expected)}"]
    number = [row == other for row, other in zip(rows, expected, strict=True)].index(False)
    return [f"row {number + 1} of metrics.jsonl is {rows[number]}, not {expected[number]}"]


def checkpoint_problems(run: Path, max_checkpoints: int = KEPT_CHECKPOINTS) -> list[str]:
    """Return what is wrong with a finished run's checkpoints."""
    problems = []
    checkpoints = []
    for path in sorted((run / "checkpoints").iterdir()):
        if path.name == "best.json":
            continue
        if not CHECKPOINT_NAME.fullmatch(path.name):
            problems.append(f"left over: checkpoints/{path.name}")
            continue
        checkpoints.append(path.name)
        if {file.name for file in path.iterdir()} != {"manifest.json", "state.pt"}:
            problems.append(f"checkpoints/{path.name} holds something else")
        elif not is_whole(path):
            problems.append(f"checkpoints/{path.name} is damaged")
    if not 1 <= len(checkpoints) <= max_checkpoints:
        problems.append(f"{len(checkpoints)} checkpoints are left: {', '.join(checkpoints)}")
    return problems


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's state has the length and the hash that its manifest says."""
    manifest = _read_json(checkpoint / "manifest.json")
    try:
        content = (checkpoint / "state.pt").read_bytes()
    except OSError:
        return False
    return len(content) == manifest.get("bytes") and hashlib.sha256(content).hexdigest() == manifest.get("sha256")


def saved_step(run: Path) -> int:
    """Return the step of the newest checkpoint that is whole, 0 if there is none."""
    steps = [0]
    for path in (run / "checkpoints").glob("step_*"):
        if is_whole(path):
            steps.append(int(path.name[5:13]))
    return max(steps)


def unreadable_files(run: Path) -> list[str]:
    """Return what could not be opened by someone who looks at the folder now: a file is the old one or the new one."""
    problems = []
    for path in run.rglob("*.json"):
        if not is_hidden(path, run) and not _is_json(path):
            problems.append(f"{path.relative_to(run)} cannot be read")
    for path in run.rglob("*.safetensors"):
        if is_hidden(path, run):
            continue
        try:
            load_file(path)
        except Exception as error:
            problems.append(f"{path.relative_to(run)} cannot be read: {type(error).__name__}")
    if (run / "model" / "model.safetensors").is_file() and not (run / "model" / "config.json").is_file():
        problems.append("model/ has weights without config.json")
    status = read_status(run)
    if status.get("step", 0) > saved_step(run):
        problems.append(
            f"status.json says that step {status['step']} is saved, and the checkpoint is {saved_step(run)}"
        )
    return problems


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file, or a folder that it is in, is hidden, as those are that are being written."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def is_locked(run: Path) -> bool:
    """Whether a process holds the lock of a run."""
    try:
        file = (run / ".lock").open("a+")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def largest_difference(run: Path, other: Path) -> float:
    """Return the largest difference between the weights of two runs, relative to the largest weight of each tensor."""
    largest = 0.0
    for path in (run / "model").glob("*.safetensors"):
        first, second = load_file(path), load_file(other / "model" / path.name)
        for name, values in first.items():
            scale = values.abs().max().item() or 1.0
            largest = max(largest, (values - second[name]).abs().max().item() / scale)
    return largest


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
