"""Embeddings as a Parquet table for data tools: columns id, path, label, class, vector, a row group at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reptk.core.errors import DataError, EnvironmentProblem
from reptk.embeddings.place import beside, check_room
from reptk.embeddings.rows import FORMAT, VERSION, Rows, Whole


def need_pyarrow(path: Path) -> None:
    """Raise EnvironmentProblem unless pyarrow is installed."""
    if find_spec("pyarrow") is None:
        raise EnvironmentProblem(
            f"{path.name} needs pyarrow, which is not installed: pip install 'reptk[parquet]', or use .safetensors"
        )


@contextmanager
def writing(path: Path, whole: Whole) -> Iterator["Writer"]:
    """A writer for `path`, where the file appears when the block ends without an error.

    Raises:
        EnvironmentProblem: pyarrow is missing, no room, or no right to write.
    """
    need_pyarrow(path)
    import pyarrow.parquet

    check_room(path, whole.vector_bytes())
    with beside(path) as unfinished:
        file = pyarrow.parquet.ParquetWriter(unfinished, _schema(whole), compression="zstd", use_dictionary=["class"])
        try:
            writer = Writer(file, whole)
            yield writer
            file.add_key_value_metadata({"reptk": _words(whole)})
        finally:
            file.close()


class Writer:
    """Takes rows and writes a row group of each block."""

    def __init__(self, file: Any, whole: Whole) -> None:
        self.file, self.whole = file, whole

    def add(self, rows: Rows) -> None:
        import pyarrow

        schema, count = self.file.schema, len(rows.vectors)
        text = schema.field("id").type
        values = pyarrow.array(rows.vectors.to(self.whole.dtype).flatten().numpy())
        names = dict(enumerate(self.whole.classes))
        classes = pyarrow.array([names.get(label) for label in rows.labels.tolist()], pyarrow.string())
        columns = [
            pyarrow.array([_name(text, one) for one in rows.ids], text),
            pyarrow.array([_name(text, one) for one in rows.paths] if rows.paths is not None else [None] * count, text),
            pyarrow.array(rows.labels.numpy().astype(np.int64)),
            classes,
            pyarrow.FixedSizeListArray.from_arrays(values, self.whole.width),
        ]
        self.file.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def blocks(path: Path, rows: int) -> Iterator[Rows]:
    """The rows of a file, so many at a time.

    Raises:
        DataError: damaged, or no embeddings.
    """
    numbers = 0
    with _opened(path) as file:
        classes = {name: number for number, name in enumerate(_classes(file))}
        for batch in file.iter_batches(rows, columns=[name for name in _COLUMNS if name in file.schema_arrow.names]):
            count = len(batch)
            found = {name: batch.column(name) for name in batch.schema.names}
            ids = _texts(found["id"]) if "id" in found else [str(numbers + one) for one in range(count)]
            paths = _texts(found["path"]) if "path" in found and found["path"].null_count == 0 else None
            yield Rows(_matrix(found["vector"], count), _labels(found, count, classes), ids, paths)
            numbers += count


def head(path: Path) -> Whole:
    """What holds for all rows of a file.

    Raises:
        DataError: damaged, of a newer reptk, or no embeddings.
    """
    with _opened(path) as file:
        words, schema = _words_of(file), file.schema_arrow
        if words.get("version", VERSION) > VERSION:
            raise DataError(f"{path} was written by a newer reptk (format {words['version']}); update reptk to read it")
        if "vector" not in schema.names:
            raise DataError(
                f"{path} holds no embeddings: it has no column 'vector', only {', '.join(schema.names[:5])}"
            )
        [first] = [*file.iter_batches(1, columns=["vector"])][:1] or [None]
        if first is None:
            raise DataError(f"{path} holds no rows")
        vector = first.column("vector")
        return Whole(
            count=file.metadata.num_rows,
            width=_matrix(vector, 1).shape[1],
            half=str(vector.type.value_type) == "halffloat",
            ids_are_paths=words.get("ids") == "paths",
            has_paths="path" in schema.names and words.get("paths", True),
            classes=_classes(file),
            about=words.get("about", {}),
        )


_COLUMNS = ("id", "path", "label", "class", "vector")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    need_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except (OSError, pyarrow.ArrowException, ValueError, KeyError, TypeError) as cause:
        raise DataError(f"{path} cannot be read as embeddings: {cause}") from cause


def _schema(whole: Whole) -> Any:
    import pyarrow

    text = pyarrow.binary() if whole.has_odd_names else pyarrow.string()
    value = pyarrow.float16() if whole.half else pyarrow.float32()
    fields = [("id", text), ("path", text), ("label", pyarrow.int64()), ("class", pyarrow.string())]
    return pyarrow.schema([*fields, ("vector", pyarrow.list_(value, whole.width))])


def _words(whole: Whole) -> str:
    said = {"format": FORMAT, "version": VERSION, "classes": whole.classes, "about": whole.about}
    return json.dumps(said | {"ids": "paths" if whole.ids_are_paths else "ids", "paths": whole.has_paths})


def _words_of(file: Any) -> dict[str, Any]:
    said = (file.metadata.metadata or {}).get(b"reptk")
    return json.loads(said) if said else {}


def _classes(file: Any) -> tuple[str, ...]:
    """The class names that the file lists; of a table of somebody else's, those in its column."""
    listed = _words_of(file).get("classes")
    if listed is None and "class" in file.schema_arrow.names and "label" not in file.schema_arrow.names:
        column = file.read(columns=["class"]).column("class")
        listed = sorted(str(name) for name in column.unique().to_pylist() if name is not None)
    return tuple(listed or ())


def _name(kind: Any, text: str) -> str | bytes:
    return text if str(kind) == "string" else text.encode("utf-8", "surrogateescape")


def _texts(column: Any) -> list[str]:
    values = column.to_pylist()
    return [one.decode("utf-8", "surrogateescape") if isinstance(one, bytes) else str(one) for one in values]


def _matrix(column: Any, count: int) -> torch.Tensor:
    """A column of lists as (count, F); float16 stays, other numbers become float32."""
    if column.null_count:
        raise ValueError(f"{column.null_count} rows have no vector")
    values = column.flatten().to_numpy(zero_copy_only=False)
    if (
        count == 0
        or len(values) % count
        or not all(len(one) == len(values) // count for one in (column[0], column[-1]))
    ):
        raise ValueError("its vectors differ in length")
    return torch.from_numpy(
        np.array(values, np.float16 if values.dtype == np.float16 else np.float32).reshape(count, -1)
    )


def _labels(found: dict[str, Any], count: int, classes: dict[str, int]) -> torch.Tensor:
    if "label" in found:
        return torch.from_numpy(found["label"].fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))
    names = [name and str(name) for name in found["class"].to_pylist()] if "class" in found else [None] * count
    return torch.tensor([classes.get(name, -1) for name in names], dtype=torch.long)
