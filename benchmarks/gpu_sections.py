"""The measurements of benchmarks/gpu.py, one section a process; it prints Markdown rows.

python benchmarks/gpu_sections.py losses|views|step|knn|device [--device cuda] [--tiny]
"""

import argparse
import platform
import statistics
import sys
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import step
from measuring import Call, seconds_of_rounds, synchronize
from reptk import VIEWS, rng
from reptk.core.environment import git_commit, package_versions
from reptk.evaluate import knn
from reptk.losses import simclr

TEMPERATURE = 0.1
DIMENSION = 128

UNCOUNTED_ROUNDS = 3
"""`torch.compile` compiles once for the first key of the views and once for keys of any value."""


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

GOALS_MS = {("bfloat16", 65536): 7, ("bfloat16", 1_048_576): 1800}
GOAL_STEP_RATIO = 1.05


def main(argv: list[str] | None = None) -> int:
    """Run one section; returns 1 if a row of it could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that measure nothing")
    args = parser.parse_args(argv)
    sizes = TINY if args.tiny else Sizes()
    succeeded = SECTIONS[args.section](torch.device(args.device), sizes)
    return 0 if succeeded else 1


def print_device(device: torch.device, sizes: Sizes) -> bool:
    """Use the device once and print what it is, in one line."""
    torch.ones(1, device=device).sum().item()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    print(f"{name}, {platform.machine()}, commit {git_commit()}, {versions}")
    return True


def print_row(label: str, row: Callable[[], str]) -> bool:
    """Print a row; one that cannot be measured says why, and the next ones are still measured.

    Returns:
        Whether it was measured.
    """
    try:
        print(row(), flush=True)
    except Exception as error:  # out of memory, or a compiler that fails on this GPU
        traceback.print_exc()
        message = str(error).strip().partition("\n")[0]
        print(f"*{label}*: {type(error).__name__}: {message}", flush=True)
        return False
    return True


# Losses


def measure_losses(device: torch.device, sizes: Sizes) -> bool:
    """Forward and backward of SimCLR on pairs, against dense cross-entropy where its matrix fits."""
    print(
        "| rows | type | reptk simclr, ms min / median | dense cross-entropy, ms min / median | reptk, MB | dense, MB | |"
    )
    print("|---|---|---|---|---|---|---|")
    succeeded = True
    for dtype, all_rows in ((torch.float32, sizes.float32_rows), (torch.bfloat16, sizes.bfloat16_rows)):
        for rows in all_rows:
            row = partial(_loss_row, device, dtype, rows, sizes)
            succeeded &= print_row(f"{rows:,} rows of {dtype}", row)
    return succeeded


def _loss_row(device: torch.device, dtype: torch.dtype, rows: int, sizes: Sizes) -> str:
    z = torch.randn(rows, DIMENSION, generator=rng.generator("benchmark", rows)).to(device, dtype).requires_grad_()
    ids = torch.arange(rows // 2, device=device).repeat(2)
    calls: dict[str, Call] = {"reptk": partial(_simclr_gradient, z, ids)}
    if rows <= sizes.largest_dense_rows:
        calls["dense"] = partial(_cross_entropy_gradient, z)
    rounds = 3 if rows > 100_000 else sizes.rounds
    seconds = seconds_of_rounds(calls, range(rounds + UNCOUNTED_ROUNDS), UNCOUNTED_ROUNDS)
    type_name = str(dtype).removeprefix("torch.")
    cells = [f"{rows:,}", type_name, _milliseconds(seconds["reptk"])]
    cells.append(_milliseconds(seconds["dense"]) if "dense" in calls else "")
    cells.append(f"{_peak_mb(calls['reptk'], device):,.0f}")
    cells.append(f"{_peak_mb(calls['dense'], device):,.0f}" if "dense" in calls else "")
    cells.append(_loss_goal(type_name, rows))
    return f"| {' | '.join(cells)} |"


def _loss_goal(type_name: str, rows: int) -> str:
    if (type_name, rows) in GOALS_MS:
        return f"goal: {GOALS_MS[type_name, rows]:,} ms"
    if rows <= 8192:
        return "goal: at most dense"
    return ""


def _simclr_gradient(z: Tensor, ids: Tensor) -> None:
    # Not `backward`, whose gradient would stay in memory between the rounds.
    torch.autograd.grad(simclr(z, ids, temperature=TEMPERATURE), z)


def _cross_entropy_gradient(z: Tensor) -> None:
    """SimCLR as it is usually written: logits without the diagonal, the other view as the label."""
    unit = functional.normalize(z.float(), dim=1)
    logits = (unit @ unit.T) / TEMPERATURE
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -1e9)
    labels = (torch.arange(len(z), device=z.device) + len(z) // 2) % len(z)
    torch.autograd.grad(functional.cross_entropy(logits, labels), z)


def _peak_mb(call: Call, device: torch.device) -> float:
    """Return the growth of the peak of GPU memory during a call that ran before, in MB; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


# Views


def measure_views(device: torch.device, sizes: Sizes) -> bool:
    """SimCLR's views, eager and, on a GPU, compiled."""
    print("| views | eager, views/s best / median | `torch.compile`, views/s best / median |")
    print("|---|---|---|")
    large = partial(_views_row, device, "simclr", 256, 224, sizes.images_224_px, sizes.rounds)
    small = partial(_views_row, device, "simclr_small", 32, 32, sizes.images_32_px, sizes.rounds)
    succeeded = print_row("views of 224 px", large)
    return print_row("views of 32 px", small) and succeeded


def _views_row(device: torch.device, name: str, source_px: int, size_px: int, num_images: int, rounds: int) -> str:
    generator = rng.generator("benchmark", size_px)
    images = torch.randint(256, (num_images, 3, source_px, source_px), generator=generator, dtype=torch.uint8)
    images = images.to(device)
    keys = count(10)
    eager = VIEWS.get(name)(size=size_px, count=1)
    calls: dict[str, Call] = {"eager": lambda: eager(images, next(keys))}
    if device.type == "cuda":
        compiled = VIEWS.get(name)(size=size_px, count=1)
        compiled.compile()
        calls["compiled"] = lambda: compiled(images, next(keys))
    seconds = seconds_of_rounds(calls, range(rounds + UNCOUNTED_ROUNDS), UNCOUNTED_ROUNDS)
    rates = {"compiled": ""}
    for call_name, values in seconds.items():
        rates[call_name] = f"{num_images / min(values):,.0f} / {num_images / statistics.median(values):,.0f}"
    batches = f"{name}, {source_px} to {size_px} px, batches of {num_images:,}"
    return f"| {batches} | {rates['eager']} | {rates['compiled']} |"


# A training step


def measure_step(device: torch.device, sizes: Sizes) -> bool:
    """A whole step over its bare backbone, as benchmarks/step.py measures it."""
    step.ROUNDS = sizes.step_rounds
    step.UNCOUNTED_ROUNDS = UNCOUNTED_ROUNDS
    return print_row("step over bare backbone", partial(_step_row, sizes.step))


def _step_row(arguments: tuple[str, ...]) -> str:
    ratio = step.compare(list(arguments))
    return f"*Step over bare backbone*: {ratio:.3f} ({' '.join(arguments)}; goal: {GOAL_STEP_RATIO})"


# kNN


def measure_knn(device: torch.device, sizes: Sizes) -> bool:
    """kNN accuracy with rows on the GPU and in memory, against the bare product and top-k."""
    generator = rng.generator("benchmark knn")
    bank = functional.normalize(torch.randn(sizes.bank_rows, sizes.features, generator=generator), dim=1)
    queries = functional.normalize(torch.randn(sizes.queries, sizes.features, generator=generator), dim=1)
    bank_labels = torch.randint(sizes.classes, (sizes.bank_rows,), generator=generator)
    query_labels = torch.randint(sizes.classes, (sizes.queries,), generator=generator)
    ks = [k for k in (1, 10, 20, 100, 200) if k <= sizes.bank_rows]
    bank_on_device = bank.to(device)
    queries_on_device = queries.to(device)
    on_device = partial(knn, bank_on_device, bank_labels, queries_on_device, query_labels, k=ks)
    in_memory = partial(knn, bank, bank_labels, queries, query_labels, k=ks)
    calls: dict[str, Call] = {
        "reptk, rows on the GPU": on_device,
        "reptk, rows in memory": in_memory,
        "torch, product and topk alone": lambda: (queries_on_device @ bank_on_device.T).topk(ks[-1]),
    }
    rounds = range(sizes.rounds + UNCOUNTED_ROUNDS)
    print(
        f"| kNN, {sizes.bank_rows:,} x {sizes.features}, {sizes.queries:,} queries, k up to {ks[-1]} | ms min / median |"
    )
    print("|---|---|")
    succeeded = True
    for name, call in calls.items():
        # One after the other, so that each is measured even if another fails.
        row = partial(_knn_row, name, call, rounds)
        succeeded &= print_row(name, row)
    is_equal = on_device() == in_memory()
    print(f"*kNN*: the GPU's numbers {'equal' if is_equal else 'DIFFER from'} the CPU's")
    return succeeded and is_equal


def _knn_row(name: str, call: Call, rounds: range) -> str:
    seconds = seconds_of_rounds({name: call}, rounds, UNCOUNTED_ROUNDS)
    return f"| {name} | {_milliseconds(seconds[name])} |"


def _milliseconds(seconds: list[float]) -> str:
    return f"{1e3 * min(seconds):,.1f} / {1e3 * statistics.median(seconds):,.1f}"


SECTIONS = {
    "device": print_device,
    "losses": measure_losses,
    "views": measure_views,
    "step": measure_step,
    "knn": measure_knn,
}

if __name__ == "__main__":
    sys.exit(main())
