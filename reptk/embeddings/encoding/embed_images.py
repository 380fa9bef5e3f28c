"""embed(): images to embeddings, which are written while they are computed; images that cannot be read are skipped."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from reptk import config
from reptk.core import distributed, environment
from reptk.core.counts import format_count
from reptk.core.errors import DataError, NumericalError, UsageError
from reptk.core.progress import progress
from reptk.data import num_cpus
from reptk.data.decoding.decode import Jpeg
from reptk.data.decoding.resize import ResizeMode
from reptk.data.images.image_files import ImageFiles
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding import image_sources
from reptk.embeddings.encoding.embed_parts import check_folder, embed_parts
from reptk.embeddings.encoding.embedder import NOT_FINITE_CAUSE, Embedder, recipe_of
from reptk.embeddings.encoding.encode_images import SkippedImages, batches, encode, row_block
from reptk.embeddings.encoding.image_sources import ImageSource
from reptk.embeddings.encoding.part_worker import IMAGES_PER_PART, PartOptions
from reptk.embeddings.encoding.update import EarlierVectors, open_earlier
from reptk.embeddings.files.embeddings_file import check_output, embeddings_file, is_parts_output
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
        strict: whether an image that cannot be read is an error. By default it is skipped; `about["skipped"]` holds the
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
    if batch_size < 1 or (workers or 0) < 0:
        raise UsageError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    if update and (out is None or force):
        raise UsageError("--update updates the file that --out names, and does not go with --force")
    if images_per_part is not None and images_per_part < 1:
        raise UsageError(f"images_per_part must be at least 1, got {images_per_part}")
    if out is not None:
        out = Path(out)
    is_folder = out is not None and is_parts_output(out)
    if is_folder:
        check_folder(out)
        # Objects alone are exchanged: ranks may share a GPU.
        device = str(distributed.setup(device, backend="gloo", may_share_gpu=True))
        # Also while one rank lists the images, or makes the index of shards.
        distributed.set_timeout(DAY_SECONDS, torch.device("cpu"))
    elif images_per_part is not None:
        raise UsageError("images_per_part is for a folder of parts: name one as --out, without a suffix")
    elif out is not None:
        check_output(out, force=force or update)
    if prune and not (is_folder or update):
        raise UsageError("--prune is for a folder of parts, or for --update: other embeddings are written anew")
    if workers is None:
        workers = num_cpus()
    # Weights or a data set may have to be downloaded, which one rank of each machine does.
    in_turns = _call
    if is_folder:
        in_turns = distributed.run_in_turns
    embedder = in_turns(
        lambda: Embedder.open(encoder, size=size, pretrained=pretrained, weights=weights, device=device)
    )
    # Similarities by random weights say little.
    if embedder.is_untrained:
        warnings.warn(
            f"{encoder} has random weights: give --weights FILE or --pretrained, or embed by a run", stacklevel=2
        )
    chosen = {"crop": crop, "resize": resize}
    source = in_turns(lambda: _open_source(data, split, encoder, embedder, jpeg, chosen))
    if report is not None:
        for line in source.summary:
            report(line)
    _set_preprocessing(embedder, source, chosen)
    header = _header(source, embedder, half, is_folder)
    if is_folder:
        options = PartOptions(batch_size, workers, images_per_part or IMAGES_PER_PART, strict, force, prune)
        embed_parts(out, source, embedder, header, options, report or _silent)
        return Embeddings.load(out, verify=False)  # the hashes were computed a moment ago
    earlier = None
    if update and out is not None:
        earlier = open_earlier(out, source, header)
        if earlier is not None and not prune:
            check_removal(out, earlier.num_removed, earlier.num_removed + earlier.num_changed + earlier.num_unchanged)
        if earlier is not None and report is not None:
            report(earlier.describe())
    blocks = _embed_blocks(source, embedder, header, SkippedImages(strict), batch_size, workers, earlier)
    if out is None:
        return _in_memory(header, blocks)
    with embeddings_file(out).writer(header) as writer:
        for block in blocks:
            writer.add(block)
    return Embeddings.load(out, verify=False)  # its hash was computed a moment ago


def _call(function: Callable[[], T]) -> T:
    return function()


def _silent(line: str) -> None:
    pass


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
            group.images.decode_as(embedder.square_options())


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


def _header(source: ImageSource, embedder: Embedder, half: bool, is_folder: bool) -> Header:
    """Return the header of the embeddings of a source."""
    groups = source.groups
    has_paths = groups[0].paths is not None
    # Checked before the first row is written, since the type of a Parquet column depends on it.
    # Parts have no such column, and the ids of many images take long to read.
    string_columns: list[Sequence[str]] = []
    for group in groups:
        if not is_folder:
            string_columns.append(group.ids)
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
        has_file_stats=all(group.paths is not None for group in groups),
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
            file_stats = group.file_stats  # before the files are read
            numbers = torch.arange(len(group))
            if earlier is not None:
                numbers = earlier.remaining()
            encoded = encode(group, batches(numbers, batch_size), embedder, lambda: skipped, workers, advance)
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
    header.about["seconds"] = round(time.perf_counter() - start, 3)
    if earlier is not None:
        header.about["unchanged"] = earlier.num_unchanged
    if skipped.count:
        header.about["skipped"] = {"count": skipped.count, "first": skipped.reasons}
