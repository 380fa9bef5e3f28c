"""Numbers from features: kNN, retrieval, view retrieval. Functions for scripts, evaluators for recipes."""

from reptk.evaluate.evaluators import Knn, ViewRetrieval
from reptk.evaluate.features import PIXELS_PX, Features, pixels
from reptk.evaluate.knn import knn
from reptk.evaluate.measure import measure, measure_pixels
from reptk.evaluate.retrieval import retrieval
from reptk.neighbours import engine, search

__all__ = [
    "PIXELS_PX",
    "Features",
    "Knn",
    "ViewRetrieval",
    "engine",
    "knn",
    "measure",
    "measure_pixels",
    "pixels",
    "retrieval",
    "search",
]
