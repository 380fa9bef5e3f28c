"""Contrastive losses against other libraries: time of forward and backward, and memory beyond the embeddings.

pip install lightly pytorch-metric-learning && python benchmarks/losses.py          about ten minutes on two cores
python benchmarks/losses.py --sizes 512 4096 --classes 100                          a part of it

All losses run in one process, round after round in changing order, so that a busy moment affects all of them; compare
minima. Memory is the growth of the peak resident set of a separate process, after a small batch has loaded everything.
Before anything is timed, values and gradients are compared. Libraries that are not installed are left out.
"""

import argparse
import platform
import statistics
import subprocess
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from measuring import memory_growth, rounds_within, seconds_of_rounds, versions_line
from processes import run_script
from reptk.core.environment import git_commit
from reptk.losses import implementation, simclr, supcon, tcl
from reptk.plugins.dcl import DCL

DIMENSION, TEMPERATURE = 128, 0.1
SIZES = (256, 512, 1024, 2048, 4096, 8192, 65536)
CLASSES = (10, 100, 1000)
CLASS_SIZE = 4096
MEMORY_SIZES = (4096, 8192, 65536)
LARGEST_DENSE = 8192
SECONDS_PER_TABLE = 40.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = ("torch", "lightly", "pytorch-metric-learning")

Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of two views each")
    parser.add_argument("--classes", type=int, nargs="*", default=CLASSES, help="at 4,096 rows")
    parser.add_argument("--memory", type=int, nargs="*", default=MEMORY_SIZES, help="rows for which memory is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        name, size = args.peak
        print(_peak_memory_mb(name, int(size)))
        return
    device, dtype = args.device, DTYPES[args.dtype]
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    versions = versions_line(PACKAGES)
    print(f"{platform.machine()}, {hardware}, {args.dtype}, D = {DIMENSION}, commit {git_commit()}, {versions}")
    for size in args.sizes:
        pair_ids = torch.arange(size // 2, device=device).repeat(2)
        print(f"\n{size:,} rows, pairs: forward and backward")
        _print_times(_pair_losses(size), _embeddings(size, device, dtype), pair_ids, "reptk simclr")
    for classes in args.classes:
        class_ids = torch.randint(classes, (CLASS_SIZE,), generator=torch.Generator().manual_seed(1)).to(device)
        print(f"\n{CLASS_SIZE:,} rows, {classes} classes: forward and backward")
        _print_times(_class_losses(), _embeddings(CLASS_SIZE, device, dtype), class_ids, "reptk supcon out")
    if device == "cpu":
        for size in args.memory:
            print(f"\n{size:,} rows, pairs: memory beyond the embeddings")
            _print_memory(size)


# The losses


def _pair_losses(size: int) -> dict[str, Loss]:
    losses: dict[str, Loss] = {"reptk simclr": partial(simclr, temperature=TEMPERATURE)}
    if size > LARGEST_DENSE:
        return losses
    if size <= 4096:
        losses["reptk simclr, one matrix"] = _dense(losses["reptk simclr"])
    losses["three bare GEMMs"] = _gemms
    losses["dense cross-entropy"] = _cross_entropy
    return losses | _lightly() | _metric_learning()


def _class_losses() -> dict[str, Loss]:
    return {
        "reptk supcon out": partial(supcon, temperature=TEMPERATURE),
        "reptk supcon in": partial(supcon, temperature=TEMPERATURE, form="in"),
        "reptk tcl k1=5000 k2=1": partial(tcl, temperature=TEMPERATURE, k1=5000.0, k2=1.0),
        "reptk tcl k1=5000 k2=2": partial(tcl, temperature=TEMPERATURE, k1=5000.0, k2=2.0),
        "reptk dcl": DCL(TEMPERATURE),
        "dense supcon": _dense_supcon,
        **_metric_learning(),
    }


def _dense(loss: Loss) -> Loss:
    def dense_loss(z: Tensor, ids: Tensor) -> Tensor:
        with implementation("dense"):
            return loss(z, ids)

    return dense_loss


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
    diagonal = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (ids[:, None] == ids[None, :]) & ~diagonal
    log_share = ((unit @ unit.T) / TEMPERATURE).masked_fill(diagonal, -1e9).log_softmax(1)
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


def _print_times(losses: dict[str, Loss], z: Tensor, ids: Tensor, base: str) -> None:
    _check_that_losses_agree(losses, z, ids)
    calls = {name: partial(_forward_and_backward, loss, z, ids) for name, loss in losses.items()}
    seconds = seconds_of_rounds(calls, rounds_within(SECONDS_PER_TABLE, at_least=4, at_most=200))
    for name, values in seconds.items():
        minimum_ms, median_ms = 1e3 * min(values), 1e3 * statistics.median(values)
        ratio = min(values) / min(seconds[base])
        print(
            f"  {name:<36} min {minimum_ms:10.2f} ms   median {median_ms:10.2f} ms   {ratio:6.2f}x   {len(values)} rounds",
            flush=True,
        )


def _check_that_losses_agree(losses: dict[str, Loss], z: Tensor, ids: Tensor) -> None:
    """Losses that claim to be the same must give the same value and gradient."""
    different = ("GEMM", " in", "tcl", "dcl")
    names = [name for name in losses if not any(word in name for word in different)]
    tolerance = 20 if z.dtype == torch.bfloat16 else 1  # bfloat16 has three digits
    expected_value, expected_gradient = _value_and_gradient(losses[names[0]], z, ids)
    largest = expected_gradient.abs().max().item()
    for name in names[1:]:
        value, gradient = _value_and_gradient(losses[name], z, ids)
        torch.testing.assert_close(
            value, expected_value, rtol=tolerance * 1e-4, atol=0, msg=f"{name}: {value} is not {expected_value}"
        )
        torch.testing.assert_close(
            gradient, expected_gradient, rtol=0, atol=tolerance * 1e-3 * largest, msg=f"{name}: another gradient"
        )


def _value_and_gradient(loss: Loss, z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().clone().requires_grad_()
    value = loss(leaf, ids)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach().float(), gradient.float()


def _forward_and_backward(loss: Loss, z: Tensor, ids: Tensor) -> None:
    z.grad = None
    value = loss(z, ids)
    if value.requires_grad:
        value.backward()


def _embeddings(size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    z = torch.randn(size, DIMENSION, generator=torch.Generator().manual_seed(0))
    return z.to(device, dtype).requires_grad_()


def _print_memory(size: int) -> None:
    names = [name for name in _pair_losses(size) if "GEMM" not in name]
    base_mb = None
    for name in names:
        try:
            peak_mb = float(run_script(__file__, "--peak", name, str(size)))
        except subprocess.CalledProcessError as error:
            print(f"  {name:<36} failed: {error.stderr.strip().splitlines()[-1]}")
            continue
        if base_mb is None:
            base_mb = peak_mb
        print(f"  {name:<36} {peak_mb:8.0f} MB   {peak_mb / base_mb:6.1f}x", flush=True)


def _peak_memory_mb(name: str, size: int) -> float:
    """Return the growth of this process's peak resident set over forward and backward on `size` rows."""
    loss = _pair_losses(size)[name]
    for small_size in (256, 1280):  # load everything that is loaded once, for one matrix and for tiles
        loss(_embeddings(small_size), torch.arange(small_size // 2).repeat(2)).backward()
    z, ids = _embeddings(size), torch.arange(size // 2).repeat(2)
    growth_mb, _ = memory_growth(lambda: loss(z, ids).backward())
    return growth_mb


if __name__ == "__main__":
    main()
