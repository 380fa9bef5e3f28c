"""index(): a folder to search in: the embeddings, a FAISS index unless search is exact, and a manifest with their hashes."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from reptk.core import environment, rng
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import UsageError
from reptk.core.file_records import file_record, manifest_text
from reptk.core.files import atomic_folder, holds_only, recover_folder
from reptk.core.progress import progress, spinner
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.files.embeddings_file import embeddings_file, existing_file
from reptk.embeddings.files.output_path import check_parent_writable, check_space_for_vectors
from reptk.embeddings.files.parquet_file import ParquetFile
from reptk.embeddings.files.row_blocks import rows_per_block
from reptk.embeddings.retrieval import index_manifest
from reptk.embeddings.retrieval.index_manifest import EMBEDDINGS_NAME, FAISS_NAME, LISTS_NAME, MANIFEST_NAME
from reptk.embeddings.retrieval.similarity_index import Index, exact_search
from reptk.embeddings.unit_length import UnitLengthNormalizer
from reptk.neighbors import ApproximateIndex, build_on_disk, engine_name, lists_bytes, recommended_index
from reptk.neighbors.recall import found_shares

RECALL_K = 10
RECALL_QUERIES = 1000
"""Recall is measured at this k, with at most this many images of the index as queries."""


ON_DISK_BYTES = 4 << 30
"""Inverted lists that would be larger than this are built part by part, and stay on the disk."""


def index(
    embeddings: str | Path | Embeddings,
    *,
    out: str | Path,
    kind: str = "auto",
    on_disk: bool | None = None,
    force: bool = False,
) -> Index:
    """Build an index in a folder, which holds all it needs and can be moved.

    Args:
        embeddings: a file, a folder of parts, or what `embed` returned.
        out: the folder.
        kind: "Flat" for exact search; the FAISS factory string of an approximate index ("IVF256,Flat", "HNSW32",
            "IVF256,PQ32"), whose recall is measured; "auto" for exact search unless there are so many images that it would
            take long.
        on_disk: whether inverted lists ("IVF...") are built part by part and searched on the disk, with little memory; by
            default, if they are larger than 4 GiB (`ON_DISK_BYTES`).
        force: replace an index that exists.

    Raises:
        DataError: there are no embeddings, or they are damaged or hold vectors that cannot be compared.
        UsageError: FAISS does not know this kind, `out` exists, or `on_disk` is set for another kind.
        EnvironmentProblem: FAISS is missing, or `out` cannot be written.
    """
    folder = Path(out)
    _check_output_folder(folder, force)
    source: Path | Embeddings
    if isinstance(embeddings, Embeddings):
        source = embeddings
    else:
        source = existing_file(embeddings).path
        if source.is_dir():
            source = Embeddings.load(source)
    # The old index can be searched until the new one is complete.
    with explain_write_errors(folder), atomic_folder(folder, force=force) as temporary:
        _build(temporary, source, kind, on_disk)
    return Index.open(folder, trust=True)


def measure_recall(index: Index) -> dict[str, Any]:
    """Return the share of the exact nearest neighbors that an index finds.

    Returns:
        `value` at `k`, measured with `queries` images of the index, each of which is excluded from its own neighbors.
    """
    bank = index.embeddings.vectors
    k = min(RECALL_K, len(index) - 1)
    if index.kind == "Flat" or k < 1:
        return {"k": RECALL_K, "value": 1.0, "queries": 0}
    order = torch.randperm(len(bank), generator=rng.generator("recall", len(bank)))
    query_rows = order[:RECALL_QUERIES].sort().values  # in row order: the bank may be memory-mapped
    queries = bank[query_rows].float()
    exact, _ = exact_search(bank, queries, k, query_rows)
    _, rows = index.search(queries, k, query_rows)
    shares = found_shares(queries, rows, exact, query_rows, index.vectors_of)
    return {"k": k, "value": round(shares.double().mean().item(), 4), "queries": len(query_rows)}


def _build(folder: Path, source: Path | Embeddings, kind: str, on_disk: bool | None) -> None:
    """Write all files of the index into an empty folder."""
    _check_on_disk(kind, on_disk)  # before the vectors are copied
    _copy_normalized(source, folder / EMBEDDINGS_NAME)
    embeddings = Embeddings.load(folder / EMBEDDINGS_NAME)
    if kind == "auto":
        kind = _recommended_kind(embeddings)
        _check_on_disk(kind, on_disk)
    start = time.perf_counter()
    approximate = None
    if kind != "Flat":
        lists_path = None
        if on_disk or (on_disk is None and _has_large_lists(embeddings, kind)):
            lists_path = folder / LISTS_NAME
        approximate = _build_approximate(embeddings, kind, lists_path)
        (folder / FAISS_NAME).write_bytes(approximate.to_bytes())
    write_manifest(folder, Index(embeddings, kind, approximate=approximate), start)


def write_manifest(folder: Path, index: Index, start: float) -> None:
    """Measure the recall of an index, and write the manifest of its folder, which holds all other files.

    Args:
        folder: of the index.
        index: what the files are.
        start: when its building began, by `time.perf_counter`.
    """
    with spinner("measuring recall"):
        recall = measure_recall(index)
    embeddings = index.embeddings
    version = index_manifest.VERSION
    if (folder / LISTS_NAME).exists():
        version = index_manifest.VERSION_ON_DISK
    files = {path.name: file_record(path) for path in sorted(folder.iterdir())}
    index_manifest.sign_faiss(files)
    record = {
        "format": index_manifest.FORMAT,
        "version": version,
        "kind": index.kind,
        "count": len(embeddings),
        "width": embeddings.width,
        "recall": recall,
        "seconds": round(time.perf_counter() - start, 3),
        "files": files,
        "about": embeddings.metadata,
        "versions": environment.package_versions(),
        "commit": environment.git_commit(),
    }
    (folder / MANIFEST_NAME).write_text(manifest_text(record), encoding="utf-8")


def _check_on_disk(kind: str, on_disk: bool | None) -> None:
    """Raise UsageError if exact search, which has no lists, is to be on disk; `build_on_disk` refuses other kinds."""
    if on_disk and kind == "Flat":
        raise UsageError("only kinds of inverted lists are built on the disk, e.g. --kind IVF4096,PQ64")


def _recommended_kind(embeddings: Embeddings) -> str:
    # Without FAISS there are no approximate indexes.
    if engine_name() != "faiss":
        return "Flat"
    return recommended_index(len(embeddings), embeddings.width)


def _copy_normalized(source: Path | Embeddings, target: Path) -> None:
    """Copy embeddings with vectors of unit length to a safetensors file, without holding them in memory.

    A safetensors file whose vectors have unit length already is copied byte by byte.
    """
    name = str(source)
    if isinstance(source, Embeddings):
        name = "this file"
    if isinstance(source, Path) and source.suffix.lower() == ".safetensors":
        file, source = source, Embeddings.load(source)
        if _has_unit_length(source, name):
            check_space_for_vectors(target, file.stat().st_size)
            shutil.copyfile(file, target)
            return
    if isinstance(source, Embeddings):
        header = source.header()
        blocks = source.blocks()
    else:
        parquet = ParquetFile(source)
        header = parquet.read_header()
        blocks = parquet.read_blocks(rows_per_block(header.width))
    normalizer = UnitLengthNormalizer()
    with embeddings_file(target).writer(header) as writer, progress("copying", header.max_rows) as advance:
        for block in blocks:
            writer.add(normalizer.normalize(block))
            advance(len(block.vectors))
        normalizer.check(name)
        header.metadata["normalized"] = True


def _has_unit_length(embeddings: Embeddings, name: str) -> bool:
    """Return whether all vectors have unit length. Raises DataError if some can have none."""
    normalizer = UnitLengthNormalizer()
    with progress("checking", len(embeddings)) as advance:
        for block in embeddings.blocks():
            normalizer.normalize(block)
            advance(len(block.vectors))
    normalizer.check(name)
    return normalizer.all_unit


def _has_large_lists(embeddings: Embeddings, kind: str) -> bool:
    num_bytes = lists_bytes(embeddings.width, kind, len(embeddings))
    return num_bytes is not None and num_bytes > ON_DISK_BYTES


def _build_approximate(embeddings: Embeddings, kind: str, lists_path: Path | None) -> ApproximateIndex:
    """Build an index, with its inverted lists in the file `lists_path` unless that is None."""
    with progress(f"building {kind}", len(embeddings)) as advance:
        if lists_path is not None:
            return build_on_disk(embeddings.vectors, kind, lists_path, progress=advance)
        return ApproximateIndex.build(embeddings.vectors, kind, progress=advance)


def _check_output_folder(folder: Path, force: bool) -> None:
    recover_folder(folder)
    if folder.exists():
        # An empty folder, or one with files of an index alone: nothing else is ever deleted.
        if not holds_only(folder, index_manifest.FILE_NAMES):
            raise UsageError(f"{folder} exists and is no index, or holds more than one. Choose another --out")
        if not force:
            raise UsageError(f"{folder} exists. Choose another --out, or put the new one in its place: --force")
    check_parent_writable(folder)
