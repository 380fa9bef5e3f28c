"""The images behind the numbers, fetched again from the data set that results.json names; one that fails is None."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from reptk import config
from reptk.config.registry import DATASETS
from reptk.core.errors import ReptkError
from reptk.data import Data, Split, num_cpus, subsample
from reptk.evaluate.predictions import Predictions
from reptk.report.compare import which_data
from reptk.report.runs import Run

BLOCK = 256
SIDE_PX, LOSSLESS_PX = 128, 64
"""Longest side of a picture of the gallery; up to which side it is kept to the bit."""


@dataclass
class Source:
    """The opened data set of a run, or why there is none.

    Args:
        key: the same for runs of the same images.
        why_not: one sentence, empty if the images are there.
    """

    key: str
    data: Data | None = None
    why_not: str = ""

    def split(self, name: str) -> Split | None:
        """One of its splits by name."""
        return getattr(self.data, name, None) if name in ("train", "bank", "query") else None

    def name_of(self, split: str, number: int) -> str:
        """An image's file name, where the data set knows files."""
        images = getattr(self.split(split), "images", None)
        path = images.path(number) if hasattr(images, "path") else None
        return path.name if path is not None else ""


@dataclass
class Sources:
    """Data sets opened once, however many runs are of them."""

    opened: list[tuple[dict[str, Any], Source]] = field(default_factory=list)

    def know(self, run: Run, data: Data) -> None:
        """The data set of a run, opened by somebody else."""
        self.opened.append((which_images(run), Source(f"d{len(self.opened)}", data)))

    def of(self, run: Run) -> Source:
        """The images of a run, held against its evidence."""
        part = which_images(run)
        known = next((source for other, source in self.opened if other == part), None)
        if known is None:
            known = _opened(run, f"d{len(self.opened)}")
            self.opened.append((part, known))
        reason = known.why_not or _misfit(known, run.evidence)
        return Source(known.key, None if reason else known.data, reason)


def which_images(run: Run) -> dict[str, Any]:
    """What decides which images a run was evaluated on: the data set, and how many were drawn of it."""
    return {**which_data(run.data_part), "limit": run.results.protocol.get("limit")}


def _opened(run: Run, key: str) -> Source:
    if not run.data_part:
        return Source(key, None, "The run does not say which data set its images are from.")
    try:
        if run.recipe.get("plugins"):
            config.load(run.folder)  # its data set may be a plugin's
        part = config.complete("data", run.data_part)
        if "download" in part:
            part["download"] = False
        data, limit = config.build(DATASETS, part), run.results.protocol.get("limit")
        return Source(key, subsample(data, limit) if isinstance(limit, int) else data)
    except (ReptkError, OSError) as cause:
        reason = str(cause).splitlines()[0].rstrip(".")
        return Source(key, None, f"The data set cannot be opened ({reason}).")


def _misfit(source: Source, evidence: Predictions | None) -> str:
    """Why the images cannot be those that the evidence counts, empty if they can."""
    if evidence is None:
        return ""
    for name, numbers in ((evidence.query_split, evidence.index), (evidence.bank_split, evidence.neighbors)):
        split = source.split(name)
        if split is None or (len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(split)):
            return "The data set has changed since: it has no longer the images that were evaluated."
    labels = source.split(evidence.query_split).labels
    if bool((evidence.labels >= 0).any()) and not torch.equal(labels[evidence.index].cpu(), evidence.labels):
        return "The data set has changed since: its labels are no longer those that were evaluated."
    return ""


def fetched(split: Split, numbers: Tensor) -> Iterator[list[Tensor | None]]:
    """Blocks of (3, H, W) uint8, in order, read by as many threads as there are num_cpus; None for an unreadable one."""
    with ThreadPoolExecutor(num_cpus()) as pool:
        yield from pool.map(lambda block: _block(split, block), numbers.split(BLOCK))


def _block(split: Split, numbers: Tensor) -> list[Tensor | None]:
    try:
        return list(split.images.fetch(numbers).cpu())
    except (ReptkError, OSError, ValueError):
        return [_one(split, number) for number in numbers.split(1)]


def _one(split: Split, number: Tensor) -> Tensor | None:
    try:
        return split.images.fetch(number)[0].cpu()
    except (ReptkError, OSError, ValueError):
        return None


def uri_of(image: Tensor, side: int = SIDE_PX) -> str:
    """(3, H, W) uint8 as a data URI: PNG, to the bit, if it is small, else a JPEG of at most `side` pixels."""
    picture = pillow_of(image)
    if max(picture.size) <= LOSSLESS_PX:
        return encoded(picture, "PNG", optimize=True)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return encoded(picture, "JPEG", quality=82, optimize=True)


def pillow_of(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 as a picture; grey if it is."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return picture.convert("L") if bool((image == image[:1]).all()) else picture


def encoded(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as a data URI."""
    made = io.BytesIO()
    picture.save(made, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(made.getvalue()).decode()}"
