"""embed(): images to embeddings, which are written while they are computed; images that cannot be read are skipped."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk import config
from reptk.core import environment
from reptk.core.counts import format_count
from reptk.core.errors import DataError, NumericalError, ReptkError, UsageError
from reptk.data import DevicePrefetcher, num_cpus
from reptk.data.decode import Jpeg
from reptk.data.image_files import ImageFiles
from reptk.data.prefetch import prefetch
from reptk.data.resize import ResizeMode
from reptk.embeddings import image_sources
from reptk.embeddings.embedder import NOT_FINITE_CAUSE, Embedder, recipe_of
from reptk.embeddings.embeddings_file import check_output, embeddings_file
from reptk.embeddings.image_sources import ImageGroup, ImageSource
from reptk.embeddings.layout import Header, RowBlock, concatenate
from reptk.embeddings.progress import progress
from reptk.embeddings.store import Embeddings
from reptk.embeddings.string_array import are_utf8
from reptk.embeddings.update import EarlierVectors, EncodedBatch, open_earlier
from reptk.models.encoder import Encoder

MAX_LISTED_REASONS = 5
MAX_REASON_LETTERS = 300
"""How many skipped images are listed with their reasons, and at what length."""


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
    report: Callable[[str], None] | None = None,
) -> Embeddings:
    """Compute vectors of unit length of images, preprocessed as evaluation does it.

    Args:
        encoder: a run's folder, its model folder, a timm name, or an `Encoder`.
        data: a folder, also of Parquet files that hold the images; a table of paths, labels and ids as CSV, JSON lines or
            Parquet (see `reptk.data.image_table`); a data set's name or its table of a recipe (`{"name": "digits", ...}`); or
            images (n, 3, H, W) uint8.
        out: the file to write, .safetensors or .parquet; by default the embeddings stay in memory.
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
        strict: whether an image that cannot be read is an error. By default it is skipped; `about["skipped"]` holds the
            number of skipped images and the first reasons.
        force: replace `out` if it exists.
        update: embed only the files that are new or have another size or time of modification than when `out` was written;
            vectors of the others are taken from it, and those of removed files left out. The rows are those of a full run,
            whose vectors may differ in the last bits, as they do between batch sizes.
        report: called before work starts, with each line of a summary of what is read and what is skipped.

    Raises:
        UsageError, EnvironmentProblem: an argument, the encoder, or the place to write to is wrong.
        DataError: there are no images, or none that can be read; with `strict`, one that cannot be read; with `update`, `out`
            was written by another encoder or with other preprocessing.
        NumericalError: no image has an embedding that is finite and not zero; with `strict`, one has not.
    """
    if batch_size < 1 or (workers or 0) < 0:
        raise UsageError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    if update and (out is None or force):
        raise UsageError("--update updates the file that --out names, and does not go with --force")
    if out is not None:
        out = check_output(out, force=force or update)
    if workers is None:
        workers = num_cpus()
    embedder = Embedder.open(encoder, size=size, pretrained=pretrained, weights=weights, device=device)
    # Similarities by random weights say little.
    if embedder.is_untrained:
        warnings.warn(
            f"{encoder} has random weights: give --weights FILE or --pretrained, or embed by a run", stacklevel=2
        )
    chosen = {"crop": crop, "resize": resize}
    source = _open_source(data, split, encoder, embedder, jpeg, chosen)
    if report is not None:
        for line in source.summary:
            report(line)
    _set_preprocessing(embedder, source, chosen)
    header = _header(source, embedder, half)
    earlier = None
    if update and out is not None:
        earlier = open_earlier(out, source, header)
        if earlier is not None and report is not None:
            report(earlier.describe())
    blocks = _embed_blocks(source, embedder, header, SkippedImages(strict), batch_size, workers, earlier)
    if out is None:
        return _in_memory(header, blocks)
    with embeddings_file(out).writer(header) as writer:
        for block in blocks:
            writer.add(block)
    return Embeddings.load(out, verify=False)  # its hash was computed a moment ago


def _in_memory(header: Header, blocks: Iterator[RowBlock]) -> Embeddings:
    columns = concatenate(header, blocks)
    return Embeddings(
        columns.vectors, columns.ids, columns.paths, columns.labels, header.classes, header.about, columns.file_stats
    )


def _set_preprocessing(embedder: Embedder, source: ImageSource, chosen: dict[str, Any]) -> None:
    """Let the embedder and the images of a source be preprocessed alike; `chosen` are fields of `Preprocessing`, or None."""
    # The preprocessing of the images is recorded with the vectors, so that queries get the same.
    embedder.jpeg = source.jpeg
    embedder.preprocessing = source.preprocessing.updated(chosen)
    embedder.decode_px = _side_px(source)
    embedder.options = source.options
    for group in source.groups:
        if isinstance(group.images, ImageFiles):
            # As queries are decoded: in one step, for the center that will be cut out.
            group.images.in_one_step = True
            group.images.square = embedder.square_options()


class SkippedImages:
    """Counts the images that are skipped, and lists the reasons of the first.

    Args:
        strict: raise an error for the first image instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.count = 0
        self.num_without_vector = 0
        """How many of them were read, and have no usable embedding."""
        self.reasons: list[str] = []

    def add(self, reason: str, error: type[ReptkError] = DataError) -> None:
        """Count one image, or raise `error` if `strict`."""
        if self.strict:
            raise error(f"{reason}. To skip such images: without --strict")
        self.count += 1
        if error is NumericalError:
            self.num_without_vector += 1
        if len(self.reasons) < MAX_LISTED_REASONS:
            self.reasons.append(reason[:MAX_REASON_LETTERS])


def _open_source(
    data: str | Path | Tensor | dict[str, Any],
    split: str | None,
    encoder: str | Path | Encoder,
    embedder: Embedder,
    jpeg: Jpeg,
    chosen: dict[str, Any],
) -> ImageSource:
    """Open the `data` of `embed`, of any of its types.

    `chosen` are fields of `Preprocessing`, or None: those of `embed`, which replace what `data` sets.
    """
    if isinstance(data, Tensor):
        return image_sources.from_images(data, jpeg=jpeg)
    if not isinstance(data, str | Path | Mapping):
        raise UsageError(
            f"data must be a folder, a table, a data set or a tensor (n, 3, H, W) uint8, not {type(data).__name__}; for images "
            "in Python: Encoder.embed"
        )
    preprocessing = embedder.native_preprocessing()
    size = embedder.encoder.config["size"]
    if isinstance(data, str | Path):
        data = image_sources.data_table(str(data))
    table = dict(data)
    config.complete("data", table)  # an error if an argument has a wrong type
    preprocessing = preprocessing.updated(table).updated(chosen)
    if table.get("name") in ("folder", "imagenet", "imagenet100"):
        # A run's own images are decoded at the size that it was trained on.
        trained_on = {}
        if isinstance(encoder, str | Path):
            trained_on = recipe_of(encoder).get("data", {})
        # The crop then has the encoder's size without being resized again.
        decode_px = trained_on.get("size", preprocessing.decode_px(size))
        table = {"size": decode_px, "jpeg": jpeg, **table}
        jpeg = table["jpeg"]  # an argument of the data set goes first
    return image_sources.from_data_set(table, split=split, jpeg=jpeg, preprocessing=preprocessing)


def _side_px(source: ImageSource) -> int:
    """Return the side to which queries are decoded, which is that of the embedded images."""
    images = source.groups[0].images
    if isinstance(images, ImageFiles):
        return images.size  # without decoding one
    first_image = images.fetch(torch.tensor([0]))
    return min(first_image.shape[-2:])


def _header(source: ImageSource, embedder: Embedder, half: bool) -> Header:
    """Return the header of the embeddings of a source."""
    groups = source.groups
    has_paths = groups[0].paths is not None
    # Checked before the first row is written, since the type of a Parquet column depends on it.
    string_columns = [group.ids for group in groups]
    for group in groups:
        if group.paths is not None and group.paths is not group.ids:
            string_columns.append(group.paths)
    about = {
        **embedder.about(),
        "data": source.about,
        "root": source.about.get("root") if has_paths else None,
        "normalized": True,
        "versions": environment.package_versions(),
        "commit": environment.git_commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return Header(
        max_rows=len(source),
        width=embedder.width,
        half=half,
        ids_are_paths=all(group.ids is group.paths for group in groups),
        has_paths=has_paths,
        has_file_stats=all(group.file_stats is not None for group in groups),
        has_non_utf8_names=not all(map(are_utf8, string_columns)),
        classes=source.classes,
        about=about,
    )


def _embed_blocks(
    source: ImageSource,
    embedder: Embedder,
    header: Header,
    skipped: SkippedImages,
    batch_size: int,
    workers: int,
    earlier: EarlierVectors | None,
) -> Iterator[RowBlock]:
    """Yield the rows block by block; at the end, add to `header.about` how long it took and what was skipped.

    Args:
        source: the images.
        embedder: computes the vectors.
        header: of the embeddings.
        skipped: counts what is left out.
        batch_size: images that are encoded at once.
        workers: threads that decode images ahead.
        earlier: vectors of images that need not be embedded again; None to embed all.
    """
    count = 0
    start = time.perf_counter()
    num_to_embed = len(source)
    if earlier is not None:
        num_to_embed = len(earlier.remaining())
    with progress("embedding", num_to_embed) as advance:
        for group in source.groups:
            numbers = torch.arange(len(group))
            if earlier is not None:
                numbers = earlier.remaining()
            batches = _encode(group, _batches(numbers, batch_size), embedder, skipped, workers, advance)
            # Closed, so that the threads end even if a batch cannot be embedded or written.
            with closing(batches):
                rows: Iterator[tuple[Tensor, Tensor]] = ((batch.numbers, batch.vectors) for batch in batches)
                if earlier is not None:
                    rows = earlier.merge(batches)
                for row_numbers, vectors in rows:
                    count += len(vectors)
                    if len(vectors):
                        yield _row_block(group, row_numbers, vectors)
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
    header.about["seconds"] = round(time.perf_counter() - start, 3)
    if earlier is not None:
        header.about["unchanged"] = earlier.num_unchanged
    if skipped.count:
        header.about["skipped"] = {"count": skipped.count, "first": skipped.reasons}


def _encode(
    group: ImageGroup,
    number_batches: Iterator[Tensor],
    embedder: Embedder,
    skipped: SkippedImages,
    workers: int,
    advance: Callable[[int], None],
) -> Iterator[EncodedBatch]:
    """Yield the vectors of the images with these numbers, batch by batch."""
    images = group.images.resized(embedder.preprocessing.resize)
    with closing(prefetch(images, number_batches, workers=workers, device=embedder.device)) as host_batches:
        for pixels, batch_numbers in DevicePrefetcher(host_batches, embedder.device):
            numbers = batch_numbers.cpu()
            vectors = embedder.embed_images(pixels)
            is_valid = _have_vectors(group, numbers, vectors, skipped)
            advance(len(numbers))
            yield EncodedBatch(numbers[is_valid], vectors[is_valid], int(numbers[-1]) + 1)


def _batches(numbers: Tensor, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(numbers), batch_size):
        yield numbers[start : start + batch_size]


def _have_vectors(group: ImageGroup, numbers: Tensor, vectors: Tensor, skipped: SkippedImages) -> Tensor:
    """Return which images of a batch were read and have a vector with a direction, (b,) bool; the others are skipped.

    Args:
        group: the images that the batch belongs to.
        numbers: (b,) of the batch's images in the group.
        vectors: (b, F).
        skipped: counts what is left out.
    """
    unreadable = group.images.unreadable(numbers)
    norms = vectors.norm(dim=1)
    is_valid = torch.ones(len(numbers), dtype=torch.bool)
    for position, number in enumerate(numbers.tolist()):
        if number in unreadable:
            skipped.add(unreadable[number])
            is_valid[position] = False
        # A zero or infinite vector has no direction, so no similarity.
        elif not norms[position].isfinite():
            skipped.add(f"{group.ids[number]}: its embedding is not finite", NumericalError)
            is_valid[position] = False
        elif norms[position] == 0:
            skipped.add(f"{group.ids[number]}: its embedding is zero", NumericalError)
            is_valid[position] = False
    return is_valid


def _row_block(group: ImageGroup, numbers: Tensor, vectors: Tensor) -> RowBlock:
    """Return the rows of the images with these numbers."""
    ids = [group.ids[number] for number in numbers.tolist()]
    paths = None
    file_stats = None
    if group.paths is not None:
        paths = [group.paths[number] for number in numbers.tolist()]
    if group.file_stats is not None:
        file_stats = group.file_stats[numbers]
    return RowBlock(vectors, group.labels[numbers], ids, paths, file_stats)
