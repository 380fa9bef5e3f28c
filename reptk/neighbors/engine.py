"""The library that finds candidates by products in float32: torch on a GPU, FAISS on a CPU, or torch where FAISS is missing."""

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from reptk.core.errors import EnvironmentProblem
from reptk.neighbors.vectors import chunks

INSTALL = "pip install 'reptk[cpu]' (or 'reptk[gpu]'; never both: they overwrite each other's files)"

Engine = Literal["auto", "faiss", "torch"]
"""The library that finds candidates; "auto" is the fastest."""

TORCH_SCORES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Similarities that torch computes at a time."""

BLAS_QUERIES = 20
"""FAISS uses BLAS from this many queries on."""


@functools.cache
def engine_name() -> str:
    """Return "torch" where there is CUDA, else "faiss", else "torch" with one warning that FAISS is missing.

    faiss-gpu is not used: torch's product and topk are faster (https://github.com/facebookresearch/faiss/issues/3045 and 3621).
    """
    if torch.cuda.is_available():
        return "torch"
    if load_faiss() is not None:
        return "faiss"
    if sys.platform != "darwin":
        warnings.warn(
            f"FAISS is not installed; neighbors are searched exactly with torch. {INSTALL}",
            stacklevel=2,
        )
    return "torch"


def resolve_engine(engine: Engine) -> str:
    """Return "faiss" or "torch".

    Raises:
        EnvironmentProblem: "faiss" is requested and not installed.
    """
    if engine == "auto":
        return engine_name()
    if engine == "faiss":
        require_faiss("engine 'faiss'")
    return engine


def search_device(engine: str) -> torch.device:
    """The device on which an engine searches."""
    if engine == "torch" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def load_faiss() -> ModuleType | None:
    """Import FAISS; None where it is missing or broken.

    faiss-gpu without its CUDA libraries raises RuntimeError, and uninstalling one of two FAISS packages leaves an empty
    module. On macOS torch and FAISS bring an OpenMP runtime each, and two of them in one process crash.
    """
    if sys.platform == "darwin":
        return None
    try:
        faiss = _import_with_passive_threads()
        faiss.IndexFlatIP  # noqa: B018 - an empty module does not have it
    except (ImportError, RuntimeError, AttributeError):
        return None
    return faiss


def _import_with_passive_threads() -> ModuleType:
    """FAISS's own OpenMP reads the environment once; by default its threads spin for milliseconds after every search."""
    if "faiss" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return importlib.import_module("faiss")
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        return importlib.import_module("faiss")
    finally:
        del os.environ["OMP_WAIT_POLICY"]


def require_faiss(purpose: str) -> ModuleType:
    """Import FAISS, or raise EnvironmentProblem that says how to install it."""
    faiss = load_faiss()
    if faiss is None:
        raise EnvironmentProblem(f"{purpose} needs FAISS, which is not installed or cannot be loaded. {INSTALL}")
    return faiss


def top_by_float32(bank: Tensor, queries: Tensor, count: int, engine: str) -> tuple[Tensor, Tensor]:
    """The rows of the bank with the largest inner products in float32, which may be off by `float32_error`.

    Args:
        bank: (n, F), any precision. FAISS reads a contiguous float32 bank in place; others are converted chunk by chunk.
        queries: (q, F) on the device that searches.
        count: 1 to n.
        engine: "faiss" or "torch".

    Returns:
        similarities (q, count) best first and rows (q, count); equal similarities in any order.
    """
    queries = queries.float()
    best = None
    for first, rows in chunks(bank, _chunk_rows(bank, queries, count, engine)):
        if engine == "faiss":
            similarities, numbers = _top_by_faiss(rows, queries, min(count, len(rows)))
        else:
            similarities, numbers = (queries @ rows.to(queries.device).T).topk(min(count, len(rows)), dim=1)
        numbers += first
        if best is not None:
            similarities, numbers = torch.cat([best[0], similarities], 1), torch.cat([best[1], numbers], 1)
            similarities, columns = similarities.topk(min(count, similarities.shape[1]), dim=1)
            numbers = numbers.gather(1, columns)
        best = similarities, numbers
    return best


def float32_error(width: int, device: torch.device) -> float:
    """Bound of the error of a float32 inner product, whatever the order of its sum, over the product of the norms."""
    # torch.set_float32_matmul_precision may allow factors in TF32, which keeps 10 bits, or bfloat16, which keeps 7.
    rounding = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}[torch.get_float32_matmul_precision()]
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        rounding = max(rounding, 2.0**-9)
    return (width + 2) * 2.0**-24 * 1.01 + rounding


def _chunk_rows(bank: Tensor, queries: Tensor, count: int, engine: str) -> int | None:
    if engine == "torch":
        return max(count, TORCH_SCORES[queries.device.type] // len(queries))
    if bank.dtype == torch.float32 and bank.is_contiguous():
        return len(bank)
    return None


def _top_by_faiss(rows: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    faiss = load_faiss()
    arrays = queries.contiguous().numpy(), rows.contiguous().numpy()
    with _blas_from_few_queries(faiss, rows.shape[1]):
        similarities, numbers = faiss.knn(*arrays, count, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(similarities), torch.from_numpy(numbers)


@contextmanager
def _blas_from_few_queries(faiss: ModuleType, width: int) -> Iterator[None]:
    # Since FAISS 1.13 the threshold counts values, not queries, and its default is many times too late. It is a global of
    # FAISS: threads that search at the same time may restore each other's value, which changes the speed alone.
    threshold = faiss.cvar.distance_compute_blas_threshold
    if threshold > 1000:
        faiss.cvar.distance_compute_blas_threshold = min(threshold, BLAS_QUERIES * width)
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold
