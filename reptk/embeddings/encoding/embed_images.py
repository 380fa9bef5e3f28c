"""embed(): images to embeddings, which are written while they are computed; images that cannot be read are skipped."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from reptk.core import distributed, environment
from reptk.core.counts import format_count
from reptk.core.errors import DataError, NumericalError
from reptk.core.progress import progress
from reptk.data import num_cpus
from reptk.data.decoding.decode import Jpeg
from reptk.data.decoding.resize import ResizeMode
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.embed_parts import embed_parts
from reptk.embeddings.encoding.embedder import NOT_FINITE_CAUSE, Embedder
from reptk.embeddings.encoding.embedding_job import EmbeddingJob
from reptk.embeddings.encoding.encode_images import SkippedImages, batches, encode, row_block
from reptk.embeddings.encoding.image_sources import ImageSource
from reptk.embeddings.encoding.open_images import open_images, set_preprocessing
from reptk.embeddings.encoding.update import EarlierVectors, open_earlier
from reptk.embeddings.files.embeddings_file import embeddings_file
from reptk.embeddings.files.output_path import check_removal
from reptk.embeddings.files.row_blocks import Header, RowBlock, concatenate
from reptk.embeddings.files.string_array import are_utf8
from reptk.models.encoder import Encoder

T = TypeVar("T")

DAY_SECONDS = 24 * 3600.0
"""How long the ranks that write parts wait for each other."""


def embed(
    encoder: str | Path | Encoder,
    data: str | Path | Tensor | dict[str, Any],
    *,
    out: str | Path | None = None,
    split: str | None = None,
    half: bool = False,
    size: int | None = None,
    pretrained: bool = False,
    weights: str | None = None,
    crop: float | None = None,
    resize: ResizeMode | None = None,
    jpeg: Jpeg = "auto",
    device: str = "auto",
    batch_size: int = 128,
    workers: int | None = None,
    strict: bool = False,
    force: bool = False,
    update: bool = False,
    images_per_part: int | None = None,
    prune: bool = False,
    report: Callable[[str], None] | None = None,
) -> Embeddings:
    """Compute vectors of unit length of images, preprocessed as evaluation does it.

    Args:
        encoder: a run's folder, its model folder, a timm name, or an `Encoder`.
        data: a folder, also of Parquet files that hold the images; a table of paths, labels and ids as CSV, JSON lines or
            Parquet (see `reptk.data.layouts.image_table`); a data set's name or its table of a recipe
            (`{"name": "digits", ...}`); or images (n, 3, H, W) uint8.
        out: the file to write, .safetensors or .parquet, or a folder of parts, which several ranks of torchrun or SLURM write
            together; by default the embeddings stay in memory.
        split: train, bank or query of a data set, or a split of a folder or a table such as test; by default every distinct
            image.
        half: store float16: half the size, similarities within 1e-3.
        size: input size in pixels of a timm backbone.
        pretrained, weights: of a timm backbone; see `Encoder`.
        crop: share of the side of the images that is kept; by default as in the run's evaluation, or as timm records it with
            the backbone's weights, or all of it if `resize` is "pad" or "squash", or if images do not come from files. It and
            `resize` replace what `data` sets.
        resize: what becomes of pictures that are not square: "crop", "pad" or "squash"; by default as for `crop`.
        jpeg: which library decodes JPEG, for these images and for queries later.
        device: where to encode: auto, cpu, cuda, cuda:N or mps.
        batch_size: images that are encoded at once.
        workers: threads that decode images ahead; by default as many as there are processor cores.
        strict: whether an image that cannot be read is an error. By default it is skipped; `metadata["skipped"]` holds the
            number of skipped images and the first reasons.
        force: replace `out` if it exists, once the new one is complete. A folder is brought up to date without it: parts that
            are there, whole and of these images are not computed again.
        update: embed only the files that are new or have another size or time of modification than when `out` was written;
            vectors of the others are taken from it, and those of removed files left out. The rows are those of a full run,
            whose vectors may differ in the last bits, as they do between batch sizes.
        images_per_part: of a folder (by default 10,000). Each shard has parts of its own, a small one a single part.
        prune: of a folder, or with `update`: remove the embeddings of images that are gone even if these are more than 100 and
            than 10 % of all.
        report: called before work starts, with each line of a summary of what is read and what is skipped.

    Raises:
        UsageError, EnvironmentProblem: an argument, the encoder, or the place to write to is wrong.
        DataError: there are no images, or none that can be read; with `strict`, one that cannot be read; with `update`, `out`
            was written by another encoder or with other preprocessing.
        NumericalError: no image has an embedding that is finite and not zero; with `strict`, one has not.
    """
    if workers is None:
        workers = num_cpus()
    if out is not None:
        out = Path(out)
    job = EmbeddingJob(out, batch_size, workers, images_per_part, strict, force, update, prune)
    if report is not None:
        job = job._replace(report=report)
    job.check()
    # Weights or a data set may have to be downloaded, which one rank of each machine does.
    run = _call
    if job.is_folder:
        # Objects alone are exchanged: ranks may share a GPU.
        device = str(distributed.setup(device, backend="gloo", may_share_gpu=True))
        # Also while one rank lists the images, or makes the index of shards.
        distributed.set_timeout(DAY_SECONDS, torch.device("cpu"))
        run = distributed.run_in_turns
    embedder = run(lambda: Embedder.open(encoder, size=size, pretrained=pretrained, weights=weights, device=device))
    # Similarities by random weights say little.
    if embedder.is_untrained:
        warnings.warn(
            f"{encoder} has random weights: give --weights FILE or --pretrained, or embed by a run", stacklevel=2
        )
    chosen = {"crop": crop, "resize": resize}
    source = run(lambda: open_images(data, split, encoder, embedder, jpeg, chosen))
    for line in source.summary:
        job.report(line)
    set_preprocessing(embedder, source, chosen)
    dtype = torch.float32
    if half:
        dtype = torch.float16
    header = _header(source, embedder, dtype, job)
    if job.is_folder:
        embed_parts(job.out, source, embedder, header, job)
        return Embeddings.load(job.out, verify=False)  # the hashes were computed a moment ago
    blocks = _embed_blocks(source, embedder, header, job, _open_earlier(source, header, job))
    if job.out is None:
        return _in_memory(header, blocks)
    with embeddings_file(job.out).writer(header) as writer:
        for block in blocks:
            writer.add(block)
    return Embeddings.load(job.out, verify=False)  # its hash was computed a moment ago


def _call(function: Callable[[], T]) -> T:
    return function()


def _open_earlier(source: ImageSource, header: Header, job: EmbeddingJob) -> EarlierVectors | None:
    """Return the vectors of an earlier file that are still valid; None without --update, or if there is no file yet."""
    if not job.update or job.out is None:
        return None
    earlier = open_earlier(job.out, source, header)
    if earlier is None:
        return None
    if not job.prune:
        num_rows = earlier.num_removed + earlier.num_changed + earlier.num_unchanged
        check_removal(job.out, earlier.num_removed, num_rows)
    job.report(earlier.describe())
    return earlier


def _in_memory(header: Header, blocks: Iterator[RowBlock]) -> Embeddings:
    columns = concatenate(header, blocks)
    return Embeddings(
        columns.vectors, columns.ids, columns.paths, columns.labels, header.classes, header.metadata, columns.file_stats
    )


def _header(source: ImageSource, embedder: Embedder, dtype: torch.dtype, job: EmbeddingJob) -> Header:
    """Return the header of the embeddings of a source."""
    groups = source.groups
    has_paths = groups[0].paths is not None
    # Checked before the first row is written, since the type of a Parquet column depends on it.
    # Parts have no such column, and the ids of many images take long to read.
    string_columns: list[Sequence[str]] = []
    for group in groups:
        if not job.is_folder:
            string_columns.append(group.ids)
            if group.paths is not None and group.paths is not group.ids:
                string_columns.append(group.paths)
    root = None
    if has_paths:
        root = source.metadata.get("root")
    metadata = {
        **embedder.metadata(),
        "data": source.metadata,
        "root": root,
        "normalized": True,
        "versions": environment.package_versions(),
        "commit": environment.git_commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return Header(
        max_rows=len(source),
        width=embedder.width,
        dtype=dtype,
        ids_are_paths=all(group.ids is group.paths for group in groups),
        has_paths=has_paths,
        has_file_stats=all(group.paths is not None for group in groups),
        has_non_utf8_names=not all(map(are_utf8, string_columns)),
        classes=source.classes,
        metadata=metadata,
    )


def _embed_blocks(
    source: ImageSource,
    embedder: Embedder,
    header: Header,
    job: EmbeddingJob,
    earlier: EarlierVectors | None,
) -> Iterator[RowBlock]:
    """Yield the rows block by block; at the end, add to `header.metadata` how long it took and what was skipped.

    Args:
        source: the images.
        embedder: computes the vectors.
        header: of the embeddings.
        job: how.
        earlier: vectors of images that need not be embedded again; None to embed all.
    """
    skipped = SkippedImages(job.strict)
    count = 0
    start = time.perf_counter()
    num_to_embed = len(source)
    if earlier is not None:
        num_to_embed = len(earlier.remaining())
    with progress("embedding", num_to_embed) as advance:
        for group in source.groups:
            file_stats = group.file_stats  # before the files are read
            numbers = torch.arange(len(group))
            if earlier is not None:
                numbers = earlier.remaining()
            encoded = encode(group, batches(numbers, job.batch_size), embedder, lambda: skipped, job.workers, advance)
            # Closed, so that the threads end even if a batch cannot be embedded or written.
            with closing(encoded):
                rows: Iterator[tuple[Tensor, Tensor]] = ((batch.numbers, batch.vectors) for batch in encoded)
                if earlier is not None:
                    rows = earlier.merge(encoded)
                for row_numbers, vectors in rows:
                    count += len(vectors)
                    if len(vectors):
                        stats = None
                        if file_stats is not None:
                            stats = file_stats[row_numbers]
                        yield row_block(group, row_numbers, vectors, stats)
    if count == 0:
        reasons = "\n  ".join(skipped.reasons)
        if skipped.num_without_vector:
            raise NumericalError(
                f"no usable embedding of {format_count(len(source), 'image')}: {NOT_FINITE_CAUSE}. The first of them:\n  "
                f"{reasons}"
            )
        raise DataError(
            f"none of {format_count(len(source), 'image')} can be embedded; the first of them:\n  {reasons}"
        )
    # The header of a file is written after the last block, so this is part of it.
    header.metadata["seconds"] = round(time.perf_counter() - start, 3)
    if earlier is not None:
        header.metadata["unchanged"] = earlier.num_unchanged
    if skipped.count:
        header.metadata["skipped"] = {"count": skipped.count, "first": skipped.reasons}
