"""Approximate nearest neighbors by FAISS's factory strings, for banks too large for exact search; recall can be measured."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.core.files import parse_json
from reptk.neighbors.engine import require_faiss
from reptk.neighbors.exact import search
from reptk.neighbors.faiss_factory import (
    as_array,
    create_index,
    inverted_lists,
    reason_of,
    set_effort,
    single_thread_for_graphs,
    train_index,
    untransformed_lists,
)
from reptk.neighbors.ranking import candidate_similarities
from reptk.neighbors.vectors import check_vectors, chunks

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
            progress: called after every chunk with how many further rows are in the index.

        Raises:
            UsageError: FAISS cannot build such an index for rows of this width, or the bank is too small to train it.
            EnvironmentProblem: FAISS is missing.
            ValueError: the bank is not floating point or not finite.
        """
        faiss = require_faiss("an approximate index")
        check_vectors("bank", bank)
        index = create_index(faiss, bank.shape[1], factory, seed)
        with single_thread_for_graphs(faiss, factory):
            train_index(faiss, index, factory, bank, seed)
            try:
                for _, rows in chunks(bank):
                    index.add(as_array(rows))
                    if progress is not None:
                        progress(len(rows))
            except RuntimeError as cause:
                raise UsageError(f"FAISS cannot add rows to {factory!r}: {reason_of(cause)}") from cause
        set_effort(faiss, index, effort)
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
        with single_thread_for_graphs(faiss, self.factory):
            try:
                for _, chunk in chunks(rows):
                    self.index.add(as_array(chunk))
            except RuntimeError as cause:
                raise UsageError(
                    f"FAISS cannot add rows to {self.factory!r}: {reason_of(cause)}. Build the index again, with all rows"
                ) from cause

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
            similarities[part], rows[part] = _in_order(*self.index.search(as_array(block), k))
        self._complete(queries, similarities, rows)
        return similarities, rows

    def _complete(self, queries: Tensor, similarities: Tensor, rows: Tensor) -> None:
        """Search again, in more lists, for the queries (q, F) with fewer than k neighbors (q, k), in place."""
        num_findable = min(rows.shape[1], len(self))
        if num_findable == 0 or not (rows[:, num_findable - 1] < 0).any():
            return
        lists = inverted_lists(require_faiss("an approximate index"), self.index)
        if lists is None:
            return
        usual_probes = lists.nprobe
        try:
            while lists.nprobe < lists.nlist:
                lists.nprobe = min(lists.nlist, 4 * lists.nprobe)
                incomplete = (rows[:, num_findable - 1] < 0).nonzero()[:, 0]
                if len(incomplete) == 0:
                    return
                results = self.index.search(as_array(queries[incomplete]), rows.shape[1])
                similarities[incomplete], rows[incomplete] = _in_order(*results)
        finally:
            lists.nprobe = usual_probes

    def search_shard(self, queries: Tensor, k: int, shard: int, num_shards: int) -> tuple[Tensor, Tensor] | None:
        """Return what `search` finds in one shard of the inverted lists; None if the index has no lists, or more than them.

        Args:
            queries: (q, F).
            k: neighbors.
            shard: which one, from 0. It has the lists whose number is `shard` modulo `num_shards`.
            num_shards: into how many the lists are divided.

        Returns:
            similarities (q, k) and rows (q, k); -inf and -1 where the visited lists hold fewer. See `merge_shards`.
        """
        check_vectors("queries", queries)
        faiss = require_faiss("an approximate index")
        transforms, lists = untransformed_lists(faiss, self.index)
        if lists is None:
            return None
        similarities = [torch.empty(0, k)]
        rows = [torch.empty(0, k, dtype=torch.int64)]
        for _, block in chunks(queries):
            vectors = as_array(block)
            for transform in transforms:
                vectors = transform.apply(vectors)
            coarse, numbers = lists.quantizer.search(vectors, lists.nprobe)
            # FAISS leaves lists of number -1 out.
            numbers[numbers % num_shards != shard] = -1
            block_similarities, block_rows = _in_order(*lists.search_preassigned(vectors, k, numbers, coarse))
            similarities.append(block_similarities)
            rows.append(block_rows)
        return torch.cat(similarities), torch.cat(rows)

    def merge_shards(self, queries: Tensor, similarities: Tensor, rows: Tensor, k: int) -> Tensor:
        """Return the rows (q, k) that `search` finds, given what `search_shard` returns for all shards.

        Args:
            queries: (q, F).
            similarities: (q, s * k) of all shards.
            rows: (q, s * k).
            k: neighbors.
        """
        similarities, rows = _in_order(similarities.numpy(), rows.numpy())
        similarities, rows = similarities[:, :k].contiguous(), rows[:, :k].contiguous()
        self._complete(queries, similarities, rows)
        return rows

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
    def from_bytes(cls, data: bytes, flags: int = 0) -> "ApproximateIndex":
        """Read what `to_bytes` returned. Verify the hash of the bytes before: FAISS may crash on damaged ones.

        Args:
            data: the bytes.
            flags: FAISS's, how to read them.

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
            return cls(faiss.deserialize_index(body, flags), str(factory))
        except (ValueError, RuntimeError) as cause:
            raise DataError(f"the index is damaged ({reason_of(cause)}); build it again") from cause


def _in_order(similarities: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """FAISS's results (q, k) by similarity, equal ones by row; -inf and -1 at the end for neighbors it did not find."""
    similarities = np.where(rows < 0, -np.inf, similarities).astype(np.float32)
    # Neighbors that FAISS did not find have row -1, which would sort before row 0.
    last_if_absent = np.where(rows < 0, np.iinfo(np.int64).max, rows)
    order = np.lexsort((last_if_absent, -similarities), axis=1)
    columns = torch.from_numpy(order)
    return torch.from_numpy(similarities).gather(1, columns), torch.from_numpy(rows).gather(1, columns)
