"""What `embed` does with which arguments, checked before any work starts."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reptk.core.errors import UsageError
from reptk.embeddings.files import parts_manifest
from reptk.embeddings.files.embeddings_file import check_output, is_parts_output

IMAGES_PER_PART = 10_000


def _silent(line: str) -> None:
    pass


class EmbeddingJob(NamedTuple):
    """How images are embedded, and where the embeddings are written; see `embed`.

    out: a file or a folder of parts; None for memory.
    batch_size: images that are encoded at once.
    workers: threads that decode images ahead, of each rank.
    images_per_part: at most; None for `IMAGES_PER_PART`.
    strict: whether an image that cannot be read is an error.
    force: replace what is at `out`. Of a folder, embed all images again, and then remove the parts that were there.
    update: embed only images of files that are new or have changed.
    prune: remove the embeddings of images that are gone, however many these are.
    report: called with each line of a summary.
    """

    out: Path | None
    batch_size: int
    workers: int
    images_per_part: int | None = None
    strict: bool = False
    force: bool = False
    update: bool = False
    prune: bool = False
    report: Callable[[str], None] = _silent

    @property
    def is_folder(self) -> bool:
        """Whether `out` is a folder of parts."""
        return self.out is not None and is_parts_output(self.out)

    @property
    def max_part_images(self) -> int:
        """How many images a part has at most."""
        return self.images_per_part or IMAGES_PER_PART

    def check(self) -> None:
        """Check the arguments, and that embeddings can be written.

        Raises:
            UsageError: arguments that are out of range, or that do not go together; `out` exists.
            EnvironmentProblem: `out` cannot be written.
        """
        if self.batch_size < 1 or self.workers < 0:
            raise UsageError(
                f"batch_size must be at least 1 and workers at least 0, got {self.batch_size} and {self.workers}"
            )
        if self.update and (self.out is None or self.force):
            raise UsageError("--update updates the file that --out names, and does not go with --force")
        if self.images_per_part is not None and self.images_per_part < 1:
            raise UsageError(f"images_per_part must be at least 1, got {self.images_per_part}")
        if self.is_folder:
            parts_manifest.check_output_folder(self.out)
        elif self.images_per_part is not None:
            raise UsageError("images_per_part is for a folder of parts: name one as --out, without a suffix")
        elif self.out is not None:
            check_output(self.out, force=self.force or self.update)
        if self.prune and not (self.is_folder or self.update):
            raise UsageError("--prune is for a folder of parts, or for --update: other embeddings are written anew")
