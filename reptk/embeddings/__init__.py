"""Vectors of images in files, and images found by them: `reptk.embed`, `reptk.index`, `reptk.search`."""

from reptk.embeddings.duplicates.duplicate_groups import Duplicate, Duplicates
from reptk.embeddings.duplicates.find_duplicates import near_duplicates
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.embed_images import embed
from reptk.embeddings.encoding.embedder import Embedder
from reptk.embeddings.encoding.folder_cache import embed_folder
from reptk.embeddings.evaluating import evaluate_embeddings
from reptk.embeddings.retrieval.add_to_index import Addition, add_to_index
from reptk.embeddings.retrieval.build_index import index
from reptk.embeddings.retrieval.export_embeddings import export
from reptk.embeddings.retrieval.search_images import Neighbor, SearchResult, search
from reptk.embeddings.retrieval.search_index import ImageRecords, SearchIndex
from reptk.embeddings.retrieval.similarity_index import Index
from reptk.embeddings.retrieval.store_index import StoreIndex
from reptk.embeddings.retrieval.verify_recall import Recall, verify_recall

__all__ = [
    "Addition",
    "Duplicate",
    "Duplicates",
    "Embedder",
    "Embeddings",
    "ImageRecords",
    "Index",
    "Neighbor",
    "Recall",
    "SearchIndex",
    "SearchResult",
    "StoreIndex",
    "add_to_index",
    "embed",
    "embed_folder",
    "evaluate_embeddings",
    "export",
    "index",
    "near_duplicates",
    "search",
    "verify_recall",
]
