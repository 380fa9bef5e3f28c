"""Embed, index, search: vectors of images kept in files, and images found by them. `reptk.embed`, `reptk.index`,
`reptk.search`."""

from reptk.catalogue.duplicates import Duplicates, near_duplicates
from reptk.catalogue.embedder import Embedder
from reptk.catalogue.embedding import embed
from reptk.catalogue.embeddings import Embeddings
from reptk.catalogue.evaluating import evaluate_embeddings
from reptk.catalogue.indexing import Index, index
from reptk.catalogue.searching import Answer, Neighbour, search

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
