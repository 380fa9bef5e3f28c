"""What one rank does for a folder of embeddings: take the next part that no rank has taken, embed its images, and write it."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.core.file_records import file_record
from reptk.core.progress import progress
from reptk.embeddings.encoding.embedder import Embedder
from reptk.embeddings.encoding.embedding_job import EmbeddingJob
from reptk.embeddings.encoding.encode_images import (
    MAX_LISTED_REASONS,
    EncodedBatch,
    SkippedImages,
    batches,
    encode,
    row_block,
)
from reptk.embeddings.encoding.image_shards import ImageShard
from reptk.embeddings.encoding.image_sources import ImageSource
from reptk.embeddings.encoding.part_plan import PlannedPart
from reptk.embeddings.files.parts_manifest import part_name
from reptk.embeddings.files.row_blocks import Header, RowBlock
from reptk.embeddings.files.safetensors_file import SafetensorsFile


@dataclass(eq=False)
class _Task:
    """A planned part while its images are embedded, and what counts the images that are left out."""

    part: PlannedPart
    skipped: SkippedImages


class SkippedByRank(NamedTuple):
    """The images that a rank has left out.

    num_in_no_part: those of parts that have no rows, and hence no file that says so.
    num_without_vector: those that were read, and have no usable embedding.
    reasons: of the first of all.
    """

    num_in_no_part: int
    num_without_vector: int
    reasons: list[str]


class PartWorker:
    """Embeds the images of the parts that this rank takes."""

    def __init__(
        self, folder: Path, source: ImageSource, embedder: Embedder, header: Header, job: EmbeddingJob
    ) -> None:
        self.folder = folder
        self.source = source
        self.embedder = embedder
        self.header = header
        self.job = job
        self._all_skipped: list[SkippedImages] = []
        self._num_in_no_part = 0

    def run(self, planned: Sequence[PlannedPart], num_to_embed: int) -> list[dict[str, Any]]:
        """Write parts, and return what the manifest says of them."""
        records = []
        done = distributed.SharedCounter()
        shown = 0
        with progress("embedding", num_to_embed) as advance_bar:
            # The bar shows what all ranks have done.
            def advance(count: int) -> None:
                nonlocal shown
                total = done.add(count)
                advance_bar(total - shown)
                shown = total

            for group_number in range(len(self.source.groups)):
                of_group = [part for part in planned if part.group == group_number]
                records += self._run_group(group_number, of_group, advance)
        return records

    def skipped(self) -> SkippedByRank:
        """Return which images this rank has left out."""
        reasons: list[str] = []
        num_without_vector = 0
        for skipped in self._all_skipped:
            reasons += skipped.reasons
            num_without_vector += skipped.num_without_vector
        return SkippedByRank(self._num_in_no_part, num_without_vector, reasons[:MAX_LISTED_REASONS])

    def _run_group(
        self, group_number: int, planned: Sequence[PlannedPart], advance: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        group = self.source.groups[group_number]
        records = []
        # Rows that are copied need no encoder, and are spread evenly.
        copied = [part for part in planned if part.num_to_embed == 0]
        for part in copied[distributed.rank() :: distributed.world_size()]:
            records.append(self._write(_Task(part, self._count_skipped()), iter(())))
        embedded = [part for part in planned if part.num_to_embed]
        taken = distributed.SharedCounter()
        # The task of every batch that is being fetched, so that decoding goes on from one part to the next.
        tasks: deque[_Task] = deque()

        def number_batches() -> Iterator[Tensor]:
            while (position := taken.add(1) - 1) < len(embedded):
                task = _Task(embedded[position], self._count_skipped())
                for numbers in batches(task.part.to_embed(), self.job.batch_size):
                    tasks.append(task)
                    yield numbers

        encoded = encode(group, number_batches(), self.embedder, lambda: tasks[0].skipped, self.job.workers, advance)
        # Closed, so that the threads end even if a batch cannot be embedded or written.
        with closing(encoded):
            tagged = ((tasks.popleft(), batch) for batch in encoded)
            for task, pairs in groupby(tagged, key=_task_of):
                records.append(self._write(task, (batch for _, batch in pairs)))
        return [record for record in records if record is not None]

    def _count_skipped(self) -> SkippedImages:
        skipped = SkippedImages(self.job.strict)
        self._all_skipped.append(skipped)
        return skipped

    def _write(self, task: _Task, encoded: Iterator[EncodedBatch]) -> dict[str, Any] | None:
        """Write a part and return what the manifest says of it; None if none of its images can be read."""
        part = task.part
        blocks = self._blocks(part, encoded)
        first = next(blocks, None)
        if first is None and part.shard is None:
            self._num_in_no_part += task.skipped.count
            return None
        path = self.folder / part_name(part.number)
        header = replace(self.header, max_rows=len(part.numbers), metadata=dict(self.header.metadata))
        header.metadata["part"] = {"shard": part.shard}
        num_rows = 0
        with SafetensorsFile(path).writer(header) as writer:
            while first is not None:
                writer.add(first)
                num_rows += len(first.vectors)
                first = next(blocks, None)
            if task.skipped.count:
                if part.shard is not None:
                    # Else the images of a file that was replaced would be left out of a part that counts as complete.
                    self._shard_of(part).check_unchanged()
                header.metadata["skipped"] = {"count": task.skipped.count, "first": task.skipped.reasons}
        record: dict[str, Any] = {"name": path.name, "rows": num_rows, **file_record(path)}
        if task.skipped.count:
            record["skipped"] = {"count": task.skipped.count, "first": task.skipped.reasons}
        if part.shard is not None:
            record["shard"] = part.shard
        return record

    def _shard_of(self, part: PlannedPart) -> ImageShard:
        shards = self.source.groups[part.group].shards
        return shards[bisect_right(shards, part.numbers[0], key=attrgetter("start")) - 1]

    def _blocks(self, part: PlannedPart, encoded: Iterator[EncodedBatch]) -> Iterator[RowBlock]:
        """Yield the rows of a part as they are computed; those of an earlier part in their former order."""
        group = self.source.groups[part.group]
        if part.earlier_rows is not None:
            numbers, vectors, positions = self._merged(part, encoded)
            if len(numbers):
                yield row_block(group, numbers, vectors, part.file_stats_at(positions))
            return
        all_numbers = part.image_numbers()
        for batch in encoded:
            if len(batch.numbers):
                positions = torch.searchsorted(all_numbers, batch.numbers)  # they ascend
                yield row_block(group, batch.numbers, batch.vectors, part.file_stats_at(positions))

    def _merged(self, part: PlannedPart, encoded: Iterator[EncodedBatch]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers (n,) of images, their vectors (n, F), and their positions in the part."""
        earlier = SafetensorsFile(self.folder / part.earlier_name).read(verify=False)  # verified before
        numbers = part.image_numbers()
        vectors = torch.empty(len(numbers), self.header.width)
        is_copied = part.earlier_rows >= 0
        vectors[is_copied] = earlier.vectors[part.earlier_rows[is_copied]].float()
        has_vector = is_copied.clone()
        position_of = {number: position for position, number in enumerate(numbers.tolist())}
        for batch in encoded:
            positions = torch.tensor([position_of[number] for number in batch.numbers.tolist()], dtype=torch.long)
            vectors[positions] = batch.vectors
            has_vector[positions] = True
        return numbers[has_vector], vectors[has_vector], has_vector.nonzero().flatten()


def _task_of(tagged: tuple[_Task, EncodedBatch]) -> _Task:
    return tagged[0]
