"""Nearest neighbours by inner product: exact, approximate, sharded over ranks; banks may be memory-mapped files."""

from reptk.neighbours import order
from reptk.neighbours.approximate import Approximate, kind_for
from reptk.neighbours.engine import engine
from reptk.neighbours.exact import search
from reptk.neighbours.ranked import ranked
from reptk.neighbours.rows import check_rows
from reptk.neighbours.sharded import search_sharded

__all__ = [
    "Approximate",
    "check_rows",
    "engine",
    "kind_for",
    "order",
    "ranked",
    "search",
    "search_sharded",
]
