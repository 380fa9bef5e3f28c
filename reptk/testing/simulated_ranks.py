"""Ranks as threads of one process: what a part computes on several ranks, without starting processes."""

import copy
import threading
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import copy_context
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

COLLECTIVE_TIMEOUT_SECONDS = 20.0
"""After this a collective that the other ranks have not called fails, instead of waiting for ever."""


def run_on_ranks(part: Any, function: Callable[[Any, int], T], *, world_size: int = 2) -> list[T]:
    """Call `function(part, rank)` on every rank at the same time, each with a copy of the part, and return all results.

    Meanwhile `torch.distributed` answers these threads, and no others, as a process group of `world_size` ranks would:
    `get_rank`, `get_world_size`, `is_initialized`, and the collectives on tensors of the CPU that `_Group` defines.

    Args:
        part: a module or a function; copied, so that ranks share no state.
        function: may call collectives, which every rank has to call in the same order.
        world_size: number of ranks.

    Raises:
        Exception: the first error of a rank.
    """
    group = _Group(world_size)
    threads = []
    for rank in range(world_size):
        rank_part = copy.deepcopy(part)
        # A thread begins with an empty context, without e.g. the implementation that the caller has chosen.
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(group.run_rank, rank, function, rank_part), daemon=True)
        threads.append(thread)
    with ExitStack() as patches:
        for name, replacement in group.replacements().items():
            patches.enter_context(mock.patch.object(dist, name, replacement))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if group.error is not None:
        raise group.error
    return [group.results[rank] for rank in range(world_size)]


class _ThreadRank(threading.local):
    """The rank of each thread; None for those that are none."""

    rank: int | None = None


class _Group:
    """The state that the ranks share, and what replaces functions of `torch.distributed`."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.results: dict[int, Any] = {}
        self.error: Exception | None = None
        self._local = _ThreadRank()
        self._barrier = threading.Barrier(world_size, timeout=COLLECTIVE_TIMEOUT_SECONDS)
        self._values: list[Any] = [None] * world_size

    def run_rank(self, rank: int, function: Callable[[Any, int], Any], part: Any) -> None:
        """Call the function as this rank; an error ends the collectives of the others."""
        self._local.rank = rank
        try:
            self.results[rank] = function(part, rank)
        except threading.BrokenBarrierError:
            self.error = self.error or RuntimeError("the ranks called different collectives")
        except Exception as error:
            self.error = error
            self._barrier.abort()

    def replacements(self) -> dict[str, Callable[..., Any]]:
        """Return by name what `torch.distributed` is to have in place of its functions."""
        functions = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "get_rank": lambda group=None: self._local.rank,
            "get_world_size": lambda group=None: self.world_size,
            "barrier": lambda *_, **__: self._barrier.wait(),
            "all_gather": self._all_gather,
            "all_gather_into_tensor": self._all_gather_into_tensor,
            "all_gather_single": self._all_gather_into_tensor,
            "all_reduce": self._all_reduce,
            "broadcast": self._broadcast,
        }
        replacements = {}
        for name, function in functions.items():
            if name in vars(dist):  # a torch that was built without process groups has only some
                replacements[name] = self._for_ranks(function, vars(dist)[name])
        return replacements

    def _for_ranks(self, function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function for all threads of the process: those that are no rank still use the original."""

        def choose(*arguments: Any, **options: Any) -> Any:
            if self._local.rank is not None:
                return function(*arguments, **options)
            return original(*arguments, **options)

        return choose

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, in rank order."""
        self._values[self._local.rank] = tensor.detach().clone()
        self._barrier.wait()
        tensors = list(self._values)
        # Nobody may write the values of the next collective before all have read these.
        self._barrier.wait()
        return tensors

    def _all_gather(self, tensor_list: list[Tensor], tensor: Tensor, *_: Any, **__: Any) -> None:
        for target, source in zip(tensor_list, self._exchange(tensor), strict=True):
            target.copy_(source)

    def _all_gather_into_tensor(self, output_tensor: Tensor, input_tensor: Tensor, *_: Any, **__: Any) -> None:
        output_tensor.copy_(torch.cat(self._exchange(input_tensor)).view_as(output_tensor))

    def _all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM, *_: Any, **__: Any) -> None:
        tensors = torch.stack(self._exchange(tensor))
        if op == dist.ReduceOp.SUM:
            tensor.copy_(tensors.sum(0))
        elif op == dist.ReduceOp.AVG:
            tensor.copy_(tensors.mean(0))
        elif op == dist.ReduceOp.MAX:
            tensor.copy_(tensors.amax(0))
        elif op == dist.ReduceOp.MIN:
            tensor.copy_(tensors.amin(0))
        else:
            raise NotImplementedError(f"all_reduce with {op} is not simulated")

    def _broadcast(self, tensor: Tensor, src: int = 0, *_: Any, **__: Any) -> None:
        tensor.copy_(self._exchange(tensor)[src])
