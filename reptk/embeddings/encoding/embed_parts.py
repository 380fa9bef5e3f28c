"""Embed into a folder, one part after another and on as many ranks as there are; parts that are there are not computed again.

Every rank takes the next part that no rank has taken. A part is a file that appears as a whole, so whatever interrupts the
ranks, the next run finds what is done. The manifest is written last, and readers go by it.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from reptk.core import distributed
from reptk.core.counts import format_count, verb_form
from reptk.core.errors import DataError, EnvironmentProblem, NumericalError, UsageError
from reptk.core.file_locks import try_lock
from reptk.core.files import sweep_leftovers
from reptk.core.name_lists import first_names_and_count
from reptk.core.progress import progress
from reptk.core.stop_signals import Stopped
from reptk.embeddings.encoding.embedder import NOT_FINITE_CAUSE, Embedder
from reptk.embeddings.encoding.embedding_job import EmbeddingJob
from reptk.embeddings.encoding.encode_images import MAX_LISTED_REASONS
from reptk.embeddings.encoding.image_sources import ImageSource
from reptk.embeddings.encoding.part_plan import Plan, VerifiedPart, make_plan
from reptk.embeddings.encoding.part_worker import PartWorker, SkippedByRank
from reptk.embeddings.encoding.verify_parts import PartCheck, check_part, listed_records
from reptk.embeddings.files import parts_manifest
from reptk.embeddings.files.output_path import check_removal
from reptk.embeddings.files.parts_manifest import LOCK_NAME, REPLACED_NAME, part_paths
from reptk.embeddings.files.row_blocks import Header, dtype_name
from reptk.embeddings.files.string_array import StringArray

MAX_LISTED = 3


def embed_parts(
    folder: Path,
    source: ImageSource,
    embedder: Embedder,
    header: Header,
    job: EmbeddingJob,
) -> None:
    """Bring a folder of parts up to date with the images of a source. All ranks have to call this.

    Args:
        folder: it need not exist.
        source: the images; the same on all ranks.
        embedder: computes the vectors.
        header: of all embeddings.
        job: how. Its `report` is called on every rank, before work starts and after an interruption.

    Raises:
        UsageError: another process embeds into this folder.
        DataError: the parts that are there were computed by another encoder, or in another way; the ranks have other images;
            there are no images that can be read; many of the images that were embedded are gone.
        NumericalError: no image has an embedding that is finite and not zero.
        EnvironmentProblem: a disk is full, or another rank has ended.
    """
    try:
        with _locked_folder(folder):
            _embed(folder, source, embedder, header, job)
    except Stopped as stopped:
        count = format_count(len(part_paths(folder)), "part")
        job.report(f"stopped by {stopped.signal_name}; {folder} has {count}. To go on: the same command again")
        raise
    except (RuntimeError, torch.distributed.DistError) as error:
        if distributed.world_size() == 1 or not distributed.is_lost_connection(error):
            raise
        raise EnvironmentProblem(
            f"another rank has ended; the parts that are done are in {folder}, and the same command goes on"
        ) from error


def _embed(folder: Path, source: ImageSource, embedder: Embedder, header: Header, job: EmbeddingJob) -> None:
    _check_same_images(source)
    replaced = distributed.run_on_main(lambda: _replaced_parts(folder, force=job.force))
    verified, damaged = _verify(folder, source, header, replaced)
    for line in _damage_lines(damaged):
        job.report(line)
    plan = distributed.run_on_main(lambda: make_plan(folder, source, verified, job.max_part_images, replaced))
    job.report(plan.describe())
    if not job.prune:
        check_removal(folder, plan.num_removed_rows, sum(part.record["rows"] for part in verified))
    start = time.perf_counter()
    worker = PartWorker(folder, source, embedder, header, job)
    records = worker.run(plan.planned, plan.num_to_embed)
    of_all_ranks = distributed.all_gather_objects((records, worker.skipped()))
    header.metadata |= {"seconds": round(time.perf_counter() - start, 3), "embedded": plan.num_to_embed}
    distributed.run_on_main(lambda: _finish(folder, header, plan, of_all_ranks, len(source)))


def _replaced_parts(folder: Path, *, force: bool) -> list[str]:
    """Return the names of parts that are there and are not to be used, which stay until the manifest lists others."""
    if not force:
        return parts_manifest.read_replaced(folder)  # of a run with --force that was interrupted
    names = [path.name for path in part_paths(folder)]
    if names:
        parts_manifest.write_replaced(folder, names)
    return names


def _finish(
    folder: Path,
    header: Header,
    plan: Plan,
    of_all_ranks: Sequence[tuple[list[dict[str, Any]], SkippedByRank]],
    num_images: int,
) -> None:
    """Write the manifest, and remove the parts that it no longer lists.

    Args:
        folder: of the parts.
        header: of all embeddings.
        plan: what was to be done.
        of_all_ranks: the parts that each rank has written, and which images it has left out.
        num_images: of the source.
    """
    records = [part.record for part in plan.unchanged]
    for written, _ in of_all_ranks:
        records += written
    records.sort(key=_number_of)
    num_rows = sum(record["rows"] for record in records)
    if num_rows == 0:
        # The earlier embeddings stay.
        for written, _ in of_all_ranks:
            for record in written:
                (folder / record["name"]).unlink()
        (folder / REPLACED_NAME).unlink(missing_ok=True)
        raise _nothing_embedded(num_images, [skipped for _, skipped in of_all_ranks])
    metadata = dict(header.metadata)
    in_parts = [record["skipped"] for record in records if "skipped" in record]
    num_skipped = sum(of_part["count"] for of_part in in_parts)
    num_skipped += sum(skipped.num_in_no_part for _, skipped in of_all_ranks)
    if num_skipped:
        reasons = [reason for _, skipped in of_all_ranks for reason in skipped.reasons]
        reasons += [reason for of_part in in_parts for reason in of_part["first"] if reason not in reasons]
        metadata["skipped"] = {"count": num_skipped, "first": reasons[:MAX_LISTED_REASONS]}
    manifest = {"rows": num_rows, "width": header.width, "values": dtype_name(header.dtype)}
    manifest |= {"encoder_sha256": metadata["encoder"]["sha256"], "preprocessing": metadata["preprocessing"]}
    manifest |= {"classes": list(header.classes), "about": metadata}
    parts_manifest.write_manifest(folder, manifest, records)
    for name in plan.obsolete:
        (folder / name).unlink(missing_ok=True)
    # After the parts, whose numbers are free from now on.
    (folder / REPLACED_NAME).unlink(missing_ok=True)


def _number_of(record: dict[str, Any]) -> int:
    return parts_manifest.part_number(Path(record["name"]))


def _nothing_embedded(num_images: int, skipped: Sequence[SkippedByRank]) -> DataError | NumericalError:
    reasons = [reason for of_rank in skipped for reason in of_rank.reasons]
    listed = "\n  ".join(reasons[:MAX_LISTED_REASONS])
    images = format_count(num_images, "image")
    if any(of_rank.num_without_vector for of_rank in skipped):
        return NumericalError(f"no usable embedding of {images}: {NOT_FINITE_CAUSE}. The first of them:\n  {listed}")
    return DataError(f"none of {images} can be embedded; the first of them:\n  {listed}")


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Create the folder, and let no other run write into it while the block runs."""
    with ExitStack() as stack:

        def lock() -> None:
            parts_manifest.check_output_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o644)
            stack.callback(os.close, descriptor)  # which releases the lock
            if try_lock(descriptor) is False:
                raise UsageError(f"another process embeds into {folder} now. Wait for its end, or choose another --out")
            sweep_leftovers(folder)

        distributed.run_on_main(lock)
        yield


def _check_same_images(source: ImageSource) -> None:
    """Raise DataError unless all ranks have listed the same images: the plan goes by their numbers."""
    digest = hashlib.sha256()
    for group in source.groups:
        if not group.shards:  # which say what is in them
            ids = StringArray.from_strings(group.ids)
            digest.update(ids.data)
            digest.update(ids.offsets)
        # Machines may have the same shards at different paths.
        shards = [(shard.start, shard.record()) for shard in group.shards]
        digest.update(repr(shards).encode("utf-8", "surrogateescape"))
    digests = distributed.all_gather_objects((len(source), digest.hexdigest()))
    if len(set(digests)) > 1:
        counts = ", ".join(f"{count:,}" for count, _ in digests)
        raise DataError(
            f"the ranks have listed different images ({counts}): files were added or removed meanwhile, or machines see "
            "different folders. Start again"
        )


def _verify(
    folder: Path, source: ImageSource, header: Header, replaced: Sequence[str]
) -> tuple[list[VerifiedPart], list[str]]:
    """Return the parts that are whole, and what is wrong with the others, but for those that are `replaced`.

    Each rank reads some of them.
    """
    paths, listed = distributed.run_on_main(lambda: (part_paths(folder), listed_records(folder)))
    unused = set(replaced)
    paths = [path for path in paths if path.name not in unused]
    listed = {name: record for name, record in listed.items() if name not in unused}
    is_of_files = all(group.paths is not None or group.shards for group in source.groups)
    rank_paths = paths[distributed.rank() :: distributed.world_size()]
    rank_checks: list[tuple[str, PartCheck]] = []
    with progress("verifying", len(rank_paths)) as advance:
        for path in rank_paths:
            rank_checks.append((path.name, check_part(path, listed.get(path.name), header, is_of_files=is_of_files)))
            advance(1)
    missing = sorted(set(listed) - {path.name for path in paths})
    verified = []
    damages = [f"{name} is missing" for name in missing]
    differences: dict[str, Sequence[str]] = {}
    for checks in distributed.all_gather_objects(rank_checks):
        for name, check in checks:
            if check.part is None:
                damages.append(f"{name} {check.damage}")
            elif check.differences:
                differences[name] = check.differences
            else:
                verified.append(check.part)
    if differences:
        first = min(differences)
        raise DataError(
            f"{folder} holds embeddings that were computed in another way ({first}): {'; '.join(differences[first])}. Choose "
            "another --out, or embed all images again: --force"
        )
    verified.sort(key=lambda part: part.number)
    return verified, sorted(damages)


def _damage_lines(damages: Sequence[str]) -> list[str]:
    if not damages:
        return []
    listed = first_names_and_count(damages, MAX_LISTED)
    are = verb_form(len(damages), "is", "are")
    return [f"  computed again, since {format_count(len(damages), 'part')} {are} not whole: {listed}"]
