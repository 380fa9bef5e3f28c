"""Further columns of a Parquet file of embeddings, for programs that show them: thumbnails, positions on a map, neighbors.

The columns and their types are those that Embedding Atlas takes, and the metadata `huggingface` names the features for the
library `datasets`, the viewer of the Hugging Face hub, and Spotlight. The reader of reptk ignores them.
"""

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.errors import UsageError
from reptk.core.progress import progress
from reptk.data import num_cpus
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.files.parquet_file import ParquetFile
from reptk.embeddings.retrieval.similarity_index import exact_search
from reptk.embeddings.viewing.embedding_images import EmbeddingImages
from reptk.report.layouts import LAYOUTS, check_layouts, map_positions

METADATA_KEY = b"huggingface"

HUB_TYPES = {"string": "string", "int64": "int64", "float": "float32", "halffloat": "float16", "binary": "binary"}
"""Types of Arrow by the names that `datasets` has for them."""


@dataclass(frozen=True)
class ViewerColumns:
    """Which columns to add.

    Args:
        thumbnails: `image`, a struct of the bytes of a small picture and its path; null for an image that is gone.
        projection: `projection_x` and `projection_y`, by one of `LAYOUTS`; None for none.
        neighbors: how many neighbors the column `neighbors` has, a struct of the row numbers of the nearest images, the
            image itself left out, and their cosine distances; 0 for no such column.
    """

    thumbnails: bool = False
    projection: str | None = None
    neighbors: int = 0

    def __bool__(self) -> bool:
        return self.thumbnails or self.projection is not None or self.neighbors > 0

    def check(self, out: str | Path) -> None:
        """Check that the columns can be written, before anything is computed.

        Raises:
            UsageError: the file is no Parquet file, or there is no such layout.
            EnvironmentProblem: a package is missing.
        """
        if Path(out).suffix.lower() != ".parquet":
            raise UsageError(
                f"--thumbnails, --projection and --neighbors are columns of a Parquet file; --out is {Path(out).name!r}, "
                f"name a file that ends in .parquet"
            )
        ParquetFile(Path(out)).check_installed()
        if self.projection is not None:
            if self.projection not in LAYOUTS:
                raise UsageError(f"--projection must be one of {', '.join(LAYOUTS)}, got {self.projection!r}")
            check_layouts((self.projection,))


def add_viewer_columns(path: str | Path, columns: ViewerColumns) -> None:
    """Write a Parquet file of embeddings again, with further columns; those of an earlier call are replaced.

    Args:
        path: the file.
        columns: which.

    Raises:
        UsageError: see `ViewerColumns.check`; or there are fewer images than neighbors.
        DataError: the file is damaged.
        EnvironmentProblem: it cannot be written.
    """
    path = Path(path)
    columns.check(path)
    embeddings = Embeddings.load(path, verify=False)
    if columns.neighbors >= len(embeddings):
        raise UsageError(
            f"--neighbors must be below the number of images, which is {len(embeddings):,}, got {columns.neighbors}"
        )
    extra = _ExtraColumns(embeddings, columns)
    file = ParquetFile(path)
    with file.writer(embeddings.header(), extra.fields(), _hub_metadata) as writer:
        first_row = 0
        with progress("columns for viewers", len(embeddings)) as advance:
            for block in embeddings.blocks():
                stop = first_row + len(block.vectors)
                writer.add(block, extra.arrays(first_row, stop))
                advance(stop - first_row)
                first_row = stop


class _ExtraColumns:
    """Computes the further columns, those of all rows at once and thumbnails block by block."""

    def __init__(self, embeddings: Embeddings, columns: ViewerColumns) -> None:
        self._embeddings = embeddings
        self._columns = columns
        self._images = EmbeddingImages(embeddings)
        self._positions: Tensor | None = None
        if columns.projection is not None:
            self._positions = map_positions(columns.projection, embeddings.vectors.float())
        self._distances: Tensor | None = None
        self._rows: Tensor | None = None
        if columns.neighbors:
            vectors = embeddings.vectors
            exclude = torch.arange(len(embeddings))  # an image is not its own neighbor
            similarities, self._rows = exact_search(vectors, vectors, columns.neighbors, exclude)
            # Rounding may give two equal vectors a similarity above 1.
            self._distances = (1 - similarities).clamp_min(0)

    def fields(self) -> list[Any]:
        """Return the fields of the columns for a schema of Arrow."""
        import pyarrow

        fields = []
        if self._columns.thumbnails:
            fields.append(pyarrow.field("image", _image_type()))
        if self._positions is not None:
            fields += [pyarrow.field(f"projection_{axis}", pyarrow.float32()) for axis in "xy"]
        if self._rows is not None:
            fields.append(pyarrow.field("neighbors", _neighbors_type()))
        return fields

    def arrays(self, start: int, stop: int) -> list[Any]:
        """Return the columns of some rows, in the order of `fields`."""
        import pyarrow

        arrays = []
        if self._columns.thumbnails:
            arrays.append(self._thumbnails(range(start, stop)))
        if self._positions is not None:
            for axis in range(2):
                arrays.append(pyarrow.array(self._positions[start:stop, axis].contiguous().numpy()))
        if self._rows is not None:
            rows = pyarrow.array(self._rows[start:stop].tolist(), pyarrow.list_(pyarrow.int64()))
            distances = pyarrow.array(self._distances[start:stop].tolist(), pyarrow.list_(pyarrow.float32()))
            arrays.append(pyarrow.StructArray.from_arrays([rows, distances], fields=list(_neighbors_type())))
        return arrays

    def _thumbnails(self, rows: Sequence[int]) -> Any:
        import pyarrow

        self._images.data_uri(rows[0])  # opens the data set, once
        with ThreadPoolExecutor(num_cpus()) as pool:
            contents = list(pool.map(self._thumbnail, rows))
        values = []
        for row, content in zip(rows, contents, strict=True):
            value = None
            if content:
                value = {"bytes": content, "path": self._name(row)}
            values.append(value)
        return pyarrow.array(values, _image_type())

    def _thumbnail(self, row: int) -> bytes:
        """Return the content of a PNG or JPEG file; empty for an image that is gone."""
        return base64.b64decode(self._images.data_uri(row).partition(",")[2])

    def _name(self, row: int) -> str:
        return self._embeddings.ids[row].encode("utf-8", "replace").decode("utf-8")


def _image_type() -> Any:
    import pyarrow

    return pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def _neighbors_type() -> Any:
    import pyarrow

    return pyarrow.struct([("ids", pyarrow.list_(pyarrow.int64())), ("distances", pyarrow.list_(pyarrow.float32()))])


def _hub_metadata(schema: Any) -> dict[bytes, bytes]:
    """Return the metadata that names the features of a schema for `datasets`."""
    features = {field.name: _feature(field.type) for field in schema}
    if "image" in features:
        features["image"] = {"_type": "Image"}
    return {METADATA_KEY: json.dumps({"info": {"features": features}}).encode()}


def _feature(arrow_type: Any) -> dict[str, Any]:
    import pyarrow

    if pyarrow.types.is_struct(arrow_type):
        return {field.name: _feature(field.type) for field in arrow_type}
    if pyarrow.types.is_fixed_size_list(arrow_type):
        return {"feature": _feature(arrow_type.value_type), "length": arrow_type.list_size, "_type": "List"}
    if pyarrow.types.is_list(arrow_type):
        return {"feature": _feature(arrow_type.value_type), "_type": "List"}
    return {"dtype": HUB_TYPES.get(str(arrow_type), str(arrow_type)), "_type": "Value"}
