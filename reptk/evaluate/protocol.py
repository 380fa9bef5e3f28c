"""What an evaluator is: called with the features of a data set, it returns an `EvalResult`."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from annotated_types import Ge, MinLen

from reptk.data import Data
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.predictions import Predictions

PositiveInts = Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
"""Type of evaluator arguments such as `k`: at least one integer, none below 1."""


@dataclass(frozen=True)
class EvalResult:
    """What one evaluator returns.

    Args:
        metrics: by name. A `QueryMean` gets an interval, a gain over the baselines and a column in the table of classes.
        notes: how it measured, under the evaluator's name, for `notes` of results.json: `{"linear": {"decay": 0.1}}`.
        predictions: per-query predictions, for the report.
    """

    metrics: Mapping[str, float]
    notes: Mapping[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None


class Evaluator(Protocol):
    """A callable that measures features. Any callable with this signature is one; the other members have defaults.

    The same features and data give the same result, whatever the global random states. An evaluator does not change its input.
    """

    needs_labels: bool = True
    """False: can evaluate data without labels, whose bank and query splits are None."""

    needs_classifier: bool = False
    """True: measures `features.classifier`, and is left out for raw pixels and for encoders that have none."""

    @abstractmethod
    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        """Return the metrics, with everything that belongs into results.json and the report."""

    def during_training(self, features: FeatureStore, data: Data) -> EvalResult:
        """Return what is measured after an epoch: by default everything, else only what is fast and shown during training."""
        return self(features, data)
