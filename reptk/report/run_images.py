"""The images that a run was evaluated on, read again from the data set that results.json names."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk import config
from reptk.config.plugins import load_contributed_plugins, load_recipe_plugins
from reptk.config.registry import DATASETS
from reptk.core.errors import ReptkError, first_line
from reptk.data import Data, Split, num_cpus, subsample
from reptk.data.decoding.resize import PAGE_COLOR
from reptk.evaluate.predictions import Predictions
from reptk.report.run_comparison import data_identity
from reptk.report.run_files import Run

BLOCK_IMAGES = 256
UNREADABLE = (ReptkError, OSError, ValueError)

CHANGED_IMAGES = "The data set has changed since: it has no longer the images that were evaluated."
CHANGED_LABELS = "The data set has changed since: its labels are no longer those that were evaluated."


@dataclass
class RunImages:
    """The opened data set of a run, or the reason why there is none.

    Args:
        key: the same for runs of the same images.
        data: the data set, None if it cannot be opened.
        missing_reason: one sentence, empty if there is a data set.
    """

    key: str
    data: Data | None = None
    missing_reason: str = ""

    def split(self, name: str) -> Split | None:
        """Return a split by the name that predictions store: "train", "bank" or "query"."""
        if self.data is None:
            return None
        return self.data.splits.get(name)

    def file(self, split_name: str, number: int) -> Path | None:
        """Return the path of an image; None if it is not in a file."""
        split = self.split(split_name)
        if split is None:
            return None
        return split.images.path(number)

    def file_name(self, split_name: str, number: int) -> str:
        """Return the file name of an image; empty if the images have no files."""
        path = self.file(split_name, number)
        if path is None:
            return ""
        return path.name


@dataclass
class OpenedDatasets:
    """Data sets, each opened once, however many runs it belongs to.

    Args:
        trust: whether plugin files in the folders of the runs may be executed.
    """

    trust: bool = False
    opened: list[tuple[dict[str, Any], RunImages]] = field(default_factory=list)

    def add(self, run: Run, data: Data) -> None:
        """Add the data set of a run that is open already."""
        # A list: an identity is a table, which cannot be the key of a dict.
        self.opened.append((_images_identity(run), RunImages(f"d{len(self.opened)}", data)))

    def images_of(self, run: Run) -> RunImages:
        """Return the images of a run, after a check that its predictions can belong to them."""
        images = self._find_or_open(run)
        reason = images.missing_reason or _mismatch(images, run.predictions)
        if reason:
            return RunImages(images.key, None, reason)
        return images

    def _find_or_open(self, run: Run) -> RunImages:
        identity = _images_identity(run)
        for opened_identity, images in self.opened:
            if opened_identity == identity:
                return images
        images = _open(run, f"d{len(self.opened)}", trust=self.trust)
        self.opened.append((identity, images))
        return images


def read_images(split: Split, numbers: Tensor) -> Iterator[Tensor | None]:
    """Yield the images `numbers` (n,) of a split in order, (3, H, W) uint8 each; None for an unreadable one.

    Blocks of images are read by as many threads as there are processors.
    """
    with ThreadPoolExecutor(num_cpus()) as pool:
        for block in pool.map(partial(_read_block, split), numbers.split(BLOCK_IMAGES)):
            yield from block


def _images_identity(run: Run) -> dict[str, Any]:
    """Return what decides which images a run was evaluated on: the data set, and how many were drawn from it."""
    return {**data_identity(run.data_part), "limit": run.results.protocol.get("limit")}


def _open(run: Run, key: str, *, trust: bool) -> RunImages:
    if not run.data_part:
        return RunImages(key, None, "The run does not say which data set its images are from.")
    try:
        skipped_plugins = _load_plugins(run, trust=trust)
        if skipped_plugins and run.data_part.get("name") not in DATASETS.names():
            names = ", ".join(skipped_plugins)
            reason = f"The data set is not one of reptk's, and the plugins of the run were not executed: {names}."
            return RunImages(key, None, f"{reason} If you trust them: reptk report --trust.")
        part = config.complete("data", run.data_part)
        if "download" in part:
            # A report never downloads anything.
            part["download"] = False
        data = config.build(DATASETS, part)
    except (ReptkError, OSError) as cause:
        reason = first_line(cause).rstrip(".")
        return RunImages(key, None, f"The data set cannot be opened ({reason}).")
    limit = run.results.protocol.get("limit")
    # The evaluation drew a sample, to whose images the numbers refer.
    if isinstance(limit, int):
        data = subsample(data, limit)
    return RunImages(key, data)


def _load_plugins(run: Run, *, trust: bool) -> list[str]:
    """Import the run's plugins, one of which may register the data set. Returns those that are not executed."""
    recorded = run.recipe.get("plugins")
    if trust and recorded:
        load_recipe_plugins(run.folder / "recipe.toml", recorded, [], trust=True)
        return []
    return load_contributed_plugins(recorded)


def _mismatch(images: RunImages, predictions: Predictions | None) -> str:
    """Return why the images cannot be those of the predictions; empty if they can."""
    if predictions is None:
        return ""
    references = (
        (predictions.query_split, predictions.index),
        (predictions.bank_split, predictions.neighbors),
    )
    # Predictions refer to images by position; in a folder that has changed these are other images.
    for split_name, numbers in references:
        split = images.split(split_name)
        if split is None:
            return CHANGED_IMAGES
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(split):
            return CHANGED_IMAGES
    if bool((predictions.labels >= 0).any()):
        labels = images.split(predictions.query_split).labels[predictions.index].cpu()
        if not torch.equal(labels, predictions.labels):
            return CHANGED_LABELS
    return ""


def _read_block(split: Split, numbers: Tensor) -> list[Tensor | None]:
    try:
        return list(split.images.resized("pad", PAGE_COLOR).fetch(numbers).cpu())
    except UNREADABLE:
        # One unreadable image fails its whole block; the others are read one by one.
        return [_read_one(split, number) for number in numbers.split(1)]


def _read_one(split: Split, number: Tensor) -> Tensor | None:
    try:
        return split.images.resized("pad", PAGE_COLOR).fetch(number)[0].cpu()
    except UNREADABLE:
        return None
