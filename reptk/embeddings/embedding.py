"""embed(): images to embeddings, written as they are made; an unreadable image costs itself and no other."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import environment
from reptk.core.errors import DataError, NumericalError, UsageError
from reptk.data import DevicePrefetcher, num_cpus
from reptk.data.decode import Jpeg
from reptk.data.image_files import ImageFiles
from reptk.data.prefetch import prefetch
from reptk.data.protocol import WritableImages
from reptk.embeddings import sources
from reptk.embeddings.embedder import Embedder, recipe_of
from reptk.embeddings.embeddings import Embeddings, check_out, writing
from reptk.embeddings.progress import progress
from reptk.embeddings.rows import Rows, Whole
from reptk.embeddings.sources import Part, Source
from reptk.embeddings.texts import Growing, are_utf8
from reptk.models.encoder import Encoder

CROP, LEAST_PX = 0.875, 256
"""Of image files: the share of the shorter side that evaluation keeps, and the side that they are decoded to at least."""

NAMED, NAME_LETTERS = 5, 300
"""How many of the images that were left out are named, in how many letters."""


def embed(
    data: str | Path | Tensor | dict[str, Any],
    *,
    encoder: str | Path | Encoder,
    out: str | Path | None = None,
    split: str | None = None,
    half: bool = False,
    size: int | None = None,
    pretrained: bool = False,
    weights: str | None = None,
    jpeg: Jpeg = "auto",
    batch_size: int = 128,
    workers: int | None = None,
    strict: bool = False,
    force: bool = False,
) -> Embeddings:
    """Vectors of unit length of images, seen as evaluation sees them.

    Args:
        data: a folder; a CSV file of path[,label[,id]]; a data set's name or its part of a recipe
            (`{"name": "digits", ...}`); or images (n, 3, H, W) uint8.
        encoder: a run's folder, its model folder, a timm name, or an `Encoder`.
        out: the file to write, .safetensors or .parquet; by default they stay in memory.
        split: train, bank or query of a data set; every distinct image by default.
        half: keep float16: half the size, similarities to about 1e-3.
        size: of a timm backbone, the side in pixels of what it sees.
        pretrained, weights: of a timm backbone; see `Encoder`.
        jpeg: who decodes JPEG; queries are decoded alike.
        batch_size: images that are encoded at once.
        workers: threads that decode prefetch; as many as there are num_cpus by default.
        strict: an image that cannot be read is an error. By default it is left out; `about["skipped"]` counts and names.
        force: write over `out`.

    Raises:
        UsageError, EnvironmentProblem: an argument, the encoder, or the place to write to is wrong.
        DataError: no images, or none that can be read; with `strict`, any that cannot.
    """
    if batch_size < 1 or (workers or 0) < 0:
        raise UsageError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    place = None if out is None else check_out(out, force=force)
    embedder = Embedder.open(encoder, size=size, pretrained=pretrained, weights=weights)
    if embedder.is_untrained:
        warnings.warn(
            f"{encoder} has random weights: give --weights FILE or --pretrained, or embed by a run", stacklevel=2
        )
    embedder.jpeg = jpeg
    source = _source(data, split, embedder, encoder)
    embedder.crop, embedder.decoded_px = source.crop, _side(source)
    whole = _whole(source, embedder, half)
    rows = _rows(source, embedder, batch_size, num_cpus() if workers is None else workers, _Skipped(whole, strict))
    if place is None:
        return _in_memory(rows, whole)
    with writing(place, whole) as writer:
        for some in rows:
            writer.add(some)
    return Embeddings.load(place)


def _source(data: Any, split: str | None, embedder: Embedder, encoder: Any) -> Source:
    if isinstance(data, Tensor):
        return sources.from_images(data)
    side = max(LEAST_PX, round(embedder.encoder.config["size"] / CROP))
    if isinstance(data, str | Path):
        if Path(data).is_file():
            return sources.from_csv(Path(data), side_px=side, jpeg=embedder.jpeg, crop=CROP)
        data = sources.named(str(data))
    part = dict(data)
    if part.get("name") in ("folder", "imagenet100"):
        trained = recipe_of(encoder).get("data", {}) if isinstance(encoder, str | Path) else {}
        part = {"size": trained.get("size", side), "jpeg": embedder.jpeg, **part}
        embedder.jpeg = part["jpeg"]
    return sources.from_data_set(part, split=split, jpeg=embedder.jpeg)


def _side(source: Source) -> int:
    """The square that queries are decoded to: as large as these images are."""
    images = source.parts[0].images
    return images.size if isinstance(images, ImageFiles) else min(images.fetch(torch.tensor([0])).shape[-2:])


def _whole(source: Source, embedder: Embedder, half: bool) -> Whole:
    columns = [part.ids for part in source.parts]
    columns += [part.paths for part in source.parts if part.paths is not None and part.paths is not part.ids]
    root = source.about.get("root") if source.parts[0].paths is not None else None
    return Whole(
        count=len(source),
        width=embedder.width,
        half=half,
        ids_are_paths=all(part.ids is part.paths for part in source.parts),
        has_paths=source.parts[0].paths is not None,
        has_odd_names=not all(map(are_utf8, columns)),
        classes=source.classes,
        about={
            **embedder.about(),
            "data": source.about,
            "root": root,
            "normalised": True,
            "versions": environment.package_versions(),
            "commit": environment.git_commit(),
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _rows(source: Source, embedder: Embedder, batch: int, workers: int, skipped: "_Skipped") -> Iterator[Rows]:
    done, since = 0, time.perf_counter()
    with progress("embedding", len(source)) as advance:
        for part in source.parts:
            images = _Guarded(part.images) if isinstance(part.images, ImageFiles) else part.images
            batches = prefetch(images, _batches(len(part.labels), batch), workers=workers, device=embedder.device)
            for pictures, numbers in DevicePrefetcher(batches, embedder.device):
                rows = _kept(part, numbers.cpu(), embedder.vectors(pictures), getattr(images, "failed", {}), skipped)
                done += len(rows.vectors)
                advance(len(numbers))
                if len(rows.vectors):
                    yield rows
    if not done:
        raise DataError(f"none of {len(source):,} images can be embedded; {skipped.said()}")
    skipped.whole.about["seconds"] = round(time.perf_counter() - since, 3)
    skipped.note()


def _batches(count: int, size: int) -> Iterator[Tensor]:
    return (torch.arange(first, min(first + size, count)) for first in range(0, count, size))


def _kept(part: Part, numbers: Tensor, vectors: Tensor, failed: dict[int, str], skipped: "_Skipped") -> Rows:
    """What can be kept of a batch: images that were read, with vectors that have a direction."""
    norms = vectors.norm(dim=1)
    good = torch.ones(len(numbers), dtype=torch.bool)
    for place, number in enumerate(numbers.tolist()):
        if number in failed:
            skipped.add(failed.pop(number))
        elif not norms[place].isfinite():
            skipped.add(f"{part.ids[number]}: its embedding is not finite", NumericalError)
        elif norms[place] == 0:
            skipped.add(f"{part.ids[number]}: its embedding is zero", NumericalError)
        else:
            continue
        good[place] = False
    chosen = numbers[good]
    names = [part.ids[number] for number in chosen.tolist()]
    paths = None if part.paths is None else [part.paths[number] for number in chosen.tolist()]
    return Rows(vectors[good], part.labels[chosen], names, paths)


class _Skipped:
    """Images that are left out, counted, the first of them named."""

    def __init__(self, whole: Whole, strict: bool) -> None:
        self.whole, self.strict, self.count, self.first = whole, strict, 0, []

    def add(self, why: str, kind: type[Exception] = DataError) -> None:
        if self.strict:
            raise kind(f"{why}. To leave such images out: without --strict")
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(why[:NAME_LETTERS])

    def note(self) -> None:
        if self.count:
            self.whole.about["skipped"] = {"count": self.count, "first": self.first}

    def said(self) -> str:
        return "\n  ".join(["the first of them:", *self.first])


class _Guarded(WritableImages):
    """Image files of which some cannot be read: those are noted, and black."""

    def __init__(self, files: ImageFiles) -> None:
        self.files, self.size = files, files.size
        self.failed: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def fetch_into(self, numbers: Tensor, rows: NDArray[np.uint8]) -> None:
        for number, row in zip(numbers, rows, strict=True):
            try:
                self.files.fetch_into(number[None], row[None])
            except DataError as error:
                row[:] = 0
                self.failed[int(number)] = str(error)


def _in_memory(rows: Iterator[Rows], whole: Whole) -> Embeddings:
    vectors = torch.empty(whole.count, whole.width, dtype=whole.dtype)
    labels = torch.empty(whole.count, dtype=torch.int64)
    ids, paths, count = Growing(), Growing(), 0
    for some in rows:
        part = slice(count, count + len(some.vectors))
        vectors[part], labels[part] = some.vectors, some.labels
        ids.extend(() if whole.ids_are_paths else some.ids)
        paths.extend(some.paths or ())
        count = part.stop
    kept = paths.kept() if whole.has_paths else None
    names = kept if whole.ids_are_paths else ids.kept()
    return Embeddings(vectors[:count], names, kept, labels[:count], whole.classes, whole.about)
