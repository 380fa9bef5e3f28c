"""Rows about what changes between a run that was stopped and the one that goes on: workers, ranks, the data."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import tomli_w

from disturbances.bench import Bench, Case, Row, is_saved, stop_after, wait_until
from disturbances.commands import Process, wait_as_launcher
from disturbances.outcome import largest_difference, metric_rows, read_status
from disturbances.recipes import write_image, write_images
from reptk.config import read

TOLERANCE = 1e-4
"""Of weights, relative to the largest one of each tensor: ranks sum gradients in another order."""


def workers(bench: Bench) -> Row:
    """Go on with another number of worker threads."""
    row = Row("another number of workers")
    reference = bench.reference("byol_batchnorm")
    for before, after in ((0, 2), (2, 0)):
        row.cases += 1
        case = bench.case("byol_batchnorm")
        stop_after(bench, case, 6, signal.SIGTERM, f"train.workers={before}")
        process = bench.start(case.command(f"train.workers={after}"))
        process.wait()
        _record(bench, row, case, bench.end_problems(case, process, reference, 6), f"{before} to {after}")
    return row


def ranks(bench: Bench, count: int) -> Row:
    """Go on with another number of ranks: equal within rounding without BatchNorm, refused with it."""
    row = Row(f"another number of ranks: 1 to {count}, {count} to 1")
    for before, after in ((1, count), (count, 1)):
        row.cases += 2
        case = bench.case("contrastive_vit")
        reference = bench.reference("contrastive_vit")
        _stop(bench, case, before)
        codes, process = _run(bench, case, after)
        problems = []
        if codes != [0] * after:
            problems.append(f"exit codes {codes}: {process.last_line()}")
        else:
            difference = largest_difference(case.run, reference.run)
            row.notes.append(f"{before} to {after}: {difference:.1e}")
            if difference > TOLERANCE:
                problems.append(f"weights differ by {difference:.1e} of the largest")
            if [line["step"] for line in metric_rows(case.run)] != [line["step"] for line in reference.outcome.metrics]:
                problems.append("metrics.jsonl has other steps")
        if f"{after} from here" not in process.text():
            problems.append("no line says that the number of ranks has changed")
        _record(bench, row, case, problems, f"without BatchNorm, {before} to {after}")

        case = bench.case("contrastive_batchnorm")
        _stop(bench, case, before)
        codes, process = _run(bench, case, after)
        problems = []
        if codes != [2] * after or "--allow ranks" not in process.text():
            problems.append(f"it is not refused: exit codes {codes}: {process.last_line()}")
        codes, process = _run(bench, case, after, "--allow", "ranks")
        if codes != [0] * after or read_status(case.run).get("status") != "finished":
            problems.append(f"--allow ranks does not go on: exit codes {codes}: {process.last_line()}")
        _record(bench, row, case, problems, f"with BatchNorm, {before} to {after}")
    return row


def _stop(bench: Bench, case: Case, count: int) -> None:
    if count == 1:
        stop_after(bench, case, 6, signal.SIGTERM)
        return
    processes = bench.start_ranks(case.command(), count)
    wait_until(lambda: is_saved(case, 6) or processes[0].has_ended(), 120.0, 0.002)
    for process in processes:
        process.send(signal.SIGTERM)
    wait_as_launcher(processes)


def _run(bench: Bench, case: Case, count: int, *arguments: str) -> tuple[list[int], Process]:
    """Run a case to its end; returns the exit codes and rank 0."""
    if count == 1:
        process = bench.start(case.command(*arguments))
        return [process.wait()], process
    processes = bench.start_ranks(case.command(*arguments), count)
    codes = wait_as_launcher(processes, sends_signal=False)
    return codes, processes[0]


def _add(images: Path) -> str:
    write_image(images / "class0" / "new.png", 99)
    return "1 file added: class0/new.png"


def _remove(images: Path) -> str:
    (images / "class1" / "03.png").unlink()
    return "1 file removed: class1/03.png"


def _replace(images: Path) -> str:
    path = images / "class0" / "05.png"
    before = path.stat()
    write_image(path, 77)
    # A copy with the time of the old file, e.g. by rsync; the size tells.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if path.stat().st_size == before.st_size:
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return "1 file changed: class0/05.png"


def _touch(images: Path) -> str:
    (images / "class0" / "07.png").touch()
    return "1 file changed: class0/07.png"


def _rename(images: Path) -> str:
    (images / "class1").rename(images / "class2")
    return "12 files added: class2/"


CHANGES: dict[str, Callable[[Path], str]] = {
    "added": _add,
    "removed": _remove,
    "replaced": _replace,
    "touched": _touch,
    "class renamed": _rename,
}
"""Each changes a folder of images, and returns what the message has to say."""


def data(bench: Bench) -> Row:
    """Change the images while a run is stopped: it is refused, and --allow data goes on."""
    row = Row("the data changes")
    stopped = bench.case("contrastive_batchnorm", "train.batch_size=8")
    _use_images(stopped)
    write_images(stopped.folder / "images")
    stop_after(bench, stopped, 3, signal.SIGTERM)
    for what, change in CHANGES.items():
        row.cases += 1
        case = bench.copy(stopped)
        shutil.rmtree(case.folder / "images")
        # Copies with their times, which a run compares.
        shutil.copytree(stopped.folder / "images", case.folder / "images")
        message = change(case.folder / "images")
        process = bench.start(case.command())
        code = process.wait()
        problems = []
        if code != 3 or message not in process.text() or "--allow data" not in process.text():
            problems.append(f"it is not refused: exit code {code}: {process.text()[-500:]}")
        process = bench.start(case.command("--allow", "data"))
        code = process.wait()
        if code != 0 or read_status(case.run).get("status") != "finished":
            problems.append(f"--allow data does not go on: exit code {code}: {process.last_line()}")
        _record(bench, row, case, problems, what)
    row.cases += 1
    process = bench.start(stopped.command())
    row.check(process.wait() == 0, f"unchanged data is refused: {process.last_line()}")
    return row


def _use_images(case: Case) -> None:
    """Let the recipe of a case read the folder `images`."""
    path = case.folder / case.recipe
    table = read(path) | {"data": {"name": "folder", "root": "images", "size": 20}}
    path.write_text(tomli_w.dumps(table))


def _record(bench: Bench, row: Row, case: Case, problems: list[str], what: str) -> None:
    row.problems += [f"{case.folder.name}, {what}: {problem}" for problem in problems]
    if not problems:
        bench.forget(case)
