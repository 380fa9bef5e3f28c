"""Contrastive losses against their peers: time of forward and backward, and memory beyond the embeddings.

pip install lightly pytorch-metric-learning && python benchmarks/losses.py          about ten minutes on two cores
python benchmarks/losses.py --sizes 512 4096 --classes 100                          some of it

Who takes part is run in one process, round after round in changing order, so that a busy moment hits all alike; compare
minima.
Memory is the growth of the peak resident set of a process of its own, after a small batch has loaded everything.
Before anything is timed, values and gradients are compared. Peers that are not installed are left out.
"""

import argparse
import ctypes
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from reptk.core.environment import git_commit
from reptk.losses import implementation, simclr, supcon, tcl
from reptk.plugins.dcl import DCL

DIMENSION, TEMPERATURE = 128, 0.1
SIZES = (256, 512, 1024, 2048, 4096, 8192, 65536)
CLASSES = (10, 100, 1000)
CLASS_SIZE = 4096
MEMORY_SIZES = (4096, 8192, 65536)
LARGEST_DENSE = 8192
SECONDS_A_ROW = 40.0

Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of two views each")
    parser.add_argument("--classes", type=int, nargs="*", default=CLASSES, help="at 4,096 rows")
    parser.add_argument("--memory", type=int, nargs="*", default=MEMORY_SIZES, help="rows for which memory is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "N"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    if chosen.peak:
        print(_own_peak(chosen.peak[0], int(chosen.peak[1])))
        return
    where = torch.cuda.get_device_name() if chosen.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {where}, {chosen.dtype}, D = {DIMENSION}, commit {git_commit()}, {_versions()}")
    for size in chosen.sizes:
        pairs = torch.arange(size // 2, device=chosen.device).repeat(2)
        print(f"\n{size:,} rows, pairs: forward and backward")
        _table(_pair_losses(size), _embeddings(size, chosen.device, dtype), pairs, "reptk simclr")
    for classes in chosen.classes:
        ids = torch.randint(classes, (CLASS_SIZE,), generator=torch.Generator().manual_seed(1)).to(chosen.device)
        print(f"\n{CLASS_SIZE:,} rows, {classes} classes: forward and backward")
        _table(_class_losses(), _embeddings(CLASS_SIZE, chosen.device, dtype), ids, "reptk supcon out")
    if chosen.device == "cpu":
        for size in chosen.memory:
            print(f"\n{size:,} rows, pairs: memory beyond the embeddings")
            _memory_table(size)


# Who takes part


def _pair_losses(size: int) -> dict[str, Loss]:
    made: dict[str, Loss] = {"reptk simclr": lambda z, ids: simclr(z, ids, temperature=TEMPERATURE)}
    if size > LARGEST_DENSE:
        return made
    if size <= 4096:
        made["reptk simclr, one matrix"] = _dense(made["reptk simclr"])
    return made | {"three bare GEMMs": _gemms, "dense cross-entropy": _cross_entropy} | _lightly() | _metric_learning()


def _class_losses() -> dict[str, Loss]:
    return {
        "reptk supcon out": lambda z, ids: supcon(z, ids, temperature=TEMPERATURE),
        "reptk supcon in": lambda z, ids: supcon(z, ids, temperature=TEMPERATURE, form="in"),
        "reptk tcl k1=5000 k2=1": lambda z, ids: tcl(z, ids, temperature=TEMPERATURE, k1=5000.0, k2=1.0),
        "reptk tcl k1=5000 k2=2": lambda z, ids: tcl(z, ids, temperature=TEMPERATURE, k1=5000.0, k2=2.0),
        "reptk dcl": DCL(TEMPERATURE),
        "dense supcon": _dense_supcon,
        **_metric_learning(),
    }


def _dense(loss: Loss) -> Loss:
    def computed(z: Tensor, ids: Tensor) -> Tensor:
        with implementation("dense"):
            return loss(z, ids)

    return computed


def _gemms(z: Tensor, ids: Tensor) -> Tensor:
    """The products that a dense loss and its gradient cannot do without: Z Z', and two of N x N with Z."""
    unit = z.detach()
    similarity = unit @ unit.T
    return (similarity @ unit + similarity.T @ unit).sum()


def _cross_entropy(z: Tensor, ids: Tensor) -> Tensor:
    """SimCLR as most people write it: logits without the diagonal, the other view as the label."""
    unit = functional.normalize(z.float(), dim=1)
    logits = (unit @ unit.T) / TEMPERATURE
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -1e9)
    return functional.cross_entropy(logits, (torch.arange(len(z), device=z.device) + len(z) // 2) % len(z))


def _dense_supcon(z: Tensor, ids: Tensor) -> Tensor:
    """SupCon with one mask, log-softmax and a mean over positives."""
    unit = functional.normalize(z.float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (ids[:, None] == ids[None, :]) & ~itself
    log_share = ((unit @ unit.T) / TEMPERATURE).masked_fill(itself, -1e9).log_softmax(1)
    count = positives.sum(1)
    per_anchor = -(log_share * positives).sum(1) / count.clamp_min(1)
    return per_anchor[count > 0].mean()


def _lightly() -> dict[str, Loss]:
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        return {}
    loss = NTXentLoss(TEMPERATURE)
    return {"lightly NTXentLoss": lambda z, ids: loss(*z.float().chunk(2))}


def _metric_learning() -> dict[str, Loss]:
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ImportError:
        return {}
    loss = SupConLoss(TEMPERATURE)
    return {"pytorch-metric-learning SupConLoss": lambda z, ids: loss(z.float(), ids)}


# Measuring


def _table(losses: dict[str, Loss], z: Tensor, ids: Tensor, base: str) -> None:
    _compare(losses, z, ids)
    seconds = _seconds(losses, z, ids)
    for name, values in seconds.items():
        low, middle = 1e3 * min(values), 1e3 * statistics.median(values)
        ratio = min(values) / min(seconds[base])
        print(
            f"  {name:<36} min {low:10.2f} ms   median {middle:10.2f} ms   {ratio:6.2f}x   {len(values)} rounds",
            flush=True,
        )


def _compare(losses: dict[str, Loss], z: Tensor, ids: Tensor) -> None:
    """What claims to be the same loss must give the same value and gradient."""
    alike = [name for name in losses if not any(word in name for word in ("GEMM", " in", "tcl", "dcl"))]
    made = {}
    for name in alike:
        leaf = z.detach().clone().requires_grad_()
        value = losses[name](leaf, ids)
        made[name] = value.detach().float(), torch.autograd.grad(value, leaf)[0].float()
    first_value, first_gradient = made[alike[0]]
    loose = 20 if z.dtype == torch.bfloat16 else 1  # it holds three digits
    for name, (value, gradient) in made.items():
        torch.testing.assert_close(
            value, first_value, rtol=loose * 1e-4, atol=0, msg=f"{name}: {value} is not {first_value}"
        )
        largest = first_gradient.abs().max().item()
        torch.testing.assert_close(
            gradient, first_gradient, rtol=0, atol=loose * 1e-3 * largest, msg=f"{name}: another gradient"
        )


def _seconds(losses: dict[str, Loss], z: Tensor, ids: Tensor) -> dict[str, list[float]]:
    """Seconds of every loss in every round, the losses in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    began = time.perf_counter()
    rounds = 0
    while rounds < 4 or (time.perf_counter() - began < SECONDS_A_ROW and rounds < 200):
        # In an order of its own, since whoever comes after a big one finds the caches and the allocator as that left them.
        for name in random.Random(rounds).sample(list(losses), len(losses)):
            seconds[name].append(_once(losses[name], z, ids))
        rounds += 1
    return {name: values[1:] for name, values in seconds.items()}


def _once(loss: Loss, z: Tensor, ids: Tensor) -> float:
    z.grad = None
    _wait(z)
    since = time.perf_counter()
    value = loss(z, ids)
    if value.requires_grad:
        value.backward()
    _wait(z)
    return time.perf_counter() - since


def _wait(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize()


def _embeddings(size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(size, DIMENSION, generator=torch.Generator().manual_seed(0))
    return made.to(device, dtype).requires_grad_()


def _memory_table(size: int) -> None:
    names = [name for name in _pair_losses(size) if "GEMM" not in name]
    base = None
    for name in names:
        command = [sys.executable, __file__, "--peak", name, str(size)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"  {name:<36} failed: {run.stderr.strip().splitlines()[-1]}")
            continue
        peak = float(run.stdout)
        base = base or peak
        print(f"  {name:<36} {peak:8.0f} MB   {peak / base:6.1f}x", flush=True)


def _own_peak(name: str, size: int) -> float:
    """Growth of this process's peak resident set, in MB, over forward and backward on `size` rows."""
    loss = _pair_losses(size)[name]
    for few in (256, 1280):  # load what there is to load, for one matrix and for tiles
        small = _embeddings(few)
        loss(small, torch.arange(few // 2).repeat(2)).backward()
    z, ids = _embeddings(size), torch.arange(size // 2).repeat(2)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the small batches left behind must not be used again unseen
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    loss(z, ids).backward()
    return _resident("VmHWM") - before


def _resident(what: str) -> float:
    """MB, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def _versions() -> str:
    names = ("torch", "lightly", "pytorch-metric-learning")
    return f"python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
