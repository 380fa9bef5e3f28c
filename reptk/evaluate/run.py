"""From an encoder and data to an `Evaluation`: the one place where evaluators are built, chosen and called."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reptk import config
from reptk.config.registry import EVALUATORS, with_defaults
from reptk.core.device import Precision, autocast
from reptk.core.errors import DataError, NonFiniteValues, NumericalError, UsageError
from reptk.core.files import json_text, parse_json
from reptk.data import Data
from reptk.evaluate.diagnostics import MAX_ROWS, health
from reptk.evaluate.features import PIXELS_PX, DrawViews, FeatureStore, ImageFeatures, Progress, pixels
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.metrics.accuracy import Accuracy
from reptk.evaluate.metrics.view_retrieval import ViewRetrieval
from reptk.evaluate.predictions import Predictions
from reptk.evaluate.protocol import EvalResult, Evaluator
from reptk.models.encoder import Encoder, eval_mode

WITHOUT_LABELS = "view_retrieval"
"""The evaluator of data without labels."""

ACCURACY = "accuracy"
"""The evaluator that encoders with a classifier get."""


@dataclass(frozen=True)
class Evaluation:
    """The results of all evaluators for one encoder.

    Args:
        metrics: by name.
        health: see `reptk.evaluate.health`; of the features in `predictions`, empty without them.
        notes: how evaluators measured, by their names.
        predictions: per-query predictions, if an evaluator returned any.
    """

    metrics: dict[str, float]
    health: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return metrics, health and notes as tensors and plain values, for a checkpoint."""
        # Checkpoints are loaded with weights_only=True, which allows tensors but no QueryMean.
        metrics = {}
        for name, value in self.metrics.items():
            if isinstance(value, QueryMean):
                value = value.values
            metrics[name] = value
        # As results.json holds them.
        return {"metrics": metrics, "health": self.health, "notes": json_text(self.notes)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation of a `state_dict`, without predictions."""
        metrics = {}
        for name, value in state["metrics"].items():
            if isinstance(value, Tensor):
                value = QueryMean(value)
            metrics[name] = value
        return cls(metrics, state["health"], parse_json(state["notes"]))


class Execution(NamedTuple):
    """Where and how images are encoded.

    device: of the encoder.
    precision: of its computations (autocast).
    workers: threads that decode images.
    """

    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    workers: int = 0


ON_CPU = Execution()


def evaluate_encoder(
    encoder: Encoder,
    data: Data,
    evaluators: Iterable[Evaluator],
    *,
    classifier: nn.Linear | None = None,
    views: DrawViews | None = None,
    execution: Execution = ON_CPU,
    progress: Progress | None = None,
    during_training: bool = False,
) -> Evaluation:
    """Evaluate an encoder, which is in evaluation mode meanwhile.

    Args:
        encoder: moved to the device.
        data: the data set.
        evaluators: called one after the other with the same features.
        classifier: that was trained with the encoder on these classes, for evaluators that measure it.
        views: random views, for evaluators that use them.
        execution: where and how images are encoded.
        progress: called with the stage ("encoding", "searching"), how many images or queries are done, and of how many.
        during_training: see `run_evaluators`.
    """

    def embed(images: Tensor) -> Tensor:
        with autocast(execution.device, execution.precision):
            return encoder.features(images)

    features = ImageFeatures(
        embed,
        size_px=encoder.config["size"],
        crop=data.crop,
        resize=data.resize,
        interpolation=data.interpolation,
        views=views,
        device=execution.device,
        workers=execution.workers,
        progress=progress,
    )
    if classifier is not None:
        features.classifier = classifier.to(execution.device)
    # Features are computed lazily, inside the evaluators.
    with eval_mode(encoder.to(execution.device)):
        return run_evaluators(features, data, evaluators, during_training=during_training)


def evaluate_pixels(
    data: Data,
    evaluators: Iterable[Evaluator],
    *,
    views: DrawViews | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate the raw pixels, of images of at most 32 x 32; arguments as of `evaluate_encoder` and `Execution`."""
    first_image = data.train.images.fetch(torch.tensor([0]))
    size_px = min(first_image.shape[-1], PIXELS_PX)
    features = ImageFeatures(
        pixels(data.train),
        size_px=size_px,
        crop=data.crop,
        resize=data.resize,
        interpolation=data.interpolation,
        views=views,
        workers=workers,
        progress=progress,
    )
    return run_evaluators(features, data, evaluators)


def run_evaluators(
    features: FeatureStore, data: Data, evaluators: Iterable[Evaluator], *, during_training: bool = False
) -> Evaluation:
    """Call the evaluators one after the other and join their results.

    Args:
        features: shared by all evaluators.
        data: the data set.
        evaluators: if two return a metric of the same name, or predictions, the last one counts. Those that measure a
            classifier are left out if there is none.
        during_training: whether to call their `during_training` instead.

    Raises:
        UsageError: an evaluator does not return an `EvalResult`.
        DataError: an evaluator cannot use this data, e.g. because all images are of one class.
        NumericalError: the features hold NaN or infinity.
    """
    evaluators = [with_defaults(evaluator, Evaluator) for evaluator in evaluators]
    if features.classifier is None:
        evaluators = [evaluator for evaluator in evaluators if not evaluator.needs_classifier]
    if data.query is not None and any(evaluator.needs_labels for evaluator in evaluators):
        # Before any evaluator reads the labels: encoding takes them from images that cannot be read.
        for split in (data.bank, data.query):
            features.local_part(split)
    metrics: dict[str, float] = {}
    notes: dict[str, Any] = {}
    predictions = None
    for evaluator in evaluators:
        result = _call(evaluator, features, data, during_training)
        if not isinstance(result, EvalResult):
            name = type(evaluator).__name__
            raise UsageError(f"evaluator {name} must return an EvalResult(metrics), got {type(result).__name__}")
        metrics |= result.metrics
        notes |= result.notes
        if result.predictions is not None:
            predictions = result.predictions
    health_metrics: dict[str, float] = {}
    if predictions is not None:
        health_metrics = _health_of(predictions)
    return Evaluation(metrics, health_metrics, notes, predictions)


def _call(evaluator: Evaluator, features: FeatureStore, data: Data, during_training: bool) -> EvalResult:
    call = evaluator.during_training if during_training else evaluator
    try:
        return call(features, data)
    except NonFiniteValues as cause:
        raise NumericalError(f"{type(evaluator).__name__}: {cause}") from cause
    # What the functions of this package raise for data that they cannot use.
    except ValueError as cause:
        raise DataError(f"{type(evaluator).__name__} cannot evaluate this data: {cause}") from cause


def build_evaluators(
    tables: Mapping[str, config.Table], data: Data, *, has_classifier: bool = False
) -> tuple[dict[str, Evaluator], dict[str, int]]:
    """Build the evaluators of a recipe's `[eval.NAME]` tables that suit the data, see `evaluators_for`.

    Args:
        tables: by key.
        data: the data set.
        has_classifier: whether a classifier was trained with the encoder. Its accuracy is then measured as often as the most
            frequent other evaluator, unless a table says how.

    Returns:
        Evaluators by key, and after how many epochs each is due (0: only at the end).

    Raises:
        UsageError: an evaluator refuses its arguments, or measures a classifier and there is none.
    """
    evaluators, every_epochs = {}, {}
    for key, table in tables.items():
        every_epochs[key] = table.get("every_epochs", 0)
        arguments = {name: value for name, value in table.items() if name != "every_epochs"}
        evaluators[key] = config.build(EVALUATORS, arguments)
    measures_classifier = [key for key, evaluator in evaluators.items() if evaluator.needs_classifier]
    if measures_classifier and not has_classifier:
        raise UsageError(
            f"eval.{measures_classifier[0]} measures a classifier that was trained with the encoder (method.name=classify or "
            "joint), and there is none; eval.linear.name=linear fits one to the features"
        )
    if has_classifier and not measures_classifier:
        evaluators[ACCURACY] = Accuracy()
        every_epochs[ACCURACY] = min(filter(None, every_epochs.values()), default=0)
    suitable = evaluators_for(data, evaluators)
    # The evaluator that replaces them if the data has no labels is due as rarely as the rarest of them.
    fallback = max(every_epochs.values(), default=0)
    return suitable, {key: every_epochs.get(key, fallback) for key in suitable}


def evaluators_for(data: Data, evaluators: Mapping[str, Evaluator]) -> dict[str, Evaluator]:
    """Return the evaluators that data has labels for; if it has none and all need them, view retrieval."""
    if data.query is not None:
        return dict(evaluators)
    label_free = {key: evaluator for key, evaluator in evaluators.items() if not evaluator.needs_labels}
    if not label_free:
        return {WITHOUT_LABELS: ViewRetrieval()}
    return label_free


def _health_of(predictions: Predictions) -> dict[str, float]:
    """Health of at most about `MAX_ROWS` queries at even distances: data sets may be sorted by class."""
    step = max(1, len(predictions) // MAX_ROWS)
    try:
        return health(predictions.features[::step], predictions.labels[::step])
    except NonFiniteValues as cause:  # of an evaluator that computes features itself
        raise NumericalError(f"the features of the predictions: {cause}") from cause
