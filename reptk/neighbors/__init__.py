"""Nearest neighbours by inner product: exact, approximate, sharded over ranks; banks may be memory-mapped files."""

from reptk.neighbors import order
from reptk.neighbors.approximate import ApproximateIndex, recommended_index
from reptk.neighbors.engine import engine_name
from reptk.neighbors.exact import search
from reptk.neighbors.ranked import rerank
from reptk.neighbors.rows import check_vectors
from reptk.neighbors.sharded import search_sharded

__all__ = [
    "ApproximateIndex",
    "check_vectors",
    "engine_name",
    "recommended_index",
    "order",
    "rerank",
    "search",
    "search_sharded",
]
