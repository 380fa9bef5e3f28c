"""Losses equal the values and gradients of published code, which `golden_losses.json` holds."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from loss_batches import FUNCTIONS, computed_by, dense_and_tiled, value_and_gradient

pytestmark = pytest.mark.usefixtures("small_tiles")

GOLDEN = json.loads(Path(__file__).with_name("golden_losses.json").read_text(encoding="utf-8"))["cases"]
every_case = pytest.mark.parametrize("case", GOLDEN, ids=[case["id"] for case in GOLDEN])


def kind(case):
    return case["dtype"], "grad_free" if case["grad_free"] else "grad_through_normalisation"


def published(case):
    """Value and gradient of a loss that normalizes, as `about` in the file says."""
    z = torch.tensor(case["z"], dtype=torch.float64)
    if case["grad_free"] is None:
        return z, case["value"], torch.tensor(case["grad_through_normalisation"], dtype=torch.float64)
    grad_free = torch.tensor(case["grad_free"], dtype=torch.float64)
    return z, case["value"], grad_free - (grad_free * z).sum(1, keepdim=True) * z


def test_every_golden_case_is_of_a_known_kind():
    assert Counter(map(kind, GOLDEN)) == {
        ("float64", "grad_free"): 20,
        ("float32", "grad_free"): 2,
        ("float64", "grad_through_normalisation"): 2,
    }
    assert Counter(case["loss"] for case in GOLDEN) == {"tcl": 12, "supcon": 10, "simclr": 2}
    assert all((case["grad_free"] is None) != (case["grad_through_normalisation"] is None) for case in GOLDEN)
    keys = {"id", "loss", "args", "z", "ids", "value", "grad_free", "grad_through_normalisation", "dtype", "source"}
    assert all(set(case) == keys for case in GOLDEN)


@dense_and_tiled
@every_case
def test_float64_is_the_published_value_and_gradient(case, name):
    z, expected_value, expected_gradient = published(case)
    loss = computed_by(name, partial(FUNCTIONS[case["loss"]], **case["args"]))
    value, gradient = value_and_gradient(loss, z, torch.tensor(case["ids"]))
    tolerance = {"float64": 1e-10, "float32": 2e-5}[case["dtype"]]
    assert_close(value.item(), expected_value, rtol=tolerance, atol=0)
    # The collapsed batches have a gradient of 0, which the subtraction above leaves at rounding size.
    largest = max(expected_gradient.abs().max().item(), 1e-3)
    assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance * largest)


@dense_and_tiled
@every_case
def test_float32_is_close_to_the_published_value_and_gradient(case, name):
    z, expected_value, expected_gradient = published(case)
    loss = computed_by(name, partial(FUNCTIONS[case["loss"]], **case["args"]))
    value, gradient = value_and_gradient(loss, z.float(), torch.tensor(case["ids"]))
    assert_close(value.item(), expected_value, rtol=2e-5, atol=0)
    assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)
