"""From which similarity on two images are near duplicates: measured for the encoder and the images.

Encoders differ: one gives random pairs of photographs a similarity of 0.1, another 0.99. Two things are measured: how similar
random pairs of the images are, and, where the files and the encoder can be opened, how similar an image is to slightly
changed copies of itself.
"""

import io
import math
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from reptk.core import rng
from reptk.core.counts import format_count
from reptk.core.errors import NumericalError, ReptkError
from reptk.core.progress import progress
from reptk.data.decoding.decode import open_image, read_image_file
from reptk.data.decoding.pixel_options import to_rgb
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.embedder import NOT_FINITE_CAUSE, Embedder
from reptk.models.encoder import Encoder

USUAL = 0.95
"""The lowest threshold where copies cannot be measured; copies of an image reach it with most trained encoders."""

MIN_IMAGES = 20
"""Of fewer images, the duplicates among them are too large a part of all pairs."""

SAMPLE = 2048
"""Images whose pairs are compared: two million pairs."""

PAIRS_PER_IMAGE = 1
"""The quantile of random pairs leaves as many pairs above it: fewer would be duplicates alone, where images have copies."""

NUM_COPIED = 48
MAX_OPENED = 200
"""Images that are copied, and files that are opened in search of them."""

MIN_SIDE_PX = 64
"""Re-encoding smaller images changes them visibly."""

MAX_SIDE_PX = 1024
"""Larger images are reduced before they are copied, which saves time."""

SHARE_OF_COPIES = 0.9
"""Share of the changed copies whose distance from 1, the similarity of equal images, is allowed for."""

MARGIN = 2
"""Copies may be changed more than these: so many times that distance is allowed."""


class Change(NamedTuple):
    """How a copy differs from its image: the factor of its sides, and the quality of its JPEG file."""

    scale: float
    quality: int


CHANGES = (Change(1.0, 80), Change(0.75, 90))


class SimilarityThreshold(NamedTuple):
    """A cosine similarity from which images are near duplicates, and a sentence that says where it comes from."""

    value: float
    reason: str


def measure_threshold(
    first: Embeddings,
    second: Embeddings | None = None,
    *,
    encoder: str | Path | Encoder | None = None,
    device: str = "auto",
) -> SimilarityThreshold:
    """Return the threshold for near duplicates within a set, or between two sets of the same encoder.

    Up to 48 of the images are copied with slight changes (JPEG of quality 80, and 3/4 of the size with quality 90). The
    threshold is twice as far from 1 as nine tenths of these copies are. It is higher, up to the median of the copies, if random
    pairs are so similar that there would be more of them than images. Where no copies can be measured, it is 0.95, or halfway
    between the random pairs and 1 if that is higher. The draws are the same at every call.

    Args:
        first: vectors of unit length.
        second: vectors of unit length.
        encoder: the encoder of the embeddings, or its present place if it has moved.
        device: where copies are encoded.

    Raises:
        DataError: `encoder` is not the encoder of the embeddings.
    """
    pairs = _random_pairs(first, second)
    copies, obstacle = _similarities_of_copies(first, encoder, device)
    if copies is None:
        value = max(USUAL, (1 + pairs.similarity) / 2)
        reason = f"{pairs}; changed copies of the images could not be measured: {obstacle}"
        return SimilarityThreshold(_rounded(value), reason)
    lowest = int((1 - SHARE_OF_COPIES) * len(copies))
    similarity_of_copies = float(copies.sort().values[lowest])
    allowed = 1 - MARGIN * (1 - similarity_of_copies)
    # Half of the copies are above it in any case, also of images that have so many duplicates that random pairs are some.
    value = max(allowed, min(pairs.similarity, float(copies.median())))
    counted = format_count(len(copies), "re-encoded or resized copy", "re-encoded or resized copies")
    reason = f"{100 * SHARE_OF_COPIES:g} % of {counted} of the images reach {_rounded(similarity_of_copies):g}, "
    reason += f"and twice that distance from 1 is allowed; {pairs}"
    return SimilarityThreshold(_rounded(value), reason)


class RandomPairs(NamedTuple):
    """The similarity that nearly all random pairs of images are below; `share` is how many, 0 if it was not measured."""

    similarity: float
    share: float

    def __str__(self) -> str:
        if not self.share:
            return f"fewer than {MIN_IMAGES} images are too few to measure random pairs"
        return f"{_percent(self.share)} % of random pairs are below {_rounded(self.similarity):g}"


def _random_pairs(first: Embeddings, second: Embeddings | None) -> RandomPairs:
    count = len(first)
    if second is not None:
        count = max(count, len(second))
    if min(len(first), len(second or first)) < MIN_IMAGES:
        return RandomPairs(-1.0, 0.0)
    rows = _sample(first, "first")
    if second is None:
        similarities = rows @ rows.T
        above, right = torch.triu_indices(len(rows), len(rows), 1)
        similarities = similarities[above, right]
    else:
        similarities = (rows @ _sample(second, "second").T).flatten()
    # Among n images, n^2 / 2 pairs, a fixed quantile would leave more false pairs for every image the larger n is.
    num_above = max(1, round(len(similarities) * min(0.5, 2 * PAIRS_PER_IMAGE / count)))
    similarity = float(similarities.kthvalue(len(similarities) - num_above + 1).values)
    return RandomPairs(similarity, 1 - num_above / len(similarities))


def _sample(embeddings: Embeddings, name: str) -> Tensor:
    """Return the vectors of random images."""
    rows = _random_rows(len(embeddings), name)[:SAMPLE]
    return functional.normalize(embeddings.vectors[rows.sort().values].float(), dim=1)


def _random_rows(count: int, name: str) -> Tensor:
    return torch.randperm(count, generator=rng.generator("similarity_threshold", name))


def _similarities_of_copies(
    embeddings: Embeddings, encoder: str | Path | Encoder | None, device: str
) -> tuple[Tensor | None, str]:
    """Return the similarities of images to changed copies of themselves; or None, and why they cannot be measured."""
    if embeddings.paths is None:
        return None, "the images are not files"
    rows = _copied_rows(embeddings)
    if not rows:
        return None, f"no image can be opened and has sides of at least {MIN_SIDE_PX} px"
    try:
        embedder = Embedder.reopen(embeddings.about, encoder, device=device)
    except ReptkError as error:
        if encoder is not None:
            raise
        return None, str(error)
    similarities = []
    with progress("measuring copies", len(rows)) as advance:
        for row in rows:
            image = _open_reduced(embeddings.file(row))
            if image is not None:
                copies = torch.stack([embedder.decode_image(_changed_copy(image, change)) for change in CHANGES])
                vectors = functional.normalize(embedder.embed_images(copies), dim=1)
                if not vectors.isfinite().all():
                    raise NumericalError(f"embeddings of {embeddings.file(row)} are not finite: {NOT_FINITE_CAUSE}")
                similarities.append(vectors @ functional.normalize(embeddings.vectors[row].float(), dim=0))
            advance(1)
    if not similarities:
        return None, "the images cannot be read"
    return torch.cat(similarities), ""


def _copied_rows(embeddings: Embeddings) -> list[int]:
    """Return random images that are large enough, by their headers."""
    rows = []
    for row in _random_rows(len(embeddings), "copied")[:MAX_OPENED].tolist():
        try:
            with open_image(read_image_file(embeddings.file(row))) as image:
                is_large = min(image.size) >= MIN_SIDE_PX
        except Exception:  # Pillow raises various types for damaged files
            continue
        if is_large:
            rows.append(row)
        if len(rows) == NUM_COPIED:
            break
    return rows


def _open_reduced(file: Path) -> Image.Image | None:
    """Return an upright image in RGB with sides of at most `MAX_SIDE_PX`; None if it cannot be read."""
    try:
        with open_image(read_image_file(file)) as image:
            image.draft("RGB", (MAX_SIDE_PX, MAX_SIDE_PX))
            reduced = to_rgb(ImageOps.exif_transpose(image))
    except Exception:  # Pillow raises various types for damaged files
        return None
    reduced.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    return reduced


def _changed_copy(image: Image.Image, change: Change) -> bytes:
    size = (round(image.width * change.scale), round(image.height * change.scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=change.quality)
    return content.getvalue()


def _percent(share: float) -> str:
    """Return a share near 1 in percent, with two digits behind the nines."""
    digits = max(0, math.ceil(-math.log10(1 - share)) - 1)
    return f"{100 * share:.{digits}f}"


def _rounded(similarity: float) -> float:
    """Round down to three digits behind the nines, so that the printed threshold is the one that was used."""
    if similarity >= 1:
        return 1.0
    digits = 3 + max(0, int(-math.log10(1 - similarity)))
    digits = min(digits, 6)
    return math.floor(similarity * 10**digits) / 10**digits
