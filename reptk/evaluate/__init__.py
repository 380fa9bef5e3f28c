"""Numbers from features: kNN, retrieval, probes, health. Functions for scripts, evaluators for recipes."""

from reptk.evaluate.evaluators import FewShot, Knn, LinearProbe, ViewRetrieval
from reptk.evaluate.evidence import Evidence
from reptk.evaluate.features import PIXELS_PX, Features, pixels
from reptk.evaluate.few_shot import few_shot
from reptk.evaluate.health import effective_rank, health
from reptk.evaluate.knn import knn
from reptk.evaluate.linear import linear
from reptk.evaluate.linear_stage import LinearStage
from reptk.evaluate.mean import Mean, gains, intervals
from reptk.evaluate.measure import Measured, evaluated, measure, measure_pixels
from reptk.evaluate.retrieval import retrieval
from reptk.neighbors import engine_name, search

__all__ = [
    "PIXELS_PX",
    "Evidence",
    "Features",
    "FewShot",
    "Knn",
    "LinearProbe",
    "LinearStage",
    "Mean",
    "Measured",
    "ViewRetrieval",
    "effective_rank",
    "engine_name",
    "evaluated",
    "few_shot",
    "gains",
    "health",
    "intervals",
    "knn",
    "linear",
    "measure",
    "measure_pixels",
    "pixels",
    "retrieval",
    "search",
]
