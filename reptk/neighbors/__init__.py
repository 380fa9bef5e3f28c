"""Nearest neighbors by inner product: exact, approximate, and with a bank whose rows are spread over ranks."""

from reptk.neighbors.approximate import ApproximateIndex, recommended_index
from reptk.neighbors.engine import Engine, engine_name, resolve_engine
from reptk.neighbors.exact import search
from reptk.neighbors.ranking import rerank
from reptk.neighbors.sharded import search_sharded
from reptk.neighbors.vectors import check_vectors

__all__ = [
    "ApproximateIndex",
    "Engine",
    "check_vectors",
    "engine_name",
    "recommended_index",
    "rerank",
    "resolve_engine",
    "search",
    "search_sharded",
]
