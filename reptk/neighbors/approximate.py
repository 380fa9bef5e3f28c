"""Approximate nearest neighbors by FAISS's factory strings, for banks too large for exact search; recall can be measured."""

import json
import re
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.core.files import parse_json
from reptk.neighbors.engine import require_faiss
from reptk.neighbors.exact import search
from reptk.neighbors.ranking import candidate_similarities
from reptk.neighbors.vectors import check_vectors, chunks

MIN_ROWS_PER_CENTROID = 39
"""With fewer rows k-means places a centroid badly (FAISS's own limit for its warning)."""

MAX_ROWS_PER_CENTROID = 256
"""More rows than this change nothing (FAISS samples as many)."""

REFINE_FACTOR = 8
"""An index that refines (",RFlat") ranks this many times k candidates by its exact copies."""

GRAPHS = ("HNSW", "NSG")
"""Kinds whose number is that of the links of a node."""

MIN_LINKS = 2
"""With a single link, FAISS ends the process."""

MAX_DIGITS = 8
"""Of a number in a factory string. FAISS reads longer ones as other numbers, or tries to reserve the memory."""

_HEADER = b"reptk approximate index 1 "


class ApproximateIndex:
    """An index of the rows of a bank, searched by inner product, that may miss some neighbors.

    Use `build` or `from_bytes`. Building twice from the same rows gives the same index.

    Args:
        index: a `faiss.Index`.
        factory: the factory string it was built from.
    """

    def __init__(self, index: Any, factory: str) -> None:
        self.index = index
        self.factory = factory

    @classmethod
    def build(
        cls,
        bank: Tensor,
        factory: str,
        *,
        seed: int = 0,
        effort: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> "ApproximateIndex":
        """Train on a sample of the bank and add all of its rows, chunk by chunk.

        Args:
            bank: (n, F), floating point of any precision; may be memory-mapped.
            factory: FAISS's factory string: "IVF256,Flat", "HNSW32", "IVF256,PQ32", "Flat", ...
            seed: of the sample, of k-means and of the graph.
            effort: how many inverted lists (nprobe) or nodes of a graph (efSearch) a search visits. By default 1/16 of the
                lists, at least 8, or 128 nodes. A larger effort finds more neighbors and takes longer.
            progress: called after every chunk with the number of rows in the index.

        Raises:
            UsageError: FAISS cannot build such an index for rows of this width, or the bank is too small to train it.
            EnvironmentProblem: FAISS is missing.
            ValueError: the bank is not floating point or not finite.
        """
        faiss = require_faiss("an approximate index")
        check_vectors("bank", bank)
        index = _create(faiss, bank.shape[1], factory)
        _set_seed(faiss, index, rng.key("approximate", seed) & 0x7FFFFFFF)
        threads = faiss.omp_get_max_threads()
        if "HNSW" in factory or "NSG" in factory:
            # Threads that add nodes to a graph at the same time link them differently every time.
            faiss.omp_set_num_threads(1)
        try:
            if not index.is_trained:
                _train(faiss, index, factory, bank, seed)
            for first, rows in chunks(bank):
                index.add(_as_array(rows))
                if progress is not None:
                    progress(first + len(rows))
        except RuntimeError as cause:
            raise UsageError(f"FAISS cannot add rows to {factory!r}: {_reason(cause)}") from cause
        finally:
            faiss.omp_set_num_threads(threads)
        _set_effort(faiss, index, effort)
        return cls(index, factory)

    def add(self, rows: Tensor) -> None:
        """Add rows (n, F) behind those that are in the index, which is not trained again.

        Raises:
            UsageError: FAISS cannot add rows to an index of this kind.
            ValueError: the rows have another width, or are not finite.
        """
        faiss = require_faiss("an approximate index")
        check_vectors("rows", rows)
        if rows.shape[1] != self.width:
            raise ValueError(f"the index has rows of {self.width} values, the new ones have {rows.shape[1]}")
        threads = faiss.omp_get_max_threads()
        if "HNSW" in self.factory or "NSG" in self.factory:
            # Threads that add nodes to a graph at the same time link them differently every time.
            faiss.omp_set_num_threads(1)
        try:
            for _, chunk in chunks(rows):
                self.index.add(_as_array(chunk))
        except RuntimeError as cause:
            raise UsageError(
                f"FAISS cannot add rows to {self.factory!r}: {_reason(cause)}. Build the index again, with all rows"
            ) from cause
        finally:
            faiss.omp_set_num_threads(threads)

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def width(self) -> int:
        """F."""
        return self.index.d

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return k neighbors of each query (q, F), best first, equal similarities in row order.

        Where the visited lists hold fewer than k rows, more lists are visited.

        Returns:
            similarities (q, k), as the index computes them (those of a product quantizer are approximate), and rows (q, k);
            -inf and -1 where the index has, or a graph finds, fewer.

        Raises:
            ValueError: another width, values that are not finite, k below 1.
        """
        check_vectors("queries", queries)
        if queries.shape[1] != self.width:
            raise ValueError(f"the index has rows of {self.width} values, queries of {queries.shape[1]}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        similarities = torch.full((len(queries), k), -torch.inf)
        rows = torch.full((len(queries), k), -1)
        for first, block in chunks(queries):
            part = slice(first, first + len(block))
            similarities[part], rows[part] = _in_order(*self.index.search(_as_array(block), k))
        self._complete(queries, similarities, rows)
        return similarities, rows

    def _complete(self, queries: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """Search again, in more lists, for the queries (q, F) with fewer than k neighbors (q, k), in place."""
        num_findable = min(rows.shape[1], len(self))
        if num_findable == 0 or not (rows[:, num_findable - 1] < 0).any():
            return
        lists = _inverted_lists(require_faiss("an approximate index"), self.index)
        if lists is None:
            return
        usual_probes = lists.nprobe
        try:
            while lists.nprobe < lists.nlist:
                lists.nprobe = min(lists.nlist, 4 * lists.nprobe)
                incomplete = (rows[:, num_findable - 1] < 0).nonzero()[:, 0]
                if len(incomplete) == 0:
                    return
                results = self.index.search(_as_array(queries[incomplete]), rows.shape[1])
                similarities[incomplete], rows[incomplete] = _in_order(*results)
        finally:
            lists.nprobe = usual_probes

    def recall(self, bank: Tensor, queries: Tensor, k: int, sample: int = 1000) -> float:
        """Return the share of the exact k neighbors that this index finds; a row as similar as the k-th counts as found.

        Args:
            bank: (n, F) the rows that the index was built from.
            queries: (q, F).
            k: neighbors.
            sample: the largest number of queries; a sample is the same every time.

        Raises:
            ValueError: a bank of another size, or what `search` raises.
        """
        if bank.shape != (len(self), self.width):
            raise ValueError(
                f"the index was built from ({len(self)}, {self.width}) rows, the bank is {tuple(bank.shape)}"
            )
        if len(queries) > sample:
            numbers = torch.randperm(len(queries), generator=rng.generator("recall", len(queries)))[:sample]
            queries = queries[numbers.sort().values]
        _, rows = self.search(queries, k)
        kth_similarity = torch.cat([similarities[:, -1:] for similarities, _ in search(bank, queries, k)])
        is_neighbor = (candidate_similarities(bank, queries, rows) >= kth_similarity) & (rows >= 0)
        return is_neighbor.float().mean().item()

    def to_bytes(self) -> bytes:
        """Return the index with its factory string. Store a hash with it: FAISS does not verify what it reads."""
        faiss = require_faiss("an approximate index")
        return _HEADER + json.dumps(self.factory).encode() + b"\n" + faiss.serialize_index(self.index).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "ApproximateIndex":
        """Read what `to_bytes` returned. Verify the hash of the bytes before: FAISS may crash on damaged ones.

        Raises:
            DataError: the bytes are no such index, or FAISS cannot read them.
            EnvironmentProblem: FAISS is missing.
        """
        faiss = require_faiss("an approximate index")
        header, newline, _ = data[:4096].partition(b"\n")
        if not header.startswith(_HEADER) or not newline:
            raise DataError("this is no index that reptk wrote")
        try:
            factory = parse_json(header[len(_HEADER) :])
            body = np.frombuffer(data, dtype=np.uint8, offset=len(header) + 1)
            return cls(faiss.deserialize_index(body), str(factory))
        except (ValueError, RuntimeError) as cause:
            raise DataError(f"the index is damaged ({_reason(cause)}); build it again") from cause


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


def _create(faiss: ModuleType, width: int, factory: str) -> Any:
    try:
        _check_numbers(factory)
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError) as cause:
        raise UsageError(
            f"FAISS makes no index {factory!r} for rows of {width} values: {_reason(cause)}. Known to work, for example: "
            f"Flat, IVF256,Flat, HNSW32, IVF256,PQ{_subquantizers(width)}"
        ) from cause


def _check_numbers(factory: str) -> None:
    """Refuse numbers of a factory string with which FAISS ends the process, loops, or exhausts the memory.

    Raises:
        ValueError: there is such a number.
    """
    for kind, digits in re.findall(r"([A-Za-z]+)(-?\d+)", factory):
        smallest = MIN_LINKS if kind in GRAPHS else 1
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


def _inverted_lists(faiss: ModuleType, index: Any) -> Any | None:
    """Return the layer of an index that has inverted lists; None if there is none."""
    for layer in _layers(faiss, index):
        if isinstance(layer, faiss.IndexIVF):
            return layer
    return None


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


def _set_effort(faiss: ModuleType, index: Any, effort: int | None) -> None:
    for layer in _layers(faiss, index):
        if isinstance(layer, faiss.IndexIVF):
            layer.nprobe = min(layer.nlist, effort or max(8, layer.nlist // 16))
        elif isinstance(layer, faiss.IndexHNSW):
            layer.hnsw.efSearch = effort or 128
        elif isinstance(layer, faiss.IndexRefine):
            layer.k_factor = REFINE_FACTOR


def _train(faiss: ModuleType, index: Any, factory: str, bank: Tensor, seed: int) -> None:
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
        index.train(_as_array(rows))
    except RuntimeError as cause:
        raise UsageError(f"FAISS cannot train {factory!r} on {len(rows)} rows: {_reason(cause)}") from cause


def _in_order(similarities: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """FAISS's results (q, k) by similarity, equal ones by row; -inf and -1 at the end for neighbors it did not find."""
    similarities = np.where(rows < 0, -np.inf, similarities).astype(np.float32)
    # Neighbors that FAISS did not find have row -1, which would sort before row 0.
    last_if_absent = np.where(rows < 0, np.iinfo(np.int64).max, rows)
    order = np.lexsort((last_if_absent, -similarities), axis=1)
    columns = torch.from_numpy(order)
    return torch.from_numpy(similarities).gather(1, columns), torch.from_numpy(rows).gather(1, columns)


def _as_array(rows: Tensor) -> np.ndarray:
    return rows.float().cpu().contiguous().numpy()


def _reason(cause: Exception) -> str:
    """Return FAISS's message without the C++ function and line that raised it."""
    lines = str(cause).strip().splitlines()
    if not lines:
        return type(cause).__name__
    return lines[-1].partition(".cpp:")[2].partition(": ")[2] or lines[-1]
