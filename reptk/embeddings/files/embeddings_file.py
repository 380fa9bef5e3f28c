"""Files of embeddings behind one interface: safetensors, and Parquet for data tools."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from reptk.core.errors import DataError, UsageError
from reptk.embeddings.files.output_path import check_output_file
from reptk.embeddings.files.parquet_file import ParquetFile
from reptk.embeddings.files.parts_folder import PartsFolder
from reptk.embeddings.files.row_blocks import Header, RowBlock, StoredColumns
from reptk.embeddings.files.safetensors_file import SafetensorsFile

SUFFIXES = (".safetensors", ".parquet")


class BlockWriter(Protocol):
    """Writes rows to a file, one block after another."""

    def add(self, block: RowBlock) -> None:
        """Write the rows of a block."""
        ...


class EmbeddingsFile(Protocol):
    """A file of embeddings in one of the formats."""

    path: Path

    def check_installed(self) -> None:
        """Raise EnvironmentProblem unless what the format needs is installed."""
        ...

    def writer(self, header: Header) -> AbstractContextManager[BlockWriter]:
        """Open the file for writing. It appears, or is replaced, when the block ends; after an error nothing has changed.

        Raises:
            EnvironmentProblem: no free space, no right to write, or a missing library.
        """
        ...

    def read(self, *, verify: bool | None = None) -> StoredColumns:
        """Return all columns; those of a safetensors file are memory-mapped.

        Args:
            verify: whether the file is compared with the hash that it carries, if it has one; by default, unless it is larger
                than `MAX_HASHED_BYTES`.

        Raises:
            DataError: the file is damaged, of a newer reptk, or holds no embeddings.
        """
        ...


def is_parts_output(path: Path) -> bool:
    """Return whether a path to write to is that of a folder of parts: a folder that exists, or a name without a suffix."""
    if path.suffix.lower() in SUFFIXES:
        return False
    return path.is_dir() or not path.suffix


def embeddings_file(path: Path) -> EmbeddingsFile:
    """Return the file at `path`, in the format that its suffix names.

    Raises:
        UsageError: the suffix names no format.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return SafetensorsFile(path)
    if suffix == ".parquet":
        return ParquetFile(path)
    raise UsageError(
        f"embeddings are stored as .safetensors or .parquet, or in a folder, whose name has no suffix, not as {path.name!r}"
    )


def check_output(path: str | Path, *, force: bool = False) -> Path:
    """Raise what writing embeddings to `path` would raise, before any work is done. Returns the path."""
    path = Path(path)
    embeddings_file(path).check_installed()
    check_output_file(path, force=force)
    return path


def existing_file(path: str | Path) -> EmbeddingsFile:
    """Return the file at `path`, or the folder of parts, which must exist.

    Raises:
        DataError: there is no such file.
        UsageError: the suffix names no format.
    """
    if Path(path).is_dir():
        return PartsFolder(Path(path))
    file = embeddings_file(Path(path))
    if not file.path.is_file():
        raise DataError(f"no file of embeddings {file.path}. Make one: reptk embed RUN --data FOLDER --out {file.path}")
    return file
