"""Process groups: setup, rank, world size and collectives. On a single process every collective is the identity."""

import ctypes
import itertools
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from reptk.core import slurm
from reptk.core.device import choose_device
from reptk.core.errors import EnvironmentProblem

T = TypeVar("T")

LONG_TIMEOUT_SECONDS = 1800.0
"""How long a rank waits for the others, e.g. while rank 0 decodes all images or draws the report."""

PR_SET_PDEATHSIG = 1
"""Number of the Linux call that sets which signal a process gets when its parent ends."""


def setup(device: str = "auto", *, backend: str | None = None, may_share_gpu: bool = False) -> torch.device:
    """Join the process group if torchrun or srun started this process, and return the device of this rank.

    Args:
        device: see `choose_device`.
        backend: of the process group; by default nccl on CUDA devices, else gloo.
        may_share_gpu: whether several ranks of a machine may compute on one GPU, which NCCL does not allow.

    Raises:
        EnvironmentProblem: the device is not available, there are fewer GPUs than ranks on this machine and they may not share
            them, or the ranks do not find each other.
    """
    slurm.set_rank_variables()
    torch_device = choose_device(device)
    if torch_device.type == "cuda":
        torch_device = _cuda_device(torch_device, may_share_gpu)
        # Before the process group: NCCL uses the current device.
        torch.cuda.set_device(torch_device)
    is_distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if is_distributed and not dist.is_initialized():
        if backend is None:
            backend = "gloo"
            if torch_device.type == "cuda":
                backend = "nccl"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=LONG_TIMEOUT_SECONDS))
        except dist.DistError as cause:
            raise EnvironmentProblem(_not_joined(cause)) from cause
        _stop_with_launcher()
    return torch_device


def _not_joined(cause: Exception) -> str:
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    reason = str(cause).strip().splitlines()[0]
    return (
        f"rank {rank()} cannot join the other ranks at {address}: {reason}. MASTER_ADDR must be the host of rank 0; if "
        "the port is in use, set MASTER_PORT to another one"
    )


def set_timeout(seconds: float, device: torch.device) -> None:
    """Let collectives fail from now on if another rank does not answer for so long."""
    if world_size() == 1:
        return
    # What torch.distributed.set_timeout does, which torch has since 2.14.
    dist.group.WORLD._get_backend(device)._set_default_timeout(timedelta(seconds=seconds))


def _stop_with_launcher() -> None:
    """Get SIGTERM when torchrun ends: a rank must not keep training while the run is started again.

    Only Linux can do this. Elsewhere a rank notices by the ranks that have ended.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _cuda_device(device: torch.device, may_share: bool) -> torch.device:
    """Return the device itself if it has a number, else the one with this rank's number on its machine."""
    index = device.index
    if index is None:
        index = int(os.environ.get("LOCAL_RANK", 0))
        # With --gpus-per-task, SLURM shows each task its GPU alone.
        if slurm.is_task() and torch.cuda.device_count() == 1:
            index = 0
        if may_share:
            index %= torch.cuda.device_count()
    if index >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"rank {rank()} needs CUDA device {index}, but there are {torch.cuda.device_count()}; start fewer "
            "processes on this machine, or name another train.device"
        )
    return torch.device("cuda", index)


def cleanup() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0; before `setup`, from the environment of torchrun."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return the number of processes in the group; 1 before `setup`."""
    if dist.is_initialized():
        return dist.get_world_size()
    return 1


def is_main() -> bool:
    """Return whether this is rank 0, which prints and writes files."""
    return rank() == 0


def all_gather(rows: Tensor, *, replicated_loss: bool = False) -> Tensor:
    """Return the rows of all ranks, (n, ...) -> (n * world_size, ...), in rank order; differentiable.

    When every rank computes the same loss on the gathered rows, the gradient is `world_size` times that loss's, which
    DDP's mean over ranks undoes. All ranks must have the same number of rows.

    Args:
        rows: the rows of this rank.
        replicated_loss: whether every rank computes the same loss from the gathered rows, or at least the gradient of its
            own rows in that loss. The backward pass then needs no communication. Otherwise it sums, over all ranks, the
            gradients with respect to this rank's rows.
    """
    if world_size() == 1:
        return rows
    return _AllGather.apply(rows.contiguous(), replicated_loss)


def all_reduce_sum(values: Tensor, *, replicated_loss: bool = False) -> Tensor:
    """Return the sum of a tensor over all ranks, of the same shape; differentiable.

    As with `all_gather`, the gradient is `world_size` times that of the loss that every rank computes from the sum, which
    DDP's mean over ranks undoes. `torch.distributed.all_reduce` alone has no gradient, and what leaves out the factor trains
    with a gradient that is too small by 1 / world_size.

    Args:
        values: of this rank, in a type with enough digits for the sum: float32 or wider.
        replicated_loss: whether every rank computes the same loss from the sum, and so the whole gradient with respect to it.
            The backward pass then needs no communication. It is False for a mean that each rank subtracts from its rows,
            whose gradient has a part on every rank: the backward pass sums them.
    """
    if world_size() == 1:
        return values
    return _AllReduceSum.apply(values, replicated_loss)


def all_reduce_mean(values: Tensor, *, replicated_loss: bool = False) -> Tensor:
    """Return the mean of a tensor over all ranks; see `all_reduce_sum`.

    Of means over the rows of each rank it is the mean over all rows, because all ranks have the same number of them.
    """
    return all_reduce_sum(values, replicated_loss=replicated_loss) / world_size()


def all_gather_uneven(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """Return the rows of all ranks in rank order, where ranks may have different numbers of rows; not differentiable.

    Args:
        rows: (n, ...) the rows of this rank.
        counts: number of rows of each rank; if unknown, it is gathered first.
    """
    if world_size() == 1:
        return rows
    if not counts:
        counts = all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    longest = max(counts)
    if longest == 0:
        return rows
    # all_gather needs the same number of rows on every rank.
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = all_gather(padded).split(longest)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 alone; every rank returns its result, or raises the exception it raised."""
    if world_size() == 1:
        return function()
    result_and_error: list[Any] = [None, None]
    if is_main():
        try:
            result_and_error[0] = function()
        except Exception as error:
            # Sent to the other ranks, which would otherwise wait for rank 0 until the collective times out.
            result_and_error[1] = error
    dist.broadcast_object_list(result_and_error, src=0)
    result, error = result_and_error
    if error is not None:
        raise error
    return result


def all_gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in rank order; they may be of any type that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class SharedCounter:
    """A number that all ranks count up, at any time, e.g. to take the next piece of work.

    It lives in the store of the process group. All ranks have to create their counters in the same order.
    """

    _number = itertools.count()

    def __init__(self) -> None:
        self._key = f"reptk counter {next(self._number)}"
        self._value = 0

    def add(self, amount: int) -> int:
        """Add to the number, and return it."""
        if world_size() == 1:
            self._value += amount
            return self._value
        return dist.distributed_c10d._get_default_store().add(self._key, amount)


def run_in_turns(function: Callable[[], T]) -> T:
    """Call `function` on rank 0, then on the first rank of each other machine, then on all others; return its result.

    For what fills a folder that the later ones find filled, e.g. a download: ranks that do so at the same time would write
    over each other.
    """
    if world_size() == 1:
        return function()
    if is_main():
        turn = 0
    elif int(os.environ.get("LOCAL_RANK", 0)) == 0:
        turn = 1
    else:
        turn = 2
    result_and_error: list[Any] = [None, None]
    for number in range(3):
        if number == turn:
            try:
                result_and_error[0] = function()
            except Exception as error:
                # The others would wait for this rank.
                result_and_error[1] = error
        dist.barrier()
    result, error = result_and_error
    if error is not None:
        raise error
    return result


class SharedFlags:
    """Flags that any rank may raise, and that all ranks see after the same step.

    Nothing waits for a GPU: what the ranks have said after one step is read after the next.

    Args:
        device: of the collectives.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def update(self, *are_raised: bool) -> list[bool]:
        """Share this rank's flags; return which of them any rank had raised at the call before (a single process: at this one).

        All ranks have to call this after the same steps.
        """
        if world_size() == 1:
            return list(are_raised)
        were_raised = self._read(len(are_raised))
        values = torch.zeros(len(are_raised), dtype=torch.int32, device=self._device)
        for position, is_raised in enumerate(are_raised):
            if is_raised:
                values[position] = 1
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        self._values = values
        if self._device.type == "cuda":
            # A copy to page-locked memory, and an event: reading the values directly would wait for all work on the GPU.
            self._values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return were_raised

    def _read(self, count: int) -> list[bool]:
        if self._values is None:
            return [False] * count
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.bool().tolist()


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error is that of a collective, as it is when another rank has ended or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    # gloo raises plain RuntimeErrors, whose text names its source files.
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Copy rank 0's buffers to every rank, since BatchNorm's running statistics differ between ranks after a step."""
    if world_size() == 1:
        return
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, replicated_loss: bool) -> Tensor:
        ctx.count = rows.shape[0]
        ctx.replicated_loss = replicated_loss
        out = rows.new_empty(rows.shape[0] * world_size(), *rows.shape[1:])
        if torch.__version__ >= "2.14":
            dist.all_gather_single(out, rows)
        else:
            dist.all_gather_into_tensor(out, rows)  # the name until then
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        first = rank() * ctx.count
        local_rows = slice(first, first + ctx.count)
        if ctx.replicated_loss:
            # Each rank has the whole gradient already; the factor is what the sum over ranks would give.
            return grad[local_rows] * world_size(), None
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[local_rows], None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, replicated_loss: bool) -> Tensor:
        ctx.replicated_loss = replicated_loss
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.replicated_loss:
            # The gradient is the same on every rank; the factor is what the sum over ranks would give.
            return grad * world_size(), None
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total, None
