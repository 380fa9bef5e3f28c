"""embed(): images to embeddings, which are written while they are computed; images that cannot be read are skipped."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core import environment
from reptk.core.errors import DataError, NumericalError, ReptkError, UsageError
from reptk.data import DevicePrefetcher, num_cpus
from reptk.data.decode import Jpeg
from reptk.data.image_files import ImageFiles
from reptk.data.prefetch import prefetch
from reptk.embeddings import image_sources
from reptk.embeddings.embedder import Embedder, recipe_of
from reptk.embeddings.embeddings_file import check_output, embeddings_file
from reptk.embeddings.image_sources import ImageGroup, ImageSource
from reptk.embeddings.layout import Header, RowBlock, concatenate
from reptk.embeddings.progress import progress
from reptk.embeddings.store import Embeddings
from reptk.embeddings.string_array import are_utf8
from reptk.models.encoder import Encoder

CROP = 0.875
"""Share of the shorter side that evaluation keeps of image files; 224 of 256 pixels, as is usual for ImageNet."""

MIN_DECODE_PX = 256
"""Side to which image files are decoded at least."""

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
    jpeg: Jpeg = "auto",
    device: str = "auto",
    batch_size: int = 128,
    workers: int | None = None,
    strict: bool = False,
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Embeddings:
    """Compute vectors of unit length of images, preprocessed as evaluation does it.

    Args:
        encoder: a run's folder, its model folder, a timm name, or an `Encoder`.
        data: a folder; a table of paths, labels and ids as CSV, JSON lines or Parquet (see `reptk.data.image_table`); a
            data set's name or its table of a recipe (`{"name": "digits", ...}`); or images (n, 3, H, W) uint8.
        out: the file to write, .safetensors or .parquet; by default the embeddings stay in memory.
        split: train, bank or query of a data set, or a split of a folder or a table such as test; by default every distinct
            image.
        half: store float16: half the size, similarities within 1e-3.
        size: input size in pixels of a timm backbone.
        pretrained, weights: of a timm backbone; see `Encoder`.
        jpeg: which library decodes JPEG, for these images and for queries later.
        device: where to encode: auto, cpu, cuda, cuda:N or mps.
        batch_size: images that are encoded at once.
        workers: threads that decode images ahead; by default as many as there are processor cores.
        strict: whether an image that cannot be read is an error. By default it is skipped; `about["skipped"]` holds the
            number of skipped images and the first reasons.
        force: replace `out` if it exists.
        report: called before work starts, with each line of a summary of what is read and what is skipped.

    Raises:
        UsageError, EnvironmentProblem: an argument, the encoder, or the place to write to is wrong.
        DataError: there are no images, or none that can be read; with `strict`, one that cannot be read.
    """
    if batch_size < 1 or (workers or 0) < 0:
        raise UsageError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    if out is not None:
        out = check_output(out, force=force)
    if workers is None:
        workers = num_cpus()
    embedder = Embedder.open(encoder, size=size, pretrained=pretrained, weights=weights, device=device)
    # Similarities by random weights say little.
    if embedder.is_untrained:
        warnings.warn(
            f"{encoder} has random weights: give --weights FILE or --pretrained, or embed by a run", stacklevel=2
        )
    source = _open_source(data, split, encoder, embedder.encoder.config["size"], jpeg)
    if report is not None:
        for line in source.summary:
            report(line)
    # The preprocessing of the images is recorded with the vectors, so that queries get the same.
    embedder.jpeg = source.jpeg
    embedder.crop = source.crop
    embedder.decode_px = _side_px(source)
    images = source.groups[0].images
    if isinstance(images, ImageFiles):
        embedder.options = images.options

    header = _header(source, embedder, half)
    blocks = _embed_blocks(source, embedder, header, SkippedImages(strict), batch_size, workers)
    if out is None:
        columns = concatenate(header, blocks)
        return Embeddings(columns.vectors, columns.ids, columns.paths, columns.labels, header.classes, header.about)
    with embeddings_file(out).writer(header) as writer:
        for block in blocks:
            writer.add(block)
    return Embeddings.load(out)


class SkippedImages:
    """Counts the images that are skipped, and lists the reasons of the first.

    Args:
        strict: raise an error for the first image instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.count = 0
        self.reasons: list[str] = []

    def add(self, reason: str, error: type[ReptkError] = DataError) -> None:
        """Count one image, or raise `error` if `strict`."""
        if self.strict:
            raise error(f"{reason}. To skip such images: without --strict")
        self.count += 1
        if len(self.reasons) < MAX_LISTED_REASONS:
            self.reasons.append(reason[:MAX_REASON_LETTERS])


def _open_source(
    data: str | Path | Tensor | dict[str, Any],
    split: str | None,
    encoder: str | Path | Encoder,
    encoder_size_px: int,
    jpeg: Jpeg,
) -> ImageSource:
    """Open the `data` of `embed`, of any of its types."""
    if isinstance(data, Tensor):
        return image_sources.from_images(data, jpeg=jpeg)
    if not isinstance(data, str | Path | Mapping):
        raise UsageError(
            f"data must be a folder, a table, a data set or a tensor (n, 3, H, W) uint8, not {type(data).__name__}; for images "
            "in Python: Encoder.embed"
        )
    # Large enough that the crop has the encoder's size without being enlarged.
    decode_px = max(MIN_DECODE_PX, round(encoder_size_px / CROP))
    if isinstance(data, str | Path):
        data = image_sources.data_table(str(data))
    table = dict(data)
    if table.get("name") in ("folder", "imagenet", "imagenet100"):
        # A run's own images are decoded at the size that it was trained on.
        trained_on = {}
        if isinstance(encoder, str | Path):
            trained_on = recipe_of(encoder).get("data", {})
        table = {"size": trained_on.get("size", decode_px), "jpeg": jpeg, **table}
        jpeg = table["jpeg"]  # an argument of the data set goes first
    return image_sources.from_data_set(table, split=split, jpeg=jpeg)


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
        has_non_utf8_names=not all(map(are_utf8, string_columns)),
        classes=source.classes,
        about=about,
    )


def _embed_blocks(
    source: ImageSource, embedder: Embedder, header: Header, skipped: SkippedImages, batch_size: int, workers: int
) -> Iterator[RowBlock]:
    """Yield the rows of each batch; at the end, add to `header.about` how long it took and what was skipped."""
    count = 0
    start = time.perf_counter()
    with progress("embedding", len(source)) as advance:
        for group in source.groups:
            index_batches = _index_batches(len(group), batch_size)
            # Closed, so that the threads end even if a batch cannot be embedded or written.
            with closing(
                prefetch(group.images, index_batches, workers=workers, device=embedder.device)
            ) as host_batches:
                for pixels, indices in DevicePrefetcher(host_batches, embedder.device):
                    block = _valid_rows(group, indices.cpu(), embedder.embed_images(pixels), skipped)
                    count += len(block.vectors)
                    advance(len(indices))
                    if len(block.vectors):
                        yield block
    if count == 0:
        reasons = "\n  ".join(skipped.reasons)
        raise DataError(f"none of {len(source):,} images can be embedded; the first of them:\n  {reasons}")
    # The header of a file is written after the last block, so this is part of it.
    header.about["seconds"] = round(time.perf_counter() - start, 3)
    if skipped.count:
        header.about["skipped"] = {"count": skipped.count, "first": skipped.reasons}


def _index_batches(count: int, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, count, batch_size):
        yield torch.arange(start, min(start + batch_size, count))


def _valid_rows(group: ImageGroup, indices: Tensor, vectors: Tensor, skipped: SkippedImages) -> RowBlock:
    """Return the rows of a batch whose images were read and whose vectors have a direction; skip the others.

    Args:
        group: the images that the batch belongs to.
        indices: (b,) of the batch's images in the group.
        vectors: (b, F).
        skipped: counts what is left out.
    """
    unreadable = group.images.unreadable(indices)
    norms = vectors.norm(dim=1)
    is_valid = torch.ones(len(indices), dtype=torch.bool)
    for position, index in enumerate(indices.tolist()):
        if index in unreadable:
            skipped.add(unreadable[index])
            is_valid[position] = False
        # A zero or infinite vector has no direction, so no similarity.
        elif not norms[position].isfinite():
            skipped.add(f"{group.ids[index]}: its embedding is not finite", NumericalError)
            is_valid[position] = False
        elif norms[position] == 0:
            skipped.add(f"{group.ids[index]}: its embedding is zero", NumericalError)
            is_valid[position] = False
    valid = indices[is_valid]
    ids = [group.ids[index] for index in valid.tolist()]
    paths = None
    if group.paths is not None:
        paths = [group.paths[index] for index in valid.tolist()]
    return RowBlock(vectors[is_valid], group.labels[valid], ids, paths)
