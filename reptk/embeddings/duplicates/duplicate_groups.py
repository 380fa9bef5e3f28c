"""Near duplicates as `near_duplicates` returns them, within one set (as groups) or between two sets (as leaks)."""

import csv
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from reptk.core.csv_cells import escape_formula
from reptk.core.disk_space import explain_write_errors
from reptk.core.files import write_text
from reptk.data.decoding.symmetries import BY_NAME
from reptk.embeddings.duplicates.similarity_threshold import SimilarityThreshold
from reptk.embeddings.embeddings import Embeddings

MANY_DIGITS_FROM = 0.99
"""Thresholds from which on similarities are printed with six digits."""

NO_ROW = -1
TURNED = frozenset(BY_NAME) - {""}
"""Kinds of copies that are turned or mirrored."""

CSV_COLUMNS = (
    "group",
    "id",
    "label",
    "path",
    "similarity",
    "nearest",
    "nearest_label",
    "nearest_path",
    "copy",
    "copy_of",
)


class Duplicate(NamedTuple):
    """One image that has a near duplicate.

    Args:
        row: in its set.
        id: of the image.
        label: class name, empty if the image has none.
        path: of its file, None if it is not a file.
        similarity: cosine similarity to its nearest image.
        nearest: row of that image; within a set it may be in another group, between two sets it is in the first.
        copy: whether another image of its group, or its nearest image, is a copy: "bytes" for the same file, "pixels" for
            another file that decodes to the same pixels; "turned_90" (clockwise), "mirrored" (left to right),
            "mirrored_turned_90" (mirrored, then turned) and so on for `copy_of` turned or mirrored; empty for an image that is
            only similar.
        copy_of: row of the image that is turned or mirrored, of the same set as `nearest`; else -1.
    """

    row: int
    id: str
    label: str
    path: Path | None
    similarity: float
    nearest: int
    copy: str
    copy_of: int = NO_ROW

    def describe_copy(self, originals: Embeddings) -> str:
        """Return what kind of copy it is in words; empty for an image that is only similar."""
        if not self.copy:
            return ""
        if self.copy not in TURNED:
            return f"the same {self.copy}"
        symmetry = BY_NAME[self.copy]
        text = f"copy of {originals.ids[self.copy_of]}"
        if symmetry.is_mirrored:
            text = f"mirrored {text}"
        if symmetry.quarters:
            text += f" turned by {90 * symmetry.quarters}° clockwise"
        return text


@dataclass(frozen=True)
class Duplicates:
    """Near duplicates of one set, or between two.

    Args:
        first: the set.
        second: the other set, None for duplicates within one.
        measured: the cosine similarity from which two images are near duplicates, and why.
        groups: within a set: images that are all near duplicates of each other, or turned and mirrored copies of such images;
            largest group first.
        leaks: between sets: the images of `second` that have a near duplicate in `first`, most similar first.
        blank: rows of blank images, of `second` if there is one, which are in no group and no leaks.
    """

    first: Embeddings
    second: Embeddings | None
    measured: SimilarityThreshold
    groups: list[list[Duplicate]]
    leaks: list[Duplicate]
    blank: list[int] = field(default_factory=list)

    @property
    def threshold(self) -> float:
        """The cosine similarity from which two images are near duplicates."""
        return self.measured.value

    def format_similarity(self, similarity: float) -> str:
        """Return a similarity with three digits, or six if the threshold is so near 1 that three would all be 1.000."""
        digits = 3
        if self.threshold >= MANY_DIGITS_FROM:
            digits = 6
        return f"{similarity:.{digits}f}"

    @property
    def count(self) -> int:
        """Number of images in groups, or of leaks."""
        return len(self.leaks) + sum(map(len, self.groups))

    def count_copies(self, *kinds: str) -> int:
        """Return how many of them are copies of another of these kinds, see `Duplicate.copy`."""
        count = 0
        for group in self._all_groups():
            count += sum(duplicate.copy in kinds for duplicate in group)
        return count

    def count_turned(self) -> int:
        """Return how many of them are turned or mirrored copies of another."""
        return self.count_copies(*TURNED)

    @property
    def searched(self) -> Embeddings:
        """The set whose images are listed: `second`, or `first` if there is no second."""
        if self.second is None:
            return self.first
        return self.second

    def count_label_conflicts(self) -> int:
        """Return how many groups hold images of different labels, or how many leaks have another label in `first`."""
        conflicts = 0
        for group in self.groups:
            labels = {duplicate.label for duplicate in group if duplicate.label}
            conflicts += len(labels) > 1
        for leak in self.leaks:
            other_label = self.first.class_of(leak.nearest)
            conflicts += bool(leak.label and other_label and leak.label != other_label)
        return conflicts

    def count_by_size(self) -> dict[int, int]:
        """Return how many groups there are of each size, smallest size first."""
        return dict(sorted(Counter(map(len, self.groups)).items()))

    def save(self, path: Path) -> None:
        """Write a CSV file with one line per image; blank images come last, and have no group.

        Raises:
            EnvironmentProblem: the file cannot be written.
        """
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(CSV_COLUMNS)
        for number, group in enumerate(self._all_groups(), 1):
            for duplicate in group:
                table.writerow([number, *map(escape_formula, self._csv_cells(duplicate))])
        for row in self.blank:
            table.writerow(["", *map(escape_formula, self._blank_cells(row))])
        with explain_write_errors(path):
            write_text(path, text.getvalue())

    def _all_groups(self) -> list[list[Duplicate]]:
        """Return the groups; every leak is a group of its own."""
        return self.groups + [[leak] for leak in self.leaks]

    def _csv_cells(self, duplicate: Duplicate) -> list[object]:
        nearest = duplicate.nearest
        copy_of = ""
        if duplicate.copy_of != NO_ROW:
            copy_of = self.first.ids[duplicate.copy_of]
        return [
            duplicate.id,
            duplicate.label,
            duplicate.path or "",
            f"{duplicate.similarity:.6f}",
            self.first.ids[nearest],
            self.first.class_of(nearest),
            self.first.file(nearest) or "",
            duplicate.copy or "no",
            copy_of,
        ]

    def _blank_cells(self, row: int) -> list[object]:
        images = self.searched
        return [images.ids[row], images.class_of(row), images.file(row) or "", "", "", "", "", "blank", ""]
