"""`reptk export EMBEDDINGS --to lance:FOLDER`, `postgresql://...`: embeddings into a store."""

import shlex
import time
from contextlib import closing

from reptk.core.errors import UsageError
from reptk.core.passwords import redacted
from reptk.core.printable_names import in_one_line


def export_to_store(source: str, address: str, *, force: bool) -> int:
    """Write embeddings into a store, and print what is there. Returns the exit code.

    Args:
        source: a file of embeddings, or a folder of parts.
        address: of the store.
        force: replace a collection that reptk wrote there.

    Raises:
        UsageError: there is no such store, the collection exists, or `source` is itself an address.
        ReptkError: see `reptk.embeddings.export`.
    """
    from reptk.stores import is_address, require_address  # imported late, so that --help does not wait

    require_address(address)
    if is_address(source):
        raise UsageError(f"a file or folder of embeddings is exported, not a store: {redacted(source)}")

    from reptk.embeddings import export  # imports torch

    start = time.perf_counter()
    with closing(export(source, address, force=force)) as index:
        seconds = time.perf_counter() - start
        rate = f"{len(index) / seconds:,.0f} a second"
        print(f"{in_one_line(index.name)}: {index.collection.describe()}, {index.store.index_kind()}, {rate}")
        # The password of the address is not printed.
        shown = shlex.quote(index.name)
        print(f"  search it: reptk search {shown} query.jpg    its recall: reptk index --verify {shown}")
    return 0
