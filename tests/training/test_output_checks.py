"""Checks of weights before they are saved."""

import pytest
import torch

from reptk.core.errors import NumericalError
from reptk.training.output_checks import check_finite_weights


def test_weights_that_are_not_finite_are_not_saved() -> None:
    weights = {"first": torch.ones(2), "second": torch.tensor([1.0, float("inf")]), "count": torch.tensor(3)}
    with pytest.raises(NumericalError, match=r"^after step 7, NaN or infinity in 1 weight, second first; nothing"):
        check_finite_weights(weights, 7)
    weights["second"] = torch.ones(2)
    check_finite_weights(weights, 7)
