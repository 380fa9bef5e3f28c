"""index(): a folder to search in: the embeddings, a FAISS index unless it is exact, and a manifest that vouches for both."""

import hashlib
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

from reptk import run
from reptk.catalogue import as_parquet
from reptk.catalogue.embeddings import SUFFIXES, Checked, Embeddings, comparable, existing, writing
from reptk.catalogue.nearest import exact, ranked
from reptk.catalogue.place import check_room, check_writable
from reptk.catalogue.progress import progress, working
from reptk.catalogue.rows import Rows, Whole, rows_per_block
from reptk.checkpoint import replace_text
from reptk.errors import DataError, EnvironmentProblem, UsageError
from reptk.keyed import generator
from reptk.neighbours import Approximate, kind_for

FORMAT, VERSION = "reptk index", 1
EMBEDDINGS, FAISS, MANIFEST = "embeddings.safetensors", "index.faiss", "manifest.json"

RECALL_K, SAMPLE = 10, 1000
"""Recall is measured at so many neighbours, of so many images of the index itself."""

CANDIDATES, LEAST_CANDIDATES = 4, 100
"""An approximate index is asked for so many times k rows, and at least so many, which the stored vectors then rank."""

HASHED_BYTES = 1 << 30
"""Embeddings up to this size are held against their hash whenever an index is opened, larger ones by their length."""


@dataclass(frozen=True)
class Index:
    """What can be searched.

    Args:
        embeddings: of unit length.
        kind: "Flat" (exact), or FAISS's name of an approximate one.
        recall: share of the exact 10 nearest neighbours that it finds; 1 where it is exact.
        approximate: `reptk.neighbours.Approximate`, None where it is exact.
        path: its folder or file; None if it is in memory only.
    """

    embeddings: Embeddings
    kind: str = "Flat"
    recall: float = 1.0
    approximate: Approximate | None = None
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
            return exact(bank, queries, k, exclude)
        asked = min(max(CANDIDATES * k, LEAST_CANDIDATES), len(bank))
        _, rows = self.approximate.search(queries.float(), asked)
        return ranked(bank, queries, rows, k, exclude)

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
        manifest = _manifest(path)
        _verify(path, manifest, verify)
        approximate = None if manifest["kind"] == "Flat" else _read_back(path, manifest)
        index = cls(
            Embeddings.load(path / EMBEDDINGS), manifest["kind"], manifest["recall"]["value"], approximate, path
        )
        if (len(index), index.embeddings.width) != (manifest["count"], manifest["width"]):
            raise DataError(_damaged(path, f"{EMBEDDINGS} is {len(index):,} x {index.embeddings.width}"))
        return index


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
    made = Index(kept, kind_for(len(kept), kept.width) if kind == "auto" else kind)
    since = time.perf_counter()
    if made.kind != "Flat":
        approximate = _build(kept, made.kind)
        (folder / FAISS).write_bytes(approximate.to_bytes())
        made = Index(kept, made.kind, approximate=approximate)
    with working("measuring recall"):
        measured = recall(made)
    said = {
        "format": FORMAT,
        "version": VERSION,
        "kind": made.kind,
        "count": len(kept),
        "width": kept.width,
        "recall": measured,
        "seconds": round(time.perf_counter() - since, 3),
        "files": {path.name: _vouched(path) for path in sorted(folder.iterdir())},
        "about": kept.about,
        "versions": run.versions(),
        "commit": run.commit(),
    }
    replace_text(folder / MANIFEST, json.dumps(said, indent=2) + "\n")


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
    own = torch.randperm(len(bank), generator=generator("recall", len(bank)))[:SAMPLE].sort().values
    queries = bank[own].float()
    _, true = exact(bank, queries, k, own)
    _, found = made.search(queries, k, own)
    hits = (found[:, :, None] == true[:, None, :]).any(2)
    return {"k": k, "value": round(hits.double().mean().item(), 4), "queries": len(own)}


def _build(kept: Embeddings, kind: str) -> Approximate:
    done = 0
    with progress(f"building {kind}", len(kept)) as advance:

        def show(count: int) -> None:
            nonlocal done
            advance(count - done)
            done = count

        return Approximate.build(kept.vectors, kind, progress=show)


def _read_back(path: Path, manifest: dict[str, Any]) -> Any:
    """The FAISS index: its bytes are parsed by code that trusts them, so those that are parsed are those that were hashed."""
    _said(path, manifest, FAISS)
    content = (path / FAISS).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"][FAISS].get("sha256"):
        raise DataError(_damaged(path, f"{FAISS} has another hash than {MANIFEST} says, so it is not read"))
    return Approximate.from_bytes(content)


def _check_out(place: Path, force: bool) -> Path:
    if place.exists() and not (place.is_dir() and (place / MANIFEST).is_file()):
        raise UsageError(f"{place} exists and is no index. Choose another --out")
    if place.exists() and not force:
        raise UsageError(f"{place} exists. Choose another --out, or put the new one in its place: --force")
    if place.exists():
        _manifest(place, any_version=True)
    check_writable(place)
    return place


def _put(unfinished: Path, place: Path) -> None:
    """Move a folder into its place; one that is there goes when the new one stands."""
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        place.rename(old)
    unfinished.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _manifest(path: Path, *, any_version: bool = False) -> dict[str, Any]:
    try:
        said = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        foreign = not isinstance(said, dict) or said.get("format") != FORMAT
    except FileNotFoundError as cause:
        raise DataError(
            f"{path} is no index: it has no {MANIFEST}. Make one: reptk index EMBEDDINGS --out ..."
        ) from cause
    except (OSError, ValueError) as cause:
        raise DataError(_damaged(path, f"{MANIFEST} cannot be read: {cause}")) from cause
    if foreign:
        raise DataError(f"{path} is no index of reptk: its {MANIFEST} is of something else")
    if any_version:
        return said
    if not isinstance(said.get("version"), int) or said["version"] > VERSION:
        raise DataError(f"{path} was made by a newer reptk (version {said.get('version')}); update reptk to read it")
    needed = {"kind": str, "count": int, "width": int, "files": dict, "recall": dict}
    if not all(isinstance(said.get(name), kind) for name, kind in needed.items()) or "value" not in said["recall"]:
        raise DataError(_damaged(path, f"{MANIFEST} is incomplete"))
    return said


def _verify(path: Path, manifest: dict[str, Any], every: bool) -> None:
    """Hold the embeddings against what the manifest says of them."""
    said = _said(path, manifest, EMBEDDINGS)
    if (every or said["bytes"] <= HASHED_BYTES) and _sha256(path / EMBEDDINGS) != said.get("sha256"):
        raise DataError(_damaged(path, f"{EMBEDDINGS} has another hash than {MANIFEST} says"))


def _said(path: Path, manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """What the manifest says of a file that is there and has its length."""
    file, said = path / name, manifest["files"].get(name)
    if not file.is_file() or not isinstance(said, dict):
        raise DataError(_damaged(path, f"{name} is missing"))
    if file.stat().st_size != said.get("bytes"):
        raise DataError(_damaged(path, f"{name} has another length than {MANIFEST} says"))
    return said


def _vouched(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, why: str) -> str:
    return f"the index {path} is damaged: {why}. Build it again: reptk index EMBEDDINGS --out {path} --force"
