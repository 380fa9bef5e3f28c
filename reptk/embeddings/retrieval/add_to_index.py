"""add_to_index(): images that are new go into an index that exists, without training it or linking its graph again."""

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.counts import format_count, verb_form
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import DataError, UsageError
from reptk.core.file_locks import try_lock
from reptk.core.files import atomic_folder
from reptk.core.progress import progress
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.files.embeddings_file import embeddings_file, existing_file
from reptk.embeddings.files.row_blocks import Header, RowBlock, relabeled
from reptk.embeddings.retrieval import index_manifest
from reptk.embeddings.retrieval.build_index import write_manifest
from reptk.embeddings.retrieval.index_manifest import EMBEDDINGS_NAME, FAISS_NAME, MANIFEST_NAME
from reptk.embeddings.retrieval.similarity_index import Index
from reptk.embeddings.unit_length import UnitLengthNormalizer

SAME_VECTOR = 4e-3
"""Largest difference of a value of two vectors of unit length that are the same but for the rounding of half precision."""


class Addition(NamedTuple):
    """What was added to an index.

    index: with all images.
    num_added: those that are new.
    num_changed: those that were in it by another vector, which stays.
    """

    index: Index
    num_added: int
    num_changed: int


def add_to_index(index: str | Path, embeddings: str | Path | Embeddings, *, trust: bool = False) -> Addition:
    """Add the embeddings whose ids are not in an index yet. Readers see the index with all of them, or the earlier one.

    Args:
        index: the folder.
        embeddings: a file, a folder of parts, or what `embed` returned.
        trust: see `Index.open`.

    Raises:
        UsageError: another process adds to this index.
        DataError: there is no such index, or it is damaged or not the user's; the embeddings are of another encoder, of
            another preprocessing or of images in another folder, or cannot be compared.
        UsageError: FAISS cannot add to this kind of index, or its lists are on the disk.
        EnvironmentProblem: FAISS is missing, or the folder cannot be written.
    """
    folder = Path(index)
    index_manifest.read_manifest(folder)
    with _locked(folder):
        return _add(folder, embeddings, trust)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other process add to an index while the block runs, which reads it, and puts another folder in its place."""
    with explain_write_errors(folder):
        # The manifest, since each index has one. A network file system locks only what is open for writing.
        descriptor = os.open(folder / MANIFEST_NAME, os.O_RDWR)
    try:
        is_locked = try_lock(descriptor)
        # A process that has just ended may have replaced the folder before the lock.
        is_current = os.path.samestat(os.fstat(descriptor), (folder / MANIFEST_NAME).stat())
        if is_locked is False or not is_current:
            raise UsageError(f"another process adds to {folder} now. Run the same command again when it has ended")
        yield
    finally:
        os.close(descriptor)  # which releases the lock


def _add(folder: Path, embeddings: str | Path | Embeddings, trust: bool) -> Addition:
    manifest = index_manifest.read_manifest(folder)
    if manifest["kind"] != "Flat" and not trust and not index_manifest.is_built_here(manifest):
        raise DataError(
            f"{folder} was not built by you on this machine, so its {FAISS_NAME} is not read. Build it again from its "
            "embeddings (reptk index), or trust it: --trust"
        )
    opened = Index.open(folder, trust=trust)
    if opened.is_on_disk:
        raise UsageError(
            f"the lists of {folder} are on the disk, and nothing can be added to them; build the index again: reptk index ... "
            f"--out {folder} --on-disk --force"
        )
    name = "these embeddings"
    if not isinstance(embeddings, Embeddings):
        name = str(embeddings)
        embeddings = Embeddings.load(existing_file(embeddings).path)
    _check_alike(opened.embeddings, embeddings, name)
    rows, num_changed = _new_rows(opened.embeddings, embeddings)
    if num_changed:
        have = verb_form(num_changed, "has", "have")
        warnings.warn(
            f"{format_count(num_changed, 'image')} of {name} {have} another vector than in {folder}, which stays. To replace "
            f"it, build the index again: reptk index ... --out {folder} --force",
            stacklevel=3,
        )
    if not len(rows):
        return Addition(opened, 0, num_changed)
    with explain_write_errors(folder), atomic_folder(folder, force=True) as temporary:
        _write(temporary, opened, embeddings, rows, name)
    return Addition(Index.open(folder, trust=True), len(rows), num_changed)


def _check_alike(old: Embeddings, new: Embeddings, name: str) -> None:
    old.check_comparable(new)
    then, now = old.metadata.get("preprocessing"), new.metadata.get("preprocessing")
    if then and now and then != now:
        keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        listed = "; ".join(f"{key} was {then.get(key)}, now {now.get(key)}" for key in keys)
        raise DataError(f"{name} was embedded in another way than the index: {listed}. Embed the images alike")
    if old.paths is not None:
        if new.paths is None:
            raise DataError(
                f"the index says which files its images are, and {name} does not; build another index of it"
            )
        old_root, new_root = old.metadata.get("root"), new.metadata.get("root")
        if old_root != new_root:
            raise DataError(
                f"the images of the index are below {old_root}, those of {name} below {new_root}; "
                "build another index of those, or embed a folder that holds both"
            )
    if old.classes and not new.classes and bool((new.labels >= 0).any()):
        raise DataError(f"the labels of {name} have no class names, as those of the index have")


def _new_rows(old: Embeddings, new: Embeddings) -> tuple[Tensor, int]:
    """Return the rows of `new` whose ids are not in `old`, and how many of the others have another vector there."""
    row_of = {image_id: row for row, image_id in enumerate(old.ids)}
    rows: list[int] = []
    num_changed = 0
    first = 0
    for block in new.blocks():
        earlier = torch.tensor([row_of.get(image_id, -1) for image_id in block.ids], dtype=torch.long)
        is_known = earlier >= 0
        rows += (first + (~is_known).nonzero().flatten()).tolist()
        if is_known.any():
            vectors = torch.nn.functional.normalize(block.vectors[is_known].float(), dim=1)
            difference = (vectors - old.vectors[earlier[is_known]].float()).abs().amax(1)
            num_changed += int((difference > SAME_VECTOR).sum())
        first += len(block.ids)
    return torch.tensor(rows, dtype=torch.long), num_changed


def _write(folder: Path, index: Index, new: Embeddings, rows: Tensor, name: str) -> None:
    """Write the index with the rows of `new` behind the earlier ones into an empty folder."""
    start = time.perf_counter()
    old = index.embeddings
    header = old.header()
    header.max_rows += len(rows)
    header.classes = (*old.classes, *(name for name in new.classes if name not in old.classes))
    header.ids_are_paths = header.ids_are_paths and new.ids is new.paths
    header.has_file_stats = header.has_file_stats and new.file_stats is not None
    header.has_non_utf8_names = header.has_non_utf8_names or new.header().has_non_utf8_names
    normalizer = UnitLengthNormalizer()
    with embeddings_file(folder / EMBEDDINGS_NAME).writer(header) as writer, progress("copying", len(old)) as advance:
        for block in old.blocks():
            writer.add(block)
            advance(len(block.vectors))
        for block in _selected_blocks(new, rows, header):
            writer.add(normalizer.normalize(block))
        normalizer.check(name)
    written = Embeddings.load(folder / EMBEDDINGS_NAME, verify=False)
    approximate = index.approximate
    if approximate is not None:
        approximate.add(written.vectors[len(old) :])
        (folder / FAISS_NAME).write_bytes(approximate.to_bytes())
    write_manifest(folder, Index(written, index.kind, approximate=approximate), start)


def _selected_blocks(new: Embeddings, rows: Tensor, header: Header) -> Iterator[RowBlock]:
    """Yield those of the rows that are in each block, with labels that count in the classes of the header."""
    first = 0
    for block in new.blocks():
        count = len(block.vectors)
        of_block = rows[(rows >= first) & (rows < first + count)] - first
        first += count
        if not len(of_block):
            continue
        labels = block.labels[of_block]
        if new.classes:
            labels = relabeled(labels, new.classes, header.classes)
        file_stats = None
        if header.has_file_stats and block.file_stats is not None:
            file_stats = block.file_stats[of_block]
        paths = None
        if header.has_paths and block.paths is not None:
            paths = _strings_at(block.paths, of_block)
        yield RowBlock(block.vectors[of_block], labels, _strings_at(block.ids, of_block), paths, file_stats)


def _strings_at(strings: Sequence[str], rows: Tensor) -> list[str]:
    return [strings[row] for row in rows.tolist()]
