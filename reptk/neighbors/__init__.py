"""Nearest neighbors by inner product: exact, approximate, and with a bank whose rows are spread over ranks."""

from reptk.neighbors.approximate import ApproximateIndex
from reptk.neighbors.engine import Engine, engine_name, resolve_engine
from reptk.neighbors.exact import search
from reptk.neighbors.faiss_factory import recommended_index
from reptk.neighbors.on_disk import build_on_disk, lists_bytes, open_on_disk
from reptk.neighbors.ranking import rerank
from reptk.neighbors.sharded import search_sharded
from reptk.neighbors.streamed import search_streamed
from reptk.neighbors.vectors import check_vectors

__all__ = [
    "ApproximateIndex",
    "Engine",
    "build_on_disk",
    "check_vectors",
    "engine_name",
    "lists_bytes",
    "open_on_disk",
    "recommended_index",
    "rerank",
    "resolve_engine",
    "search",
    "search_sharded",
    "search_streamed",
]
