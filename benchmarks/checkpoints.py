"""What a checkpoint a minute costs: steps of a resnet18 recipe with and without, in alternating minutes of one process.

python benchmarks/checkpoints.py [--minutes 3] [--interval 60] [--threads 1]

The stall is the time for which the loop waits while the state is copied. The thread that writes takes its CPU time from the
steps if they use all cores, so (stall + CPU time) / interval is a bound that holds whatever else the machine does; the ratio
of the steps' means does not.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from measuring import versions_line
from reptk import load
from reptk.core import distributed
from reptk.core.environment import git_commit
from reptk.data import DevicePrefetcher
from reptk.methods import Batch
from reptk.training.build import build
from reptk.training.checkpoint_writer import CheckpointInterval, CheckpointWriter
from reptk.training.load_data import load_data
from reptk.training.loop import train_step
from reptk.training.parts import Parts
from reptk.training.state import RunState, checkpoint_content

RECIPE = "simclr_photos"
OVERRIDES = ("views.size=64", "encoder.backbone=resnet18", "train.batch_size=64", "train.device=cpu")
MAX_STEPS = 100_000


class Write(NamedTuple):
    """What the thread needed for one checkpoint: its CPU time and the time until the checkpoint was whole."""

    cpu_seconds: float
    seconds: float


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    recipe = load(RECIPE, [*OVERRIDES, *args.overrides])
    device = distributed.setup(recipe.train.device)
    parts = build(recipe, load_data(recipe), device)
    parts.method.train()
    with tempfile.TemporaryDirectory(prefix="reptk-checkpoints-") as folder:
        measure(parts, Path(folder), args)
    return 0


def measure(parts: Parts, folder: Path, args: argparse.Namespace) -> None:
    """Train for `args.minutes` with checkpoints and for as many without, and print the row."""
    writes: list[Write] = []
    writer = CheckpointWriter(
        folder, CheckpointInterval(), keep=2, details={"ranks": 1}, warn=print, written=lambda step: None
    )
    write = writer._write

    def timed_write(step: int, state: dict[str, Any]) -> None:
        start, cpu_start = time.perf_counter(), time.thread_time()
        write(step, state)
        writes.append(Write(time.thread_time() - cpu_start, time.perf_counter() - start))

    # All that the thread does: it checks the weights, too.
    writer._write = timed_write
    stalls: list[float] = []
    step_seconds: dict[bool, list[float]] = {False: [], True: []}
    batches = DevicePrefetcher(parts.loader.batches(0, MAX_STEPS), parts.device)
    number = 0
    try:
        # Not counted: the first steps fill caches and create the optimizer's state.
        for _ in range(2):
            _step(parts, batches, number)
            number += 1
        for _ in range(max(1, round(60 * args.minutes / args.interval))):
            for saves in (True, False):
                start = time.perf_counter()
                if saves:
                    state = checkpoint_content(parts, RunState(step=number))
                    writer.save(number, state)
                    stalls.append(time.perf_counter() - start)
                while time.perf_counter() - start < args.interval:
                    step_start = time.perf_counter()
                    _step(parts, batches, number)
                    step_seconds[saves].append(time.perf_counter() - step_start)
                    number += 1
                writer.wait()
    finally:
        writer.close()
    _print(parts, folder, args, stalls, writes, step_seconds)


def _step(parts: Parts, batches: DevicePrefetcher, number: int) -> None:
    train_step(parts, parts.method, Batch(*next(batches)), parts.step(number))


def _print(
    parts: Parts,
    folder: Path,
    args: argparse.Namespace,
    stalls: list[float],
    writes: list[Write],
    step_seconds: dict[bool, list[float]],
) -> None:
    newest = max(folder.glob("step_*"))
    size_mb = (newest / "state.pt").stat().st_size / 1e6
    stall = statistics.median(stalls)
    cpu = statistics.median(write.cpu_seconds for write in writes)
    wall = statistics.median(write.seconds for write in writes)
    with_saves, without = (statistics.median(step_seconds[saves]) for saves in (True, False))
    mean_with, mean_without = (statistics.fmean(step_seconds[saves]) for saves in (True, False))
    share = (mean_with - mean_without) / mean_without + stall / args.interval
    print(f"{parts.settings.name}, {args.threads} threads, commit {git_commit()}, {versions_line(['torch', 'timm'])}")
    print("| checkpoint | stall of the loop | thread: CPU, until whole | bound | step with, without | measured |")
    print("|---|---|---|---|---|---|")
    stalled = f"{1e3 * stall:.0f} ms (largest {1e3 * max(stalls):.0f})"
    print(
        f"| {size_mb:.0f} MB every {args.interval:.0f} s, {len(stalls)} | {stalled} "
        f"| {cpu:.2f} s, {wall:.2f} s | {100 * (stall + cpu) / args.interval:.2f} % "
        f"| {1e3 * with_saves:.0f}, {1e3 * without:.0f} ms | {100 * share:+.1f} % |"
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="with checkpoints, and as many without")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between two checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
