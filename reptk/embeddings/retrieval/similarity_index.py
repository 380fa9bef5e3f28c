"""Index: embeddings that can be searched, exactly or by an approximate index of FAISS."""

import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.errors import DataError
from reptk.core.file_records import read_replaceable
from reptk.core.files import recover_folder
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.files.embeddings_file import SUFFIXES
from reptk.embeddings.files.parts_manifest import is_parts_folder
from reptk.embeddings.retrieval import index_manifest, search_index
from reptk.embeddings.retrieval.index_manifest import EMBEDDINGS_NAME, FAISS_NAME, LISTS_NAME, MANIFEST_NAME
from reptk.embeddings.unit_length import with_unit_length
from reptk.neighbors import ApproximateIndex, open_on_disk, rerank, search

CANDIDATES_PER_NEIGHBOR = 4
MIN_CANDIDATES = 100
"""An approximate index returns max(CANDIDATES_PER_NEIGHBOR * k, MIN_CANDIDATES) rows, which their stored vectors then rank."""


@dataclass(frozen=True)
class Index:
    """Embeddings that can be searched by cosine similarity.

    Args:
        embeddings: vectors of unit length.
        kind: "Flat" (exact), or the FAISS factory string of an approximate index.
        recall: share of the exact 10 nearest neighbors that it finds; 1 if it is exact.
        approximate: the approximate index, None if this one is exact.
        path: its folder or file, None if it is in memory only.
    """

    embeddings: Embeddings
    kind: str = "Flat"
    recall: float = 1.0
    approximate: ApproximateIndex | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False, trust: bool = False) -> "Index":
        """Open an index folder, or a file or folder of embeddings, which are searched exactly.

        Args:
            path: the folder or file.
            verify: whether to check embeddings of any size against their hash.
            trust: whether to let FAISS read an approximate index that was not built by this user on this machine. Such a file
                could make it execute anything; without this, its embeddings are searched exactly, with a warning.

        Raises:
            DataError: it is missing, damaged, of another program, or of a newer reptk.
        """
        path = Path(path)
        recover_folder(path)
        if path.is_dir() and not is_parts_folder(path):
            return read_replaceable(path / MANIFEST_NAME, lambda: cls._open_folder(path, verify, trust))
        if not path.exists() and path.suffix.lower() not in SUFFIXES:
            raise DataError(f"no index {path}. Make one: reptk index EMBEDDINGS --out {shlex.quote(str(path))}")
        return cls(with_unit_length(Embeddings.load(path), path.name), path=path)

    @classmethod
    def _open_folder(cls, folder: Path, verify: bool, trust: bool) -> "Index":
        manifest = index_manifest.read_manifest(folder)
        index_manifest.verify_embeddings(folder, manifest, any_size=verify)
        embeddings = Embeddings.load(folder / EMBEDDINGS_NAME, verify=False)  # it has the hash that the manifest says
        approximate = None
        kind, recall = manifest["kind"], manifest["recall"]["value"]
        if kind != "Flat" and not trust and not index_manifest.is_built_here(manifest):
            warnings.warn(
                f"{folder} was not built by you on this machine, so its {FAISS_NAME} is not read, and search is exact. Build "
                "it again from its embeddings (reptk index), or trust it: --trust",
                stacklevel=4,
            )
            kind, recall = "Flat", 1.0
        if kind != "Flat":
            approximate = _open_approximate(folder, manifest, verify)
        # A valid file may still be that of another index, copied into the folder.
        for name, part in ((EMBEDDINGS_NAME, embeddings), (FAISS_NAME, approximate)):
            if part is not None and (len(part), part.width) != (manifest["count"], manifest["width"]):
                raise DataError(index_manifest.damaged_index_message(folder, f"{name} is {len(part):,} x {part.width}"))
        return cls(embeddings, kind, recall, approximate, folder)

    @property
    def is_on_disk(self) -> bool:
        """Whether the inverted lists of an approximate index are read from a file when they are searched."""
        return self.approximate is not None and self.path is not None and (self.path / LISTS_NAME).is_file()

    def close(self) -> None:
        """Do nothing: files are closed when nothing uses them."""

    def describe_kind(self) -> str:
        """Return how it is searched, e.g. `Flat (exact)`."""
        quality = "exact"
        if self.approximate is not None:
            quality = f"recall@10 {100 * self.recall:.1f} %"
        return f"{self.kind} ({quality})"

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """Return the row of the first image with each of these ids; see `Embeddings.row_of`."""
        return [self.embeddings.row_of(image_id) for image_id in ids]

    def vectors_of(self, rows: Sequence[int]) -> Tensor:
        """Return the vectors (r, F) float32 of rows."""
        return self.embeddings.vectors[list(rows)].float()

    def vector_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all rows as numbers (b,) and vectors (b, F), block by block."""
        first = 0
        for block in self.embeddings.blocks():
            yield torch.arange(first, first + len(block.vectors)), block.vectors
            first += len(block.vectors)

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return similarities and rows (q, k) of the most similar images; see `SearchIndex.search`."""
        self.check_queries(queries, k, exclude)
        try:
            return self._search(queries, k, exclude)
        except ValueError as cause:  # rows that are not finite or not of unit length, as those of an index are
            raise DataError(
                f"the index is damaged: {cause}. Build it again: reptk index EMBEDDINGS --out ..."
            ) from cause

    def _search(self, queries: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        bank = self.embeddings.vectors
        if self.approximate is None:
            return exact_search(bank, queries, k, exclude)
        # FAISS's similarities are those of compressed vectors; the stored ones rank the candidates exactly.
        _, candidates = self.approximate.search(queries.float(), self.num_candidates(k))
        self.check_candidates(candidates)
        return rerank(bank, queries, candidates, k, exclude)

    def num_candidates(self, k: int) -> int:
        """Return how many candidates of an approximate index are ranked by their stored vectors."""
        return min(max(CANDIDATES_PER_NEIGHBOR * k, MIN_CANDIDATES), len(self))

    def check_candidates(self, candidates: Tensor) -> None:
        """Raise DataError if an approximate index names rows that do not exist."""
        if candidates.numel() and int(candidates.max()) >= len(self):
            raise DataError("the index is damaged: it names rows that do not exist. Build it again: reptk index")

    def check_queries(self, queries: Tensor, k: int, exclude: Tensor | None) -> None:
        """Raise DataError or UsageError if these queries cannot be searched; see `search`."""
        search_index.check_queries(self, "the index", queries, k, exclude)


def _open_approximate(folder: Path, manifest: dict[str, Any], verify: bool) -> ApproximateIndex:
    content = index_manifest.read_verified_faiss(folder, manifest)
    if not index_manifest.has_lists(manifest):
        return ApproximateIndex.from_bytes(content)
    index_manifest.verify_lists(folder, manifest, any_size=verify)
    return open_on_disk(content, folder / LISTS_NAME)


def exact_search(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return similarities and rows (q, k) of the exact nearest neighbors of all queries; see `reptk.neighbors.search`."""
    similarities, rows = [], []
    for block_similarities, block_rows in search(bank, queries, k, exclude):
        similarities.append(block_similarities)
        rows.append(block_rows)
    return torch.cat(similarities), torch.cat(rows)
