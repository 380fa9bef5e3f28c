"""Images of a data set that could not be read: how many a run tolerates, and their list in bad_samples.csv."""

import csv
import io
import os
from pathlib import Path

import torch

from reptk.core import distributed
from reptk.core.console import Logger
from reptk.core.counts import format_count
from reptk.core.csv_cells import escape_formula
from reptk.core.errors import EnvironmentProblem
from reptk.core.files import write_text
from reptk.core.foreign_files import read_text
from reptk.data.protocol import Data, Images, Split

FILE = "bad_samples.csv"

HEADINGS = ["path", "reason"]

MAX_PRINTED = 3

NUMBERS_AT_ONCE = 1 << 20

MAX_UNREADABLE_SHARE = 0.01
MAX_UNREADABLE_OF_FEW = 10
"""More unreadable images than this share, and than this number, stop a run that skips them. Of few images at most a fifth."""


def tolerated_unreadable(count: int) -> int:
    """Return how many of `count` images may be unreadable without stopping a run that skips them."""
    return int(max(MAX_UNREADABLE_SHARE * count, min(MAX_UNREADABLE_OF_FEW, count / 5)))


class BadSamples:
    """The images of a data set that could not be read so far, on any rank.

    Args:
        data: the data set.
        logger: where to print.
        folder: where to write `bad_samples.csv`; None for nowhere.
        device: for collectives between the ranks.
    """

    def __init__(
        self, data: Data, logger: Logger, folder: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.logger = logger
        self.folder = folder
        self.device = device
        self.reasons = _listed_before(folder)
        """By path, as it is written into the file, or by split and index for images that are not in files of their own."""
        self._splits: list[tuple[str, Split]] = []
        for name, split in data.splits.items():
            if split is not None and all(split is not other for _, other in self._splits):
                self._splits.append((name, split))

    def update(self) -> None:
        """Print and list the images that could not be read since the last call. All ranks have to call it."""
        reasons: dict[str, str] = {}
        for name, split in self._splits:
            for number, reason in self._unreadable(split).items():
                reasons[_name_of(name, split, number)] = reason
        new = [reason for name, reason in sorted(reasons.items()) if name not in self.reasons]
        if not new:
            return
        self.reasons |= reasons
        where = ""
        if self.folder is not None:
            where = f", listed in {self.folder / FILE}"
            if distributed.is_main():
                self._write_table(self.folder / FILE)
        self.logger.line(f"skipped {format_count(len(new), 'image')} that cannot be read{where}:")
        for reason in new[:MAX_PRINTED]:
            self.logger.line(f"  {reason}")
        if len(new) > MAX_PRINTED:
            self.logger.line(f"  and {len(new) - MAX_PRINTED:,} more")

    def _write_table(self, path: Path) -> None:
        try:
            write_text(path, self._table())
        except (OSError, EnvironmentProblem) as cause:
            self.logger.line(f"cannot write {path}: {cause}")  # the next update tries again

    def _unreadable(self, split: Split) -> dict[int, str]:
        unreadable: dict[int, str] = {}
        # In parts: the numbers of all images of a large data set would need much memory.
        for start in range(0, len(split), NUMBERS_AT_ONCE):
            stop = min(start + NUMBERS_AT_ONCE, len(split))
            unreadable |= split.images.unreadable(torch.arange(start, stop))
        numbers = torch.tensor(sorted(unreadable), dtype=torch.long, device=self.device)
        from_all_ranks = distributed.all_gather_uneven(numbers).cpu().unique()
        others = torch.tensor(
            [number for number in from_all_ranks.tolist() if number not in unreadable], dtype=torch.long
        )
        if len(others):
            # Another rank could not read them; this one learns why.
            split.images.fetch(others)
            unreadable |= split.images.unreadable(others)
        return unreadable

    def _table(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADINGS)
        for path, reason in sorted(self.reasons.items()):
            writer.writerow([path, _with_escaped_bytes(reason)])
        return text.getvalue()


def _listed_before(folder: Path | None) -> dict[str, str]:
    """Return what the file of a run that is resumed lists."""
    if folder is None or not (folder / FILE).is_file():
        return {}
    text = read_text(folder / FILE, errors="surrogateescape")
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:  # the file is written again
        return {}
    return {row[0]: row[1] for row in rows if len(row) == 2 and row != HEADINGS}


def image_name(split_name: str, images: Images, number: int) -> str:
    """Return the path of image `number`, or the split and the number if it is not in a file of its own."""
    path = images.path(number)
    if path is None:
        return f"{split_name}/{number}"
    return _with_escaped_bytes(str(path))


def _with_escaped_bytes(text: str) -> str:
    """Return a text in which bytes of file names that are not UTF-8 are written as `\\xe9`."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _name_of(split_name: str, split: Split, number: int) -> str:
    """Return the name of an image as a cell of the file."""
    return str(escape_formula(image_name(split_name, split.images, number)))
