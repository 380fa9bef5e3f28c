"""export(): embeddings into a store, e.g. a Lance folder or a table of PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from reptk.core.errors import DataError
from reptk.core.files import json_text, parse_json
from reptk.core.progress import progress
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.files.embeddings_file import existing_file
from reptk.embeddings.files.row_blocks import RowBlock
from reptk.embeddings.files.string_array import is_utf8
from reptk.embeddings.retrieval.store_index import StoreIndex
from reptk.embeddings.unit_length import UnitLengthNormalizer
from reptk.stores import Collection, StoredRows, open_store, redacted
from reptk.stores.protocol import Dtype


def export(embeddings: str | Path | Embeddings, address: str, *, force: bool = False) -> StoreIndex:
    """Write embeddings into a store, with vectors of unit length. Readers see all of them, or what was there before.

    Args:
        embeddings: a file, a folder of parts, or what `embed` returned.
        address: lance:FOLDER, postgresql://USER@HOST/DATABASE?table=NAME, or that of another store.
        force: replace a collection of reptk that exists.

    Raises:
        DataError: there are no embeddings, or they are damaged, hold vectors that cannot be compared, or names that no
            database stores.
        UsageError: there is no such store, or its collection exists.
        EnvironmentProblem: the store cannot be reached, is full, or a package is missing.
    """
    # Before the file is read, which takes a while.
    store = open_store(address)
    name = "these embeddings"
    if not isinstance(embeddings, Embeddings):
        file = existing_file(embeddings)
        name = file.path.name
        embeddings = Embeddings.load(file.path)
    metadata = parse_json(json_text({**embeddings.metadata, "normalized": True, "classes": list(embeddings.classes)}))
    dtype: Dtype = "float32"
    if embeddings.vectors.dtype == torch.float16:
        dtype = "float16"
    collection = Collection(len(embeddings), embeddings.width, dtype, metadata)
    try:
        with progress("exporting", len(embeddings)) as advance:
            store.write(collection, _stored_blocks(embeddings, name, advance), replace=force)
        return StoreIndex(store, store.read_collection(), redacted(address))
    finally:
        store.close()


def _stored_blocks(embeddings: Embeddings, name: str, advance: Callable[[int], None]) -> Iterator[StoredRows]:
    normalizer = UnitLengthNormalizer()
    first = 0
    for block in embeddings.blocks():
        block = normalizer.normalize(block)
        # At once: a database must not get vectors that cannot be compared.
        normalizer.check(name)
        yield _stored_rows(embeddings, block, first, name)
        first += len(block.vectors)
        advance(len(block.vectors))


def _stored_rows(embeddings: Embeddings, block: RowBlock, first: int, name: str) -> StoredRows:
    ids = list(block.ids)
    paths: list[str | None] = [None] * len(ids)
    if block.paths is not None:
        paths = list(block.paths)
    for text in (*ids, *(path for path in paths if path is not None)):
        if not is_utf8(text):
            raise DataError(
                f"{name}: the image name {text!r} is not valid UTF-8, and databases store no other text. Rename the file, and "
                "embed the images again"
            )
    numbers = np.arange(first, first + len(ids))
    class_names = [embeddings.class_name(label) for label in block.labels.tolist()]
    return StoredRows(numbers, block.vectors.numpy(), ids, paths, block.labels.numpy(), class_names)
