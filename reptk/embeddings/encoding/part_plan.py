"""Which parts of a folder of embeddings stay, and which images go into which new ones: only what is new is embedded.

Parts are never changed in place. Until the manifest lists the new ones, a reader finds the earlier parts as they were.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.embeddings.encoding.image_shards import ImageShard
from reptk.embeddings.encoding.image_sources import ImageSource
from reptk.embeddings.encoding.match_images import match_images
from reptk.embeddings.files.parts_manifest import part_number
from reptk.embeddings.files.row_blocks import relabeled
from reptk.embeddings.files.safetensors_file import SafetensorsFile
from reptk.embeddings.files.string_array import StringArray

NEW = -1


@dataclass(frozen=True)
class VerifiedPart:
    """A part whose file is there, and is as it was when it was written.

    Args:
        number: in the name of its file.
        record: what the manifest says of it: name, rows, bytes, sha256, skipped, and the shard, if it is that of one.
    """

    number: int
    record: dict[str, Any]


@dataclass(frozen=True)
class PlannedPart:
    """A part that is to be written.

    Args:
        number: in the name of its file.
        group: number of the group of images.
        numbers: of the images in the group, in the order of the rows: a range, or (n,).
        file_stats: (n, 2) of their files; None if they are not files.
        shard: what the manifest says of their shard; None if they are in none.
        earlier_name: an earlier part, which has the vectors of some of them.
        earlier_rows: (n,) their rows in it, `NEW` for an image that has to be embedded; None if all have to be.
    """

    number: int
    group: int
    numbers: range | Tensor
    file_stats: Tensor | None = None
    shard: dict[str, Any] | None = None
    earlier_name: str | None = None
    earlier_rows: Tensor | None = None

    def image_numbers(self) -> Tensor:
        """Return the numbers (n,) of the images in the group."""
        return torch.as_tensor(self.numbers, dtype=torch.long)

    def to_embed(self) -> Tensor:
        """Return the numbers of the images that have to be embedded."""
        numbers = self.image_numbers()
        if self.earlier_rows is None:
            return numbers
        return numbers[self.earlier_rows == NEW]

    def file_stats_at(self, positions: Tensor) -> Tensor | None:
        """Return `file_stats` of the images at these positions (b,) in the part."""
        if self.file_stats is None:
            return None
        return self.file_stats[positions]

    @property
    def num_to_embed(self) -> int:
        """How many images have to be embedded."""
        if self.earlier_rows is None:
            return len(self.numbers)
        return int((self.earlier_rows == NEW).sum())


@dataclass
class Plan:
    """What becomes of a folder.

    Args:
        unchanged: parts that stay.
        planned: parts to write.
        obsolete: names of parts to remove, once the manifest no longer lists them.
        num_changed: images, or shards, that are other than when they were embedded.
        num_removed: images, or shards, that are gone.
        num_removed_rows: embeddings of images that are gone.
        unit: what these are.
    """

    unchanged: list[VerifiedPart] = field(default_factory=list)
    planned: list[PlannedPart] = field(default_factory=list)
    obsolete: list[str] = field(default_factory=list)
    num_changed: int = 0
    num_removed: int = 0
    num_removed_rows: int = 0
    unit: str = "image"

    @property
    def num_to_embed(self) -> int:
        return sum(part.num_to_embed for part in self.planned)

    def describe(self) -> str:
        """Return a line for the summary that is printed before work starts."""
        num_rows = sum(part.record["rows"] for part in self.unchanged)
        line = f"  parts: {format_count(len(self.unchanged), 'part')} of {format_count(num_rows, 'embedding')} verified"
        line += (
            f", {format_count(len(self.planned), 'part')} to write, {format_count(self.num_to_embed, 'image')} to embed"
        )
        if self.num_changed or self.num_removed:
            unit = format_count(self.num_changed, self.unit)
            line += f"; {unit} changed, {self.num_removed:,} removed"
        return line


def make_plan(
    folder: Path,
    source: ImageSource,
    parts: Sequence[VerifiedPart],
    images_per_part: int,
    replaced: Sequence[str] = (),
) -> Plan:
    """Return what to embed and what is there already.

    Args:
        folder: of the parts.
        source: the images as they are now.
        parts: those that are there and verified.
        images_per_part: at most.
        replaced: names of parts that are there, and are not to be used.

    Raises:
        DataError: two images have the same id.
    """
    numbers = _FreeNumbers([*(part.number for part in parts), *(part_number(Path(name)) for name in replaced)])
    if any(group.shards for group in source.groups):
        plan = _plan_shards(source, parts, images_per_part, numbers)
    else:
        plan = _plan_images(folder, source, parts, images_per_part, numbers)
    plan.obsolete += replaced
    return plan


def _plan_shards(
    source: ImageSource, parts: Sequence[VerifiedPart], images_per_part: int, numbers: "_FreeNumbers"
) -> Plan:
    """Parts of one shard each, which is known by its name, its size and its time of modification.

    A shard of more than `images_per_part` images has several parts. Those that are there stay, wherever they divide it.
    """
    plan = Plan(unit="shard")
    # A list, since an interrupted run leaves the part of a shard as it was beside that of the shard as it is.
    parts_of_shard: defaultdict[tuple[Any, Any], list[VerifiedPart]] = defaultdict(list)
    for part in parts:
        shard_record = part.record.get("shard") or {}
        parts_of_shard[shard_record.get("name"), shard_record.get("run")].append(part)
    for group_number, group in enumerate(source.groups):
        for shard in group.shards:
            earlier = parts_of_shard.pop((shard.name, shard.run), [])
            current, missing = _divide(shard, earlier, images_per_part)
            plan.unchanged += current
            obsolete = [part.record["name"] for part in earlier if part not in current]
            plan.obsolete += obsolete
            plan.num_changed += bool(obsolete and missing)
            for rows in missing:
                record = shard.record()
                if len(rows) < len(shard):
                    record["rows"] = [rows.start, rows.stop]
                images = range(shard.start + rows.start, shard.start + rows.stop)
                plan.planned.append(PlannedPart(numbers.take(), group_number, images, shard=record))
    for removed in parts_of_shard.values():
        plan.num_removed += 1
        plan.obsolete += [part.record["name"] for part in removed]
        plan.num_removed_rows += sum(part.record["rows"] for part in removed)
    return plan


def _divide(
    shard: ImageShard, earlier: Sequence[VerifiedPart], images_per_part: int
) -> tuple[list[VerifiedPart], list[range]]:
    """Return which earlier parts are of a shard as it is, and ranges of the images that they lack, one for each new part."""
    covered: list[tuple[range, VerifiedPart]] = []
    for part in earlier:
        rows = _rows_of_shard(shard, part)
        if rows is not None:
            covered.append((rows, part))
    covered.sort(key=lambda pair: (pair[0].start, -pair[0].stop))
    current = []
    missing = []
    done = 0
    for rows, part in covered:
        if rows.start < done:
            continue  # another part has these images
        missing += _pieces(done, rows.start, images_per_part)
        current.append(part)
        done = rows.stop
    missing += _pieces(done, len(shard), images_per_part)
    return current, missing


def _rows_of_shard(shard: ImageShard, part: VerifiedPart) -> range | None:
    """Return which images of a shard a part has, counted from its first; None if the part is of another one."""
    record = dict(part.record["shard"])
    bounds = record.pop("rows", [0, len(shard)])
    if record != shard.record():
        return None
    first, last = bounds
    if not 0 <= first < last <= len(shard):
        return None
    return range(first, last)


def _pieces(start: int, stop: int, max_length: int) -> list[range]:
    """Divide a range evenly into as few pieces of at most `max_length` as possible."""
    count = -(-(stop - start) // max_length)
    bounds = [start + (stop - start) * number // count for number in range(count)]
    return [range(first, last) for first, last in pairwise([*bounds, stop])]


def _plan_images(
    folder: Path, source: ImageSource, parts: Sequence[VerifiedPart], images_per_part: int, numbers: "_FreeNumbers"
) -> Plan:
    """Parts of consecutive images, which are known by their ids, and files by their sizes and times of modification, too."""
    plan = Plan()
    images = _KnownImages(source)
    stale = []
    for part in parts:
        rows = images.match(folder / part.record["name"])
        if rows.are_all_current():
            images.claim(rows.numbers)
            plan.unchanged.append(part)
        else:
            stale.append((part, rows))
    # After all parts that stay: an interrupted run may have written a part again that is stale here.
    for part, rows in stale:
        plan.obsolete.append(part.record["name"])
        num_gone = int((rows.numbers < 0).sum())
        plan.num_removed += num_gone
        plan.num_removed_rows += num_gone
        rows = rows.unclaimed()
        if not len(rows.numbers):
            continue
        plan.num_changed += int((~rows.is_current).sum())
        images.claim(rows.numbers)
        earlier_rows = rows.rows.where(rows.is_current, NEW)
        group_number, local = images.local_numbers(rows.numbers)
        plan.planned.append(
            PlannedPart(
                numbers.take(),
                group_number,
                local,
                images.file_stats_of(rows.numbers),
                earlier_name=part.record["name"],
                earlier_rows=earlier_rows,
            )
        )
    for group_number, start, stop in images.group_bounds():
        remaining = (~images.is_claimed[start:stop]).nonzero().flatten()
        for local in remaining.split(images_per_part):
            if len(local):
                stats = images.file_stats_of(local + start)
                # A copy, since a piece of a tensor is sent to other ranks with all of it.
                plan.planned.append(PlannedPart(numbers.take(), group_number, local.clone(), stats))
    return plan


class _FreeNumbers:
    """Numbers of parts whose files do not exist, or are damaged."""

    def __init__(self, taken: Sequence[int]) -> None:
        self._taken = set(taken)
        self._next = 0

    def take(self) -> int:
        while self._next in self._taken:
            self._next += 1
        self._next += 1
        return self._next - 1


@dataclass
class _MatchedRows:
    """The rows of a part that have an image.

    Args:
        images: of the source.
        rows: (n,) rows of the part.
        numbers: (n,) numbers of the images through all groups, -1 for one that is gone.
        is_current: (n,) whether the image is as it was.
        has_same_labels: whether the classes are as well.
    """

    images: "_KnownImages"
    rows: Tensor
    numbers: Tensor
    is_current: Tensor
    has_same_labels: bool

    def are_all_current(self) -> bool:
        """Return whether nothing has changed, and no other part has one of these images."""
        if not self.has_same_labels or not bool(self.is_current.all()):
            return False
        return len(self.numbers) > 0 and not bool(self.images.is_claimed[self.numbers].any())

    def unclaimed(self) -> "_MatchedRows":
        """Return the rows whose images are there, and in no other part."""
        is_free = self.numbers >= 0
        is_free[self.numbers >= 0] &= ~self.images.is_claimed[self.numbers[self.numbers >= 0]]
        return _MatchedRows(
            self.images, self.rows[is_free], self.numbers[is_free], self.is_current[is_free], self.has_same_labels
        )


class _KnownImages:
    """The images of all groups, by id."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.starts = torch.tensor([0, *map(len, source.groups)]).cumsum(0)
        self.number_of: dict[str, int] = {}
        stats = []
        for group, start in zip(source.groups, self.starts.tolist(), strict=False):
            for number, image_id in enumerate(group.ids, start):
                if image_id in self.number_of:
                    raise DataError(f"there are two images with the id {image_id!r}; ids tell images of parts apart")
                self.number_of[image_id] = number
            if group.file_stats is not None:
                stats.append(group.file_stats)
        self.file_stats = None
        if len(stats) == len(source.groups):
            self.file_stats = torch.cat(stats)
        self.labels = torch.cat([group.labels for group in source.groups])
        self.is_claimed = torch.zeros(len(source), dtype=torch.bool)

    def match(self, path: Path) -> _MatchedRows:
        """Match the rows of a part with the images."""
        part = SafetensorsFile(path).read(verify=False)
        ids = StringArray.from_strings(part.ids or [])
        numbers, is_current = match_images(ids, part.file_stats, self.number_of, self.file_stats)
        labels = relabeled(part.labels, part.classes, self.source.classes)
        has_same_labels = torch.equal(labels[is_current], self.labels[numbers[is_current]])
        return _MatchedRows(self, torch.arange(len(numbers)), numbers, is_current, has_same_labels)

    def claim(self, numbers: Tensor) -> None:
        """Record that these images are in a part."""
        self.is_claimed[numbers] = True

    def file_stats_of(self, numbers: Tensor) -> Tensor | None:
        if self.file_stats is None:
            return None
        return self.file_stats[numbers]

    def group_bounds(self) -> list[tuple[int, int, int]]:
        """Return the number of each group, and of its first image and the one after its last."""
        starts = self.starts.tolist()
        return [(group, starts[group], starts[group + 1]) for group in range(len(starts) - 1)]

    def local_numbers(self, numbers: Tensor) -> tuple[int, Tensor]:
        """Return the group of images, which are of one, and their numbers in it."""
        group = int(torch.searchsorted(self.starts, numbers[:1], right=True)) - 1
        return group, numbers - self.starts[group]
