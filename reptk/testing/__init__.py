"""Checks of parts, for plugin authors and for reptk's own parts.

    from reptk.testing import check_loss
    check_loss(MyLoss)

A check tries every requirement of its kind (`LOSS_REQUIREMENTS`, ...) and raises a single AssertionError with one line for each
that is violated. It needs no test runner and leaves the random states as they were.
"""

from reptk.testing.dataset_checks import DATASET_REQUIREMENTS, check_dataset
from reptk.testing.evaluator_checks import EVALUATOR_REQUIREMENTS, check_evaluator
from reptk.testing.loss_checks import LOSS_REQUIREMENTS, check_loss
from reptk.testing.method_checks import METHOD_REQUIREMENTS, check_method
from reptk.testing.store_checks import STORE_REQUIREMENTS, check_store
from reptk.testing.view_checks import (
    FIXED_VIEWS_REQUIREMENTS,
    RANDOM_VIEWS_REQUIREMENTS,
    VIEWS_REQUIREMENTS,
    check_views,
)

__all__ = [
    "DATASET_REQUIREMENTS",
    "EVALUATOR_REQUIREMENTS",
    "FIXED_VIEWS_REQUIREMENTS",
    "LOSS_REQUIREMENTS",
    "METHOD_REQUIREMENTS",
    "RANDOM_VIEWS_REQUIREMENTS",
    "STORE_REQUIREMENTS",
    "VIEWS_REQUIREMENTS",
    "check_dataset",
    "check_evaluator",
    "check_loss",
    "check_method",
    "check_store",
    "check_views",
]
