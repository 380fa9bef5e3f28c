"""One process or many: start, rank, world, gather. On one process every function is the identity."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from reptk.core.errors import EnvironmentProblem

T = TypeVar("T")


def setup(device: str = "auto") -> torch.device:
    """Join the process group when torchrun started this process; return the device of this rank.

    Args:
        device: `"auto"` (CUDA where there is one), `"cpu"`, `"cuda"` or `"cuda:N"`.

    Raises:
        EnvironmentProblem: CUDA is asked for and not there.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentProblem(f"train.device is {device!r}, but torch finds no CUDA device; use cpu or auto")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local_rank if chosen.index is None else chosen.index)
        if chosen.index >= torch.cuda.device_count():
            raise EnvironmentProblem(
                f"rank {rank()} wants CUDA device {chosen.index}, but there are {torch.cuda.device_count()}; start fewer "
                "processes on this machine, or name another train.device"
            )
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not td.is_initialized():
        td.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return chosen


def cleanup() -> None:
    """Leave the process group, if there is one."""
    if td.is_initialized():
        td.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0. Known from torchrun's environment even before `setup`."""
    return td.get_rank() if td.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes that have joined."""
    return td.get_world_size() if td.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0


def all_gather(rows: Tensor, *, alike: bool = False) -> Tensor:
    """Rows of all ranks, (n, ...) -> (n * world, ...), in rank order, differentiable for floating-point rows.

    When every rank computes the same loss on the gathered rows, the gradient is `world_size` times that loss's, which DDP's
    mean over ranks undoes. Every rank has to bring as many rows.

    Args:
        rows: of this rank.
        alike: every rank will compute the very same value from the gathered rows, or the part of its gradient that
            belongs to its own rows, so the backward pass needs no communication. Otherwise, whatever each rank does
            with the rows, backward sums the gradients that all ranks have for this rank's rows.
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows.contiguous(), alike)


def all_gather_uneven(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows of all ranks in rank order, however many each has (`counts`, asked for if not given); not differentiable."""
    if world_size() == 1:
        return rows
    counts = counts or all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    every = all_gather(padded).split(max(counts)) if max(counts) else [padded] * world_size()
    return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])


def run_on_main(make: Callable[[], T]) -> T:
    """Run `make` on rank 0 alone and give its result, or the exception it raised, to every rank."""
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    td.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give every rank rank 0's buffers: BatchNorm's running statistics differ between ranks after a step."""
    if world_size() > 1:
        for buffer in module.buffers():
            td.broadcast(buffer, src=0)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, alike: bool) -> Tensor:
        ctx.count, ctx.alike = rows.shape[0], alike
        made = rows.new_empty(rows.shape[0] * world_size(), *rows.shape[1:])
        td.all_gather_into_tensor(made, rows)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first = rank() * ctx.count
        own = slice(first, first + ctx.count)
        if ctx.alike:
            return gradient[own] * world_size(), None
        gradient = gradient.contiguous()
        td.all_reduce(gradient)
        return gradient[own], None
