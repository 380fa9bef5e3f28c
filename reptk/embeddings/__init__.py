"""Embed, index, search: vectors of images kept in files, and images found by them. `reptk.embed`, `reptk.index`,
`reptk.search`."""

from reptk.embeddings.duplicates import Duplicates, near_duplicates
from reptk.embeddings.embedder import Embedder
from reptk.embeddings.embedding import embed
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.evaluating import evaluate_embeddings
from reptk.embeddings.indexing import Index, index
from reptk.embeddings.searching import Answer, Neighbour, search

__all__ = [
    "Answer",
    "Duplicates",
    "Embedder",
    "Embeddings",
    "Index",
    "Neighbour",
    "embed",
    "evaluate_embeddings",
    "index",
    "near_duplicates",
    "search",
]
