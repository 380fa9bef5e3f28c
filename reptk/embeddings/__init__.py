"""Vectors of images in files, and images found by them: `reptk.embed`, `reptk.index`, `reptk.search`."""

from reptk.embeddings.add_to_index import Addition, add_to_index
from reptk.embeddings.build_index import index
from reptk.embeddings.duplicates import Duplicate, Duplicates
from reptk.embeddings.embed_images import embed
from reptk.embeddings.embedder import Embedder
from reptk.embeddings.evaluating import evaluate_embeddings
from reptk.embeddings.export_embeddings import export
from reptk.embeddings.find_duplicates import near_duplicates
from reptk.embeddings.search_images import Neighbor, SearchResult, search
from reptk.embeddings.similarity_index import Index
from reptk.embeddings.store import Embeddings
from reptk.embeddings.store_index import StoreIndex
from reptk.embeddings.verify_recall import Recall, verify_recall

__all__ = [
    "Addition",
    "Duplicate",
    "Duplicates",
    "Embedder",
    "Embeddings",
    "Index",
    "Neighbor",
    "Recall",
    "SearchResult",
    "StoreIndex",
    "add_to_index",
    "embed",
    "evaluate_embeddings",
    "export",
    "index",
    "near_duplicates",
    "search",
    "verify_recall",
]
