"""Metrics of features: kNN, retrieval, probes, health. Functions for scripts, evaluators for recipes."""

from reptk.evaluate.diagnostics import concerns, effective_rank, health
from reptk.evaluate.features import PIXELS_PX, FeatureStore, ImageFeatures, pixels
from reptk.evaluate.intervals import QueryMean, gains, intervals
from reptk.evaluate.metrics.accuracy import Accuracy
from reptk.evaluate.metrics.few_shot import FewShot, few_shot
from reptk.evaluate.metrics.knn import Knn, knn
from reptk.evaluate.metrics.linear import LinearProbe, linear
from reptk.evaluate.metrics.linear_stage import LinearStage
from reptk.evaluate.metrics.retrieval import retrieval
from reptk.evaluate.metrics.view_retrieval import ViewRetrieval
from reptk.evaluate.predictions import Predictions
from reptk.evaluate.protocol import EvalResult, Evaluator
from reptk.evaluate.run import (
    Evaluation,
    build_evaluators,
    evaluate_encoder,
    evaluate_pixels,
    evaluators_for,
    run_evaluators,
)
from reptk.neighbors import engine_name, search

__all__ = [
    "PIXELS_PX",
    "Accuracy",
    "EvalResult",
    "Evaluation",
    "Evaluator",
    "FeatureStore",
    "FewShot",
    "ImageFeatures",
    "Knn",
    "LinearProbe",
    "LinearStage",
    "Predictions",
    "QueryMean",
    "ViewRetrieval",
    "build_evaluators",
    "concerns",
    "effective_rank",
    "engine_name",
    "evaluate_encoder",
    "evaluate_pixels",
    "evaluators_for",
    "few_shot",
    "gains",
    "health",
    "intervals",
    "knn",
    "linear",
    "pixels",
    "retrieval",
    "run_evaluators",
    "search",
]
