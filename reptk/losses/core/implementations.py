"""Which implementation computes log-sum-exp, and for which rows: by device and size, or as a caller says."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from reptk.losses.core import dense, tiled
from reptk.losses.core.key_blocks import ExpSum, KeyBlock, LogSums

ImplementationName = Literal["auto", "dense", "tiled", "triton"]

DENSE_PAIRS = 1024**2
"""Up to this many pairs, one matrix is as fast as tiles and small enough to be kept for the backward pass."""

# Context variables and not globals, so that a block affects only its own thread.
_name: ContextVar[ImplementationName] = ContextVar("implementation", default="auto")
_local_rows: ContextVar[tuple[int, int] | None] = ContextVar("local_rows", default=None)


class Implementation(Protocol):
    """What the modules `dense`, `tiled` and `triton_backend` provide."""

    def forward(
        self, anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], with_expectation: bool
    ) -> LogSums:
        """Return the log-sums of n anchors over all keys.

        Args:
            anchors: n rows.
            key_blocks: the rows they are compared with; the first block is `anchors`, and no row counts with itself.
            exp_sums: the T sums.
            with_expectation: whether `LogSums.expected_similarity` is requested.
        """
        ...

    def backward(self, anchors: KeyBlock, key_blocks: list[KeyBlock], exp_sums: list[ExpSum], cache: Tensor) -> Tensor:
        """Return the (n, D) gradient with respect to the anchors, given the cache of the forward pass."""
        ...


@contextmanager
def implementation(name: ImplementationName) -> Iterator[None]:
    """Compute the row statistics inside the block by one implementation.

    All give the same numbers, up to rounding.

    Args:
        name: "dense" keeps an N x N matrix; "tiled" runs anywhere; "triton" needs CUDA; "auto" decides by device and
            size.

    Raises:
        ValueError: unknown name.
    """
    if name not in get_args(ImplementationName):
        raise ValueError(f"implementation must be one of {', '.join(get_args(ImplementationName))}, got {name!r}")
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


@contextmanager
def local_rows(first: int, count: int) -> Iterator[None]:
    """Inside the block, this rank computes row statistics for rows first .. first + count - 1 and gathers the others.

    Every rank has to run the same loss on the same N rows, `count` rows each, in rank order. The gradient is that of
    this rank's rows and zero for all others.
    """
    token = _local_rows.set((first, count))
    try:
        yield
    finally:
        _local_rows.reset(token)


def current_implementation() -> ImplementationName:
    """Return the name that `implementation` was called with; "auto" outside of it."""
    return _name.get()


def current_local_rows(num_rows: int) -> tuple[int, int]:
    """Return the first row and the number of rows that this rank computes, of `num_rows`.

    Raises:
        ValueError: `local_rows` was called with rows that the batch does not have.
    """
    first, count = _local_rows.get() or (0, num_rows)
    if not 0 <= first <= first + count <= num_rows:
        raise ValueError(f"local_rows({first}, {count}) are not among the {num_rows} rows of z")
    return first, count


def choose(name: str, unit: Tensor, num_anchors: int, num_keys: int) -> Implementation:
    """Return the implementation for `num_anchors` of the rows `unit` (N, D) against `num_keys` keys (N included)."""
    if is_dense(name, num_anchors * num_keys):
        return dense
    if name == "triton" or (name == "auto" and unit.is_cuda and _suits_triton(unit)):
        # Triton is not installed everywhere, and importing it takes a while.
        from reptk.losses.core import triton_backend

        return triton_backend
    return tiled


def is_dense(name: str, num_pairs: int) -> bool:
    """Return whether that many pairs are computed as one matrix."""
    return name == "dense" or (name == "auto" and num_pairs <= DENSE_PAIRS)


def operand_dtype(chosen: Implementation, z_dtype: torch.dtype, unit_dtype: torch.dtype) -> torch.dtype:
    """Return the type in which unit rows are multiplied: for Triton bfloat16, if the embeddings came in it.

    Not float16: the weights of the gradient are about 1 / N^2, which it cannot represent.
    """
    # Told apart from Triton by exclusion: that module may not be importable.
    if chosen is dense or chosen is tiled or z_dtype != torch.bfloat16:
        return unit_dtype
    return z_dtype


def _suits_triton(unit: Tensor) -> bool:
    """The kernels are written for the tensor cores of NVIDIA GPUs from Ampere on."""
    # 512 is `triton_backend.MAX_DIMENSIONS`, which cannot be imported where Triton is not installed.
    if unit.dtype != torch.float32 or unit.shape[1] > 512 or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(unit.device) >= (8, 0) and find_spec("triton") is not None
