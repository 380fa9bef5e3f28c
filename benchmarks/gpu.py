"""Everything that needs a GPU, in one command of at most eight minutes: tests, losses, views, a training step, kNN.

python benchmarks/gpu.py [--out gpu_results] [--only tests losses views step knn] [--minutes 8]

Each section runs in a process of its own with its share of the time, so that one that hangs or fails does not stop the others.
What they print goes to OUT/SECTION.txt; their results are the rows of "On a GPU" in benchmarks/README.md, as Markdown, also in
OUT/results.md. Goals stand next to the results they are for. On a machine without a GPU, `--device cpu --tiny` runs the
same code at sizes that measure nothing, without the tests.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from reptk import VIEWS, rng
from reptk.core.environment import git_commit, package_versions
from reptk.evaluate import knn
from reptk.losses import simclr

TEMPERATURE = 0.1
DIMENSION = 128


class Sizes(NamedTuple):
    """What is measured: rows of the losses, images of the views, the step's recipe, the kNN problem."""

    float32_rows: tuple[int, ...] = (512, 4096, 8192, 16384, 65536)
    bfloat16_rows: tuple[int, ...] = (512, 4096, 8192, 16384, 65536, 1_048_576)
    largest_dense_rows: int = 16384
    rounds: int = 10
    images_224_px: int = 512
    images_32_px: int = 4096
    step: tuple[str, ...] = (
        "simclr_photos",
        "views.size=224",
        "encoder.backbone=resnet50",
        "train.batch_size=128",
        "train.precision=bf16",
        "train.channels_last=true",
        "train.compile=true",
    )
    step_rounds: int = 12
    bank_rows: int = 100_000
    queries: int = 1000
    features: int = 256
    classes: int = 1000


TINY = Sizes(
    float32_rows=(64,),
    bfloat16_rows=(64,),
    largest_dense_rows=64,
    rounds=2,
    images_224_px=2,
    images_32_px=4,
    step=("simclr_digits", "encoder.backbone=test_resnet", "train.batch_size=16", "train.device=cpu"),
    step_rounds=1,
    bank_rows=300,
    queries=20,
    features=16,
    classes=5,
)

GOALS = {
    ("bfloat16", 65536): "goal: 7 ms",
    ("bfloat16", 1_048_576): "goal: 1,800 ms",
    ("step",): "goal: 1.05",
}

SHARES = {"tests": 0.5, "losses": 0.2, "views": 0.1, "step": 0.12, "knn": 0.08}
"""Sections in the order they run, and their shares of the time."""


def main(argv: list[str] | None = None) -> int:
    """Run the sections; returns 1 if one of them failed or ran out of time."""
    args = _parse(argv)
    if args.section is not None:
        _run_section(args.section, args.device, TINY if args.tiny else Sizes())
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    header = f"{_device_name(args.device)}, {platform.machine()}, commit {git_commit()}, " + ", ".join(
        f"{name} {version}" for name, version in package_versions().items()
    )
    results = [header, ""]
    print(header, flush=True)
    failed = False
    for section in args.only:
        seconds = 60 * args.minutes * SHARES[section]
        exit_code = _run(_command(section, args), args.out / f"{section}.txt", seconds)
        rows = _result_rows(section, args.out / f"{section}.txt")
        if exit_code != 0:
            reason = "out of time" if exit_code is None else f"exit code {exit_code}"
            rows.append(f"*{section}*: {reason}; see {args.out / section}.txt")
            failed = True
        results += [*rows, ""]
        print("\n".join(rows), flush=True)
    (args.out / "results.md").write_text("\n".join(results) + "\n")
    return int(failed)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all sections together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that measure nothing")
    parser.add_argument("--section", choices=list(SHARES), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _command(section: str, args: argparse.Namespace) -> list[str]:
    if section == "tests":
        root = Path(__file__).parent.parent
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--rootdir", str(root), str(root / "tests")]
    command = [sys.executable, __file__, "--section", section, "--device", args.device]
    return [*command, "--tiny"] if args.tiny else command


def _run(command: list[str], output: Path, seconds: float) -> int | None:
    """Run a command into a file; returns its exit code, None if it was stopped after `seconds`."""
    with output.open("w") as file:
        try:
            return subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def _result_rows(section: str, output: Path) -> list[str]:
    """The Markdown rows in a section's output; of the tests the summary and what failed."""
    lines = output.read_text(errors="replace").splitlines()
    if section != "tests":
        return [line for line in lines if line.startswith(("|", "*"))]
    finished = [line for line in lines if " PASSED" in line or " FAILED" in line or " SKIPPED" in line]
    summary = [line.strip("= ") for line in lines if line.startswith("=") and " in " in line][-1:]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return [f"*Tests*: {summary[0] if summary else f'{len(finished)} finished'}", *failures]


def _run_section(section: str, device: str, sizes: Sizes) -> None:
    print(_device_name(device), flush=True)
    sections = {"losses": _losses, "views": _views, "step": _step, "knn": _knn}
    sections[section](torch.device(device), sizes)


# Losses


def _losses(device: torch.device, sizes: Sizes) -> None:
    """Forward and backward of SimCLR on pairs, against dense cross-entropy where its matrix fits."""
    print(
        "| rows | type | reptk simclr, ms min / median | dense cross-entropy, ms min / median | reptk, MB | dense, MB | |"
    )
    print("|---|---|---|---|---|---|---|")
    for dtype, all_rows in ((torch.float32, sizes.float32_rows), (torch.bfloat16, sizes.bfloat16_rows)):
        for rows in all_rows:
            print(_loss_row(device, dtype, rows, sizes), flush=True)


def _loss_row(device: torch.device, dtype: torch.dtype, rows: int, sizes: Sizes) -> str:
    z = torch.randn(rows, DIMENSION, generator=rng.generator("benchmark", rows)).to(device, dtype).requires_grad_()
    ids = torch.arange(rows // 2, device=device).repeat(2)
    functions = {"reptk": lambda: simclr(z, ids, temperature=TEMPERATURE)}
    if rows <= sizes.largest_dense_rows:
        functions["dense"] = lambda: _cross_entropy(z)
    times, memory = {}, {}
    for name, loss in functions.items():

        def forward_and_backward(loss: Callable[[], Tensor] = loss) -> None:
            z.grad = None
            loss().backward()

        memory[name] = _peak_mb(forward_and_backward, device)
        times[name] = _times(forward_and_backward, device, 3 if rows > 100_000 else sizes.rounds)
    type_name = str(dtype).removeprefix("torch.")
    dense_time = _milliseconds(times["dense"]) if "dense" in times else ""
    dense_memory = f"{memory['dense']:,.0f}" if "dense" in memory else ""
    goal = GOALS.get((type_name, rows), "")
    if "dense" in times and rows <= 8192:
        goal = "goal: at most dense"
    return (
        f"| {rows:,} | {type_name} | {_milliseconds(times['reptk'])} | {dense_time} "
        f"| {memory['reptk']:,.0f} | {dense_memory} | {goal} |"
    )


def _cross_entropy(z: Tensor) -> Tensor:
    """SimCLR as it is usually written: logits without the diagonal, the other view as the label."""
    unit = functional.normalize(z.float(), dim=1)
    logits = (unit @ unit.T) / TEMPERATURE
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -1e9)
    labels = (torch.arange(len(z), device=z.device) + len(z) // 2) % len(z)
    return functional.cross_entropy(logits, labels)


# Views


def _views(device: torch.device, sizes: Sizes) -> None:
    """SimCLR's views, eager and compiled."""
    print("| views | eager, views/s best / median | `torch.compile`, views/s best / median |")
    print("|---|---|---|")
    for name, source_px, size_px, count in (
        ("simclr", 256, 224, sizes.images_224_px),
        ("simclr_small", 32, 32, sizes.images_32_px),
    ):
        generator = rng.generator("benchmark", size_px)
        images = torch.randint(256, (count, 3, source_px, source_px), generator=generator, dtype=torch.uint8).to(device)
        rates = []
        for is_compiled in (False, True):
            views = VIEWS.get(name)(size=size_px, count=1)
            if is_compiled and device.type == "cuda":
                views.compile()
            numbers = iter(range(10_000))
            times = _times(
                lambda views=views, images=images, numbers=numbers: views(images, next(numbers)), device, sizes.rounds
            )
            rates.append(f"{count / min(times):,.0f} / {count / statistics.median(times):,.0f}")
        print(f"| {name}, {source_px} to {size_px} px, batches of {count:,} | {rates[0]} | {rates[1]} |", flush=True)


# A training step


def _step(device: torch.device, sizes: Sizes) -> None:
    """A whole step over its bare backbone, as benchmarks/step.py measures it."""
    sys.path.insert(0, str(Path(__file__).parent))
    import step

    step.ROUNDS = sizes.step_rounds
    ratio = step.compare(list(sizes.step))
    print(f"*Step over bare backbone*: {ratio:.3f} ({' '.join(sizes.step)}; {GOALS[('step',)]})")


# kNN


def _knn(device: torch.device, sizes: Sizes) -> None:
    """kNN accuracy with rows on the GPU and in memory, against the bare product and top-k."""
    generator = rng.generator("benchmark knn")
    bank = functional.normalize(torch.randn(sizes.bank_rows, sizes.features, generator=generator), dim=1)
    queries = functional.normalize(torch.randn(sizes.queries, sizes.features, generator=generator), dim=1)
    bank_labels = torch.randint(sizes.classes, (sizes.bank_rows,), generator=generator)
    query_labels = torch.randint(sizes.classes, (sizes.queries,), generator=generator)
    ks = [k for k in (1, 10, 20, 100, 200) if k <= sizes.bank_rows]
    bank_on_device, queries_on_device = bank.to(device), queries.to(device)
    functions = {
        "reptk, rows on the GPU": lambda: knn(bank_on_device, bank_labels, queries_on_device, query_labels, k=ks),
        "reptk, rows in memory": lambda: knn(bank, bank_labels, queries, query_labels, k=ks),
        "torch, product and topk alone": lambda: (queries_on_device @ bank_on_device.T).topk(ks[-1]),
    }
    print(
        f"| kNN, {sizes.bank_rows:,} x {sizes.features}, {sizes.queries:,} queries, k up to {ks[-1]} | ms min / median |"
    )
    print("|---|---|")
    for name, function in functions.items():
        print(f"| {name} | {_milliseconds(_times(function, device, sizes.rounds))} |", flush=True)
    same = knn(bank, bank_labels, queries, query_labels, k=ks) == functions["reptk, rows on the GPU"]()
    print(f"*kNN*: the GPU's numbers {'equal' if same else 'DIFFER from'} the CPU's")


# Measuring


def _times(function: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Seconds of each round, after two that are not counted."""
    seconds = []
    for number in range(rounds + 2):
        _synchronize(device)
        started = time.perf_counter()
        function()
        _synchronize(device)
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    return seconds


def _peak_mb(function: Callable[[], object], device: torch.device) -> float:
    """Growth of the peak of GPU memory during a call, in MB; 0 elsewhere."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _milliseconds(seconds: list[float]) -> str:
    return f"{1e3 * min(seconds):,.1f} / {1e3 * statistics.median(seconds):,.1f}"


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
