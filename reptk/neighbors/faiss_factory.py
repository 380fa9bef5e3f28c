"""FAISS's factory strings: building an empty index of one, its layers, training, seeds and effort."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import UsageError

MIN_ROWS_PER_CENTROID = 39
"""With fewer rows k-means places a centroid badly (FAISS's own limit for its warning)."""

MAX_ROWS_PER_CENTROID = 256
"""More rows than this change nothing (FAISS samples as many)."""

REFINE_FACTOR = 8
"""An index that refines (",RFlat") ranks REFINE_FACTOR * k candidates by its exact copies."""

GRAPHS = ("HNSW", "NSG")
"""Kinds whose number is that of the links of a node."""

MIN_LINKS = 2
"""With a single link, FAISS ends the process."""

MAX_DIGITS = 8
"""Of a number in a factory string. FAISS reads longer ones as other numbers, or tries to reserve the memory."""


def recommended_index(count: int, width: int) -> str:
    """Return the factory string recommended for `count` rows: exact below 200,000, inverted lists, or quantized lists.

    There are about 4 sqrt(n) lists, as in FAISS's guidelines
    (https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index). Where float32 rows would take more than
    16 GiB, about every 8 values are quantized to a byte.
    """
    if count < 200_000:
        return "Flat"
    lists = 1 << round(np.log2(4 * count**0.5))
    if 4 * count * width <= 16 << 30:
        return f"IVF{lists},Flat"
    return f"IVF{lists},PQ{_subquantizers(width)}"


def _subquantizers(width: int) -> int:
    """The largest number of equal parts, of 8 values or more, into which a row can be cut."""
    return max(parts for parts in range(1, max(1, width // 8) + 1) if width % parts == 0)


def create_index(faiss: ModuleType, width: int, factory: str, seed: int) -> Any:
    """Return an empty index for inner products of rows of this width, with reproducible k-means and graphs.

    Raises:
        UsageError: FAISS cannot build such an index.
    """
    try:
        _check_numbers(factory)
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError) as cause:
        raise UsageError(
            f"FAISS cannot build an index {factory!r} for rows of {width} values: {reason_of(cause)}. Known to work, for "
            f"example: Flat, IVF256,Flat, HNSW32, IVF256,PQ{_subquantizers(width)}"
        ) from cause
    _set_seed(faiss, index, rng.key("approximate", seed) & 0x7FFFFFFF)
    return index


@contextmanager
def single_thread_for_graphs(faiss: ModuleType, factory: str) -> Iterator[None]:
    """Let FAISS use one thread in the block if it builds a graph there, to which threads would add nodes in any order."""
    threads = faiss.omp_get_max_threads()
    if "HNSW" in factory or "NSG" in factory:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _check_numbers(factory: str) -> None:
    """Refuse numbers of a factory string with which FAISS ends the process, loops, or exhausts the memory.

    Raises:
        ValueError: there is such a number.
    """
    for kind, digits in re.findall(r"([A-Za-z]+)(-?\d+)", factory):
        smallest = 1
        if kind in GRAPHS:
            smallest = MIN_LINKS
        if len(digits) > MAX_DIGITS or int(digits) < smallest:
            raise ValueError(f"{kind}{digits}: the number must be {smallest} to {10**MAX_DIGITS - 1}")


def _layers(faiss: ModuleType, index: Any) -> Iterator[Any]:
    """Yield the index and the indexes inside it: after a transform, before a refinement, and the quantizer of the lists."""
    index = faiss.downcast_index(index)
    yield index
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        yield from _layers(faiss, index.index)
    elif isinstance(index, faiss.IndexRefine):
        yield from _layers(faiss, index.base_index)
    elif isinstance(index, faiss.IndexIVF):
        yield from _layers(faiss, index.quantizer)


def inverted_lists(faiss: ModuleType, index: Any) -> Any | None:
    """Return the layer of an index that has inverted lists; None if there is none."""
    for layer in _layers(faiss, index):
        if isinstance(layer, faiss.IndexIVF):
            return layer
    return None


def untransformed_lists(faiss: ModuleType, index: Any) -> tuple[list[Any], Any | None]:
    """Return the transforms of vectors and the inverted lists behind them; None if the index is anything else or more."""
    layer = faiss.downcast_index(index)
    transforms = []
    if isinstance(layer, faiss.IndexPreTransform):
        for number in range(layer.chain.size()):
            transforms.append(faiss.downcast_VectorTransform(layer.chain.at(number)))
        layer = faiss.downcast_index(layer.index)
    if not isinstance(layer, faiss.IndexIVF):
        return [], None
    return transforms, layer


def _product_quantizers(faiss: ModuleType, index: Any) -> Iterator[Any]:
    classes = faiss.IndexPQ, faiss.IndexIVFPQ, faiss.IndexPQFastScan, faiss.IndexIVFPQFastScan
    for layer in _layers(faiss, index):
        if isinstance(layer, classes):
            yield layer.pq


def _set_seed(faiss: ModuleType, index: Any, seed: int) -> None:
    """Make k-means and graphs reproducible, and leave the warning about few rows to `_train`."""
    layers = list(_layers(faiss, index))
    clusterings = [layer.cp for layer in layers if isinstance(layer, faiss.IndexIVF)]
    clusterings += [quantizer.cp for quantizer in _product_quantizers(faiss, index)]
    for clustering in clusterings:
        clustering.seed = seed
        clustering.min_points_per_centroid = 1
    for layer in layers:
        if isinstance(layer, (faiss.IndexPQ, faiss.IndexIVFPQ)):
            # It takes most of the training time, and only polysemous search, which is not used, needs it.
            layer.do_polysemous_training = False
        if isinstance(layer, faiss.IndexHNSW):
            layer.hnsw.rng = faiss.RandomGenerator(seed)


def set_effort(faiss: ModuleType, index: Any, effort: int | None) -> None:
    """Set how many inverted lists (nprobe) or nodes of a graph (efSearch) a search visits; None: see `build`."""
    for layer in _layers(faiss, index):
        if isinstance(layer, faiss.IndexIVF):
            layer.nprobe = min(layer.nlist, effort or max(8, layer.nlist // 16))
        elif isinstance(layer, faiss.IndexHNSW):
            layer.hnsw.efSearch = effort or 128
        elif isinstance(layer, faiss.IndexRefine):
            layer.k_factor = REFINE_FACTOR


def train_index(faiss: ModuleType, index: Any, factory: str, bank: Tensor, seed: int) -> None:
    """Train an index on a sample of the bank (n, F), unless it needs no training.

    Raises:
        UsageError: the bank is too small, or FAISS cannot train on it.
    """
    if index.is_trained:
        return
    counts = [layer.nlist for layer in _layers(faiss, index) if isinstance(layer, faiss.IndexIVF)]
    counts += [quantizer.ksub for quantizer in _product_quantizers(faiss, index)]
    centroids = max(counts, default=1)
    enough_rows = MIN_ROWS_PER_CENTROID * centroids
    if len(bank) < centroids:
        raise UsageError(
            f"{factory!r} needs at least {centroids} rows to be trained, better {enough_rows}; the bank has {len(bank)}. "
            f"Use fewer lists, or {recommended_index(len(bank), bank.shape[1])}"
        )
    if len(bank) < enough_rows:
        warnings.warn(
            f"{len(bank)} rows train {centroids} centroids badly; {enough_rows} or more would do", stacklevel=3
        )
    rows = bank
    if len(bank) > MAX_ROWS_PER_CENTROID * centroids:
        numbers = torch.randperm(len(bank), generator=rng.generator("approximate", seed, len(bank)))
        rows = bank[numbers[: MAX_ROWS_PER_CENTROID * centroids].sort().values]
    try:
        index.train(as_array(rows))
    except RuntimeError as cause:
        raise UsageError(f"FAISS cannot train {factory!r} on {len(rows)} rows: {reason_of(cause)}") from cause


def as_array(rows: Tensor) -> np.ndarray:
    """Return rows as FAISS takes them: float32 on the CPU, in C order."""
    return rows.float().cpu().contiguous().numpy()


def reason_of(cause: Exception) -> str:
    """Return FAISS's message without the C++ function and line that raised it."""
    lines = str(cause).strip().splitlines()
    if not lines:
        return type(cause).__name__
    return lines[-1].partition(".cpp:")[2].partition(": ")[2] or lines[-1]
