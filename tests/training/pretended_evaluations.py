"""Evaluations whose headline metric has chosen values."""

from collections.abc import Sequence

import pytest

from reptk.evaluate import Evaluation
from reptk.training import epoch
from reptk.training.parts import Parts

VALUES = (0.5, 0.8, 0.8, 0.7, 0.9)
"""After the epochs: the run stops after the fourth, and the second was the best."""


def pretend_values(monkeypatch: pytest.MonkeyPatch, values: Sequence[float] = VALUES) -> None:
    """Let the evaluations after the epochs have these values of the headline metric."""
    evaluate_now = epoch.evaluate_now

    def evaluate(parts: Parts, *arguments: object, **options: object) -> Evaluation:
        evaluation = evaluate_now(parts, *arguments, **options)
        # The steps that the optimizer has done, whatever process asks.
        steps = next(iter(parts.optimizer.state.values()))["step"]
        number = int(steps) // parts.settings.steps_per_epoch
        evaluation.metrics["knn@5"] = values[number - 1]
        return evaluation

    monkeypatch.setattr(epoch, "evaluate_now", evaluate)
