"""index(): a folder to search in: the embeddings, a FAISS index unless it is exact, and a manifest that vouches for both."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core import environment, rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.files import write_text
from reptk.embeddings import as_parquet, manifest
from reptk.embeddings.embeddings import SUFFIXES, Checked, Embeddings, comparable, existing, writing
from reptk.embeddings.manifest import EMBEDDINGS, FAISS, MANIFEST
from reptk.embeddings.place import check_room, check_writable
from reptk.embeddings.progress import progress, working
from reptk.embeddings.rows import Rows, Whole, rows_per_block
from reptk.neighbors import ApproximateIndex, engine_name, recommended_index, rerank, search

RECALL_K, SAMPLE = 10, 1000
"""Recall is measured at so many neighbours, of so many images of the index itself."""

CANDIDATES, LEAST_CANDIDATES = 4, 100
"""An approximate index is asked for so many times k rows, and at least so many, which the stored vectors then rank."""


@dataclass(frozen=True)
class Index:
    """What can be searched.

    Args:
        embeddings: of unit length.
        kind: "Flat" (exact), or FAISS's name of an approximate one.
        recall: share of the exact 10 nearest neighbours that it finds; 1 where it is exact.
        approximate: `reptk.neighbors.Approximate`, None where it is exact.
        path: its folder or file; None if it is in memory only.
    """

    embeddings: Embeddings
    kind: str = "Flat"
    recall: float = 1.0
    approximate: ApproximateIndex | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k most similar images of each query, best first.

        Args:
            queries: (q, F) of unit length.
            k: neighbours.
            exclude: (q,) numbers of images that are not to be found, -1 for none.

        Returns:
            similarities and numbers (q, k); -1 where an approximate index found fewer.

        Raises:
            DataError: queries of another width, or not finite.
            UsageError: k below 1, or beyond what there is.
        """
        self._check(queries, k, exclude)
        bank = self.embeddings.vectors
        if self.approximate is None:
            return _exact(bank, queries, k, exclude)
        asked = min(max(CANDIDATES * k, LEAST_CANDIDATES), len(bank))
        _, rows = self.approximate.search(queries.float(), asked)
        return rerank(bank, queries, rows, k, exclude)

    def _check(self, queries: Tensor, k: int, exclude: Tensor | None) -> None:
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.width:
            raise DataError(
                f"the index holds embeddings of {self.embeddings.width} values, the queries are {tuple(queries.shape)}; they "
                "must come from the same encoder"
            )
        if not queries.isfinite().all():
            raise DataError("queries hold NaN or infinity")
        available = len(self) - (exclude is not None)
        if not 1 <= k <= available:
            raise UsageError(f"k must be 1 to {available}, which is how many images there are, got {k}")

    @classmethod
    def open(cls, place: str | Path, *, verify: bool = False) -> "Index":
        """An index folder, or a file of embeddings, which is searched exactly.

        Args:
            place: where it is.
            verify: hold embeddings against their hash whatever their size.

        Raises:
            DataError: missing, damaged, foreign, or of a newer reptk.
        """
        path = Path(place)
        if not path.is_dir():
            if not path.exists() and path.suffix.lower() not in SUFFIXES:
                raise DataError(f"no index {path}. Make one: reptk index EMBEDDINGS --out {path}")
            return cls(comparable(Embeddings.load(path), path.name), path=path)
        said = manifest.read(path)
        manifest.verify_embeddings(path, said, verify)
        kept, approximate, size = Embeddings.load(path / EMBEDDINGS), None, (said["count"], said["width"])
        if said["kind"] != "Flat":
            approximate = ApproximateIndex.from_bytes(manifest.verified_faiss(path, said))
        for name, part in ((EMBEDDINGS, kept), (FAISS, approximate)):
            if part is not None and (len(part), part.width) != size:
                raise DataError(manifest.damaged(path, f"{name} is {len(part):,} x {part.width}"))
        return cls(kept, said["kind"], said["recall"]["value"], approximate, path)


def index(embeddings: str | Path | Embeddings, *, out: str | Path, kind: str = "auto", force: bool = False) -> Index:
    """Build an index and keep it in a folder that can be moved as a whole.

    Args:
        embeddings: a file, or what `embed` returned.
        out: the folder.
        kind: "Flat": exact; FAISS's name of an approximate index ("IVF256,Flat", "HNSW32", "IVF256,PQ32"), whose recall is
            measured; "auto": exact unless there are so many images that it would take long.
        force: put it in the place of an index that is there.

    Raises:
        DataError: no embeddings, damaged, or vectors that cannot be compared.
        UsageError: FAISS does not know this kind, or `out` is taken.
        EnvironmentProblem: FAISS is missing, or `out` cannot be written.
    """
    place = _check_out(Path(out), force)
    source = embeddings if isinstance(embeddings, Embeddings) else existing(embeddings)
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        unfinished.mkdir()
        _fill(unfinished, source, kind)
        _put(unfinished, place)
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write {place}: {cause.strerror or cause}. Choose another --out") from cause
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Index.open(place)


def _fill(folder: Path, source: Path | Embeddings, kind: str) -> None:
    _keep(source, folder / EMBEDDINGS)
    kept = Embeddings.load(folder / EMBEDDINGS)
    made = Index(kept, _advised(kept) if kind == "auto" else kind)
    since = time.perf_counter()
    if made.kind != "Flat":
        approximate = _build(kept, made.kind)
        (folder / FAISS).write_bytes(approximate.to_bytes())
        made = Index(kept, made.kind, approximate=approximate)
    with working("measuring recall"):
        measured = recall(made)
    said = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "kind": made.kind,
        "count": len(kept),
        "width": kept.width,
        "recall": measured,
        "seconds": round(time.perf_counter() - since, 3),
        "files": {path.name: manifest.vouched(path) for path in sorted(folder.iterdir())},
        "about": kept.about,
        "versions": environment.package_versions(),
        "commit": environment.git_commit(),
    }
    write_text(folder / MANIFEST, json.dumps(said, indent=2) + "\n")


def _advised(kept: Embeddings) -> str:
    return recommended_index(len(kept), kept.width) if engine_name() == "faiss" else "Flat"


def _keep(source: Path | Embeddings, place: Path) -> None:
    """A copy with vectors of unit length: of the file as it is where they have that, else block by block."""
    name = "this file" if isinstance(source, Embeddings) else str(source)
    if isinstance(source, Path) and source.suffix.lower() == ".safetensors":
        found, source = source, Embeddings.load(source)
        if _have_unit_length(source, name):
            check_room(place, found.stat().st_size)
            shutil.copyfile(found, place)
            return
    whole, blocks = _opened(source)
    checked = Checked()
    with writing(place, whole) as writer, progress("copying", whole.count) as advance:
        for rows in blocks:
            writer.add(checked.unit(rows))
            advance(len(rows.vectors))
        checked.finish(name)
        whole.about["normalised"] = True


def _have_unit_length(found: Embeddings, name: str) -> bool:
    checked = Checked()
    with progress("checking", len(found)) as advance:
        for rows in found.blocks():
            checked.unit(rows)
            advance(len(rows.vectors))
    checked.finish(name)
    return checked.was_unit


def _opened(source: Path | Embeddings) -> tuple[Whole, Iterator[Rows]]:
    if isinstance(source, Embeddings):
        return source.whole(), source.blocks()
    whole = as_parquet.head(source)
    return whole, as_parquet.blocks(source, rows_per_block(whole.width))


def recall(made: Index) -> dict[str, Any]:
    """How many of the exact nearest neighbours it finds: `value` at `k`, over `queries` of its own images."""
    bank, k = made.embeddings.vectors, min(RECALL_K, len(made) - 1)
    if made.kind == "Flat" or k < 1:
        return {"k": RECALL_K, "value": 1.0, "queries": 0}
    own = torch.randperm(len(bank), generator=rng.generator("recall", len(bank)))[:SAMPLE].sort().values
    queries = bank[own].float()
    _, true = _exact(bank, queries, k, own)
    _, found = made.search(queries, k, own)
    hits = (found[:, :, None] == true[:, None, :]).any(2)
    return {"k": k, "value": round(hits.double().mean().item(), 4), "queries": len(own)}


def _build(kept: Embeddings, kind: str) -> ApproximateIndex:
    done = 0
    with progress(f"building {kind}", len(kept)) as advance:

        def show(count: int) -> None:
            nonlocal done
            advance(count - done)
            done = count

        return ApproximateIndex.build(kept.vectors, kind, progress=show)


def _check_out(place: Path, force: bool) -> Path:
    is_index = place.is_dir() and {path.name for path in place.iterdir()} <= manifest.FILES
    if place.exists() and not is_index:
        raise UsageError(f"{place} exists and is no index, or holds more than one. Choose another --out")
    if place.exists() and not force:
        raise UsageError(f"{place} exists. Choose another --out, or put the new one in its place: --force")
    check_writable(place)
    return place


def _put(unfinished: Path, place: Path) -> None:
    """Move a folder into its place; one that is there goes when the new one stands."""
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        place.rename(old)
    unfinished.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _exact(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Similarities and rows (q, k) of the nearest; see `reptk.neighbors.search`."""
    blocks = [*search(bank, queries, k, exclude)]
    return torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks])
