"""Nearest neighbours by inner product: exact, approximate, sharded over ranks; banks may be memory-mapped files."""

from reptk.neighbours.approximate import Approximate, kind_for
from reptk.neighbours.engine import engine
from reptk.neighbours.exact import search
from reptk.neighbours.rows import check_rows

__all__ = ["Approximate", "check_rows", "engine", "kind_for", "search"]
