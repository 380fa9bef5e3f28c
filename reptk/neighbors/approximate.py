"""ApproximateIndex nearest neighbours by FAISS's factory strings, for banks beyond memory or patience; recall is measurable."""

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.neighbors.engine import require_faiss
from reptk.neighbors.exact import search
from reptk.neighbors.ranking import candidate_similarities
from reptk.neighbors.vectors import check_vectors, chunks

ROWS_PER_LIST = 39
"""k-means places a centroid badly with fewer rows (FAISS's own limit for its warning)."""

MOST_PER_LIST = 256
"""More rows a centroid than this change nothing (FAISS leaves the others out as well)."""

REFINED = 8
"""An index that refines (",RFlat") ranks so many times k candidates by its exact copies."""

_MARK = b"reptk approximate index 1 "


class ApproximateIndex:
    """An index over the rows of a bank, searched by inner product, of which some neighbours may be missed.

    Made by `build` or `from_bytes`. Building twice from the same rows gives the same index.

    Args:
        index: FAISS's own.
        factory: the string that it was made from.
    """

    def __init__(self, index: Any, factory: str) -> None:
        self.index, self.factory = index, factory

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
            effort: how much is looked at in a search: inverted lists (nprobe), or nodes of a graph (efSearch). By default
                1/16 of the lists, at least 8; 128 nodes. More finds more and takes longer.
            progress: called with the number of rows that are in the index, now and then.

        Raises:
            UsageError: FAISS cannot make such an index for rows of this width, or the bank is too small to train it.
            EnvironmentProblem: FAISS is missing.
            ValueError: the bank is not floating point or not finite.
        """
        faiss = require_faiss("an approximate index")
        check_vectors("bank", bank)
        index = _made(faiss, bank.shape[1], factory)
        _seed(faiss, index, rng.key("approximate", seed) & 0x7FFFFFFF)
        threads = faiss.omp_get_max_threads()
        if "HNSW" in factory or "NSG" in factory:
            faiss.omp_set_num_threads(1)  # threads that link nodes at the same time link them otherwise every time
        try:
            if not index.is_trained:
                _train(faiss, index, factory, bank, seed)
            for first, rows in chunks(bank):
                index.add(_array(rows))
                if progress is not None:
                    progress(first + len(rows))
        except RuntimeError as cause:
            raise UsageError(f"FAISS cannot add rows to {factory!r}: {_last_line(cause)}") from cause
        finally:
            faiss.omp_set_num_threads(threads)
        made = cls(index, factory)
        made._set_effort(effort)
        return made

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def width(self) -> int:
        """F."""
        return self.index.d

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Up to k neighbours of each query, best first, equal similarities in row order.

        Args:
            queries: (q, F).
            k: neighbours.

        Returns:
            similarities (q, k), as the index knows them (a product quantizer's are approximate), and rows (q, k); -inf and
            -1 where fewer were found.

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
            found, numbers = (torch.from_numpy(part) for part in self.index.search(_array(block), k))
            found = found.masked_fill_(numbers < 0, -torch.inf)
            order = torch.where(numbers < 0, torch.iinfo(torch.int64).max, numbers).argsort(1)
            found, numbers = found.gather(1, order), numbers.gather(1, order)
            found, order = found.sort(dim=1, descending=True, stable=True)
            similarities[first : first + len(block)], rows[first : first + len(block)] = found, numbers.gather(1, order)
        return similarities, rows

    def recall(self, bank: Tensor, queries: Tensor, k: int, sample: int = 1000) -> float:
        """The share of the exact k neighbours that this index finds. A row as near as the k-th neighbour counts as found.

        Args:
            bank: (n, F) the rows that the index was built from.
            queries: (q, F).
            k: neighbours.
            sample: at most so many queries, drawn once for all.

        Raises:
            ValueError: a bank of another size, or what `search` raises.
        """
        if bank.shape != (len(self), self.width):
            raise ValueError(
                f"the index was built from ({len(self)}, {self.width}) rows, the bank is {tuple(bank.shape)}"
            )
        if len(queries) > sample:
            drawn = torch.randperm(len(queries), generator=rng.generator("recall", len(queries)))[:sample]
            queries = queries[drawn.sort().values]
        _, rows = self.search(queries, k)
        furthest = torch.cat([similarities[:, -1:] for similarities, _ in search(bank, queries, k)])
        found = candidate_similarities(bank, queries, rows.clamp_min(0))
        return ((found >= furthest) & (rows >= 0)).float().mean().item()

    def to_bytes(self) -> bytes:
        """The index with its factory string. Keep a hash beside it: FAISS trusts what it reads."""
        faiss = require_faiss("an approximate index")
        return _MARK + json.dumps(self.factory).encode() + b"\n" + faiss.serialize_index(self.index).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "ApproximateIndex":
        """What `to_bytes` gave. Only read bytes whose hash is known: FAISS may crash on damaged ones.

        Raises:
            DataError: these are no such bytes, or FAISS cannot read them.
            EnvironmentProblem: FAISS is missing.
        """
        faiss = require_faiss("an approximate index")
        head, line, body = data[:4096].partition(b"\n")
        if not head.startswith(_MARK) or not line:
            raise DataError("this is no index that reptk wrote")
        try:
            factory = json.loads(head[len(_MARK) :])
            body = np.frombuffer(data, dtype=np.uint8, offset=len(head) + 1)
            return cls(faiss.deserialize_index(body), str(factory))
        except (ValueError, RuntimeError) as cause:
            raise DataError(f"the index is damaged ({_last_line(cause)}); build it again") from cause

    def _set_effort(self, effort: int | None) -> None:
        faiss = require_faiss("an approximate index")
        for layer in _layers(faiss, self.index):
            if hasattr(layer, "nprobe"):
                layer.nprobe = min(layer.nlist, effort or max(8, layer.nlist // 16))
            elif hasattr(layer, "hnsw"):
                layer.hnsw.efSearch = effort or 128
            if hasattr(layer, "k_factor"):
                layer.k_factor = REFINED


def recommended_index(count: int, width: int) -> str:
    """The factory string advised for so many rows: exact while that is quick, lists beyond, quantized beyond memory.

    Lists: about 4 sqrt(n), as FAISS's guidelines have it. Quantized to a byte for every 8 values or so where float32 rows
    would take more than 16 GiB.
    """
    if count < 200_000:
        return "Flat"
    lists = 1 << round(np.log2(4 * count**0.5))
    if 4 * count * width <= 16 << 30:
        return f"IVF{lists},Flat"
    return f"IVF{lists},PQ{_parts(width)}"


def _parts(width: int) -> int:
    """The largest number of equal parts, of 8 values or more, that a row can be cut into."""
    return max(parts for parts in range(1, max(1, width // 8) + 1) if width % parts == 0)


def _made(faiss: Any, width: int, factory: str) -> Any:
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as cause:
        raise UsageError(
            f"FAISS makes no index {factory!r} for rows of {width} values: {_last_line(cause)}. Known to work, for example: "
            f"Flat, IVF256,Flat, HNSW32, IVF256,PQ{_parts(width)}"
        ) from cause


def _seed(faiss: Any, index: Any, seed: int) -> None:
    for holder in _layers(faiss, index):
        for part in (getattr(holder, "cp", None), getattr(getattr(holder, "pq", None), "cp", None)):
            if part is not None:
                part.seed, part.min_points_per_centroid = seed, 1
        if hasattr(holder, "do_polysemous_training"):
            holder.do_polysemous_training = False  # most of the training time, for a kind of search that is not used
        if hasattr(holder, "hnsw"):
            holder.hnsw.rng = faiss.RandomGenerator(seed)


def _layers(faiss: Any, index: Any) -> Iterator[Any]:
    """The index and those inside it: behind a transformation or a list of ids, before a refinement, the lists' own."""
    held = faiss.downcast_index(index)
    yield held
    for name in ("index", "base_index", "quantizer"):
        inner = getattr(held, name, None)
        if isinstance(inner, faiss.Index):
            yield from _layers(faiss, inner)


def _train(faiss: Any, index: Any, factory: str, bank: Tensor, seed: int) -> None:
    layers = list(_layers(faiss, index))
    centroids = max(max(getattr(layer, "nlist", 1), getattr(getattr(layer, "pq", None), "ksub", 1)) for layer in layers)
    if len(bank) < centroids:
        raise UsageError(
            f"{factory!r} needs at least {centroids} rows to be trained, better {ROWS_PER_LIST * centroids}; the bank has "
            f"{len(bank)}. Ask for fewer lists, or for {recommended_index(len(bank), bank.shape[1])}"
        )
    if len(bank) < ROWS_PER_LIST * centroids:
        warnings.warn(
            f"{len(bank)} rows train {centroids} centroids badly; {ROWS_PER_LIST * centroids} or more would do",
            stacklevel=3,
        )
    rows = bank
    if len(bank) > MOST_PER_LIST * centroids:
        drawn = torch.randperm(len(bank), generator=rng.generator("approximate", seed, len(bank)))
        rows = bank[drawn[: MOST_PER_LIST * centroids].sort().values]
    try:
        index.train(_array(rows))
    except RuntimeError as cause:
        raise UsageError(f"FAISS cannot train {factory!r} on {len(rows)} rows: {_last_line(cause)}") from cause


def _array(rows: Tensor) -> np.ndarray:
    return rows.float().cpu().contiguous().numpy()


def _last_line(cause: Exception) -> str:
    """FAISS's complaint without the C++ function that it comes from."""
    text = str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
    return text.partition(".cpp:")[2].partition(": ")[2] or text
