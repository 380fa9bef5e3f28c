"""What holds for every loss: invariances, precision, batches without positives, and batches that are refused."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from loss_batches import (
    IDS,
    LAYOUTS,
    LOSSES_BY_NAME,
    Z,
    computed_by,
    dense_and_tiled,
    every_loss,
    rows,
    value_and_gradient,
)
from reptk.core import rng
from reptk.core.errors import NumericalError
from reptk.losses import tcl
from reptk.plugins.dcl import DCL

pytestmark = pytest.mark.usefixtures("small_tiles")


# Invariances


@st.composite
def batches(draw):
    ids = draw(st.lists(st.integers(-3, 3), min_size=2, max_size=12))
    return rows(len(ids), draw(st.integers(2, 6)), key=draw(st.integers(0, 2**32))), torch.tensor(ids)


few_examples = settings(deadline=None, max_examples=25, derandomize=True)


@every_loss
@few_examples
@given(batch=batches(), key=st.integers(0, 2**32))
def test_rows_may_come_in_any_order(loss, batch, key):
    z, ids = batch
    order = torch.randperm(len(ids), generator=rng.generator("order", key))
    value, gradient = value_and_gradient(loss, z, ids)
    shuffled = value_and_gradient(loss, z[order], ids[order])
    assert_close(shuffled, (value, gradient[order]), rtol=1e-9, atol=1e-10)


@every_loss
@few_examples
@given(batch=batches(), exponents=st.lists(st.integers(-100, 100), min_size=12, max_size=12))
def test_rows_may_have_any_length(loss, batch, exponents):
    z, ids = batch
    lengths = 10.0 ** torch.tensor(exponents[: len(ids)], dtype=torch.float64)[:, None]
    expected = value_and_gradient(loss, z, ids)
    value, gradient = value_and_gradient(loss, z * lengths, ids)
    assert_close((value, gradient * lengths), expected, rtol=1e-9, atol=1e-10)


@every_loss
@few_examples
@given(batch=batches(), key=st.integers(0, 2**32))
def test_space_may_be_rotated(loss, batch, key):
    z, ids = batch
    dimension = z.shape[1]
    rotation = torch.linalg.qr(rows(dimension, dimension, key=("rotation", key)))[0]
    value, gradient = value_and_gradient(loss, z, ids)
    rotated = value_and_gradient(loss, z @ rotation, ids)
    assert_close(rotated, (value, gradient @ rotation), rtol=1e-9, atol=1e-10)


@every_loss
@pytest.mark.parametrize(
    "rename",
    [
        lambda ids: -1 - ids,
        lambda ids: 2**62 + ids,
        lambda ids: ids.to(torch.int8),
        lambda ids: torch.stack([ids, ids], 1)[:, 0],
    ],
)
def test_only_which_ids_are_equal_matters(loss, rename):
    ids = torch.tensor(LAYOUTS["unsorted"])
    z = rows(len(ids))
    assert torch.equal(loss(z, rename(ids)), loss(z, ids))


# Precision


HARD_ROWS = {
    "random": rows(12, 16),
    "orthogonal": torch.eye(12, 16, dtype=torch.float64),
    "identical": rows(1, 16).expand(12, 16),
    "antipodal": rows(1, 16) * torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)[:, None],
    "antipodal classes": rows(1, 16) * torch.tensor([1.0, -1.0, 1.0] * 4, dtype=torch.float64)[:, None],
}
HARD_IDS = torch.tensor([0, 1, 2] * 4)


@dense_and_tiled
@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.005])
@pytest.mark.parametrize("loss_name", ["supcon out", "supcon in", "tcl", "tcl positives only", "simclr", "dcl"])
@pytest.mark.parametrize("z", HARD_ROWS.values(), ids=HARD_ROWS)
def test_float32_is_close_to_float64_at_low_temperature(z, loss_name, temperature, name):
    if loss_name == "dcl":
        loss = DCL(temperature=temperature)
    else:
        loss = partial(LOSSES_BY_NAME[loss_name], temperature=temperature)
    loss = computed_by(name, loss)
    expected_value, expected_gradient = value_and_gradient(loss, z, HARD_IDS)
    value, gradient = value_and_gradient(loss, z.float(), HARD_IDS)
    # Similarities are correct to about 2e-7, and divided by the temperature.
    assert_close(value.double(), expected_value, rtol=1e-6, atol=1e-6 / temperature)
    assert_close(gradient.double(), expected_gradient, rtol=1e-3, atol=1e-4 / temperature)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    ids = torch.tensor(LAYOUTS["unsorted"])
    z = rows(len(ids)).to(dtype)
    value, gradient = value_and_gradient(loss, z, ids)
    expected_value, expected_gradient = value_and_gradient(loss, z.float(), ids)
    assert value.dtype == torch.float32
    assert_close((value, gradient), (expected_value, expected_gradient.to(dtype)), rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_autocast_changes_nothing(loss, dtype):
    ids = torch.tensor(LAYOUTS["unsorted"])
    z = rows(len(ids)).to(dtype)
    expected = value_and_gradient(loss, z, ids)

    def loss_under_autocast(z, ids):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(z, ids)

    assert_close(value_and_gradient(loss_under_autocast, z, ids), expected, rtol=0, atol=0)


@every_loss
def test_float64_stays(loss):
    assert loss(rows(8), torch.tensor(LAYOUTS["pairs"])).dtype == torch.float64


# Without positives


@every_loss
@pytest.mark.parametrize("count", [1, 2, 7])
def test_without_positives_the_loss_is_0_and_attached(loss, count):
    value, gradient = value_and_gradient(loss, rows(count), torch.arange(count))
    assert value == 0
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1e-300])
def test_a_zero_row_has_a_small_gradient(loss, scale):
    """Divided by its length it would be 1e12 or NaN."""
    z = rows(6)
    z[2] *= scale
    value, gradient = value_and_gradient(loss, z, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert value.isfinite()
    assert gradient[:2].isfinite().all()
    if not scale:
        assert gradient[2].norm() < 100


# Batches that are refused


BAD_BATCHES = {
    "z with one dimension": (Z[:, 0], IDS, r"\bz \(N, D\)"),
    "z with three dimensions": (Z[None], IDS, r"\bz \(N, D\)"),
    "fewer ids than rows": (Z, IDS[:-1], r"\bids \(N,\)"),
    "ids with two dimensions": (Z, IDS[:, None], r"\bids \(N,\)"),
    "integer z": (Z.long(), IDS, r"^z must"),
    "complex z": (Z.cfloat(), IDS, r"^z must"),
    "float ids": (Z, IDS.float(), r"^ids must"),
    "complex ids": (Z, IDS.cfloat(), r"^ids must"),
}


@every_loss
@pytest.mark.parametrize(("z", "ids", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_batch_is_named(loss, z, ids, message):
    with pytest.raises(ValueError, match=message):
        loss(z, ids)


@every_loss
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_named(loss, value):
    z = Z.clone()
    z[2, 1] = z[5, 0] = value
    with pytest.raises(NumericalError, match=r"^2 of 6 rows of z hold NaN or infinity: 2, 5$"):
        loss(z, IDS)


@dense_and_tiled
def test_a_row_that_is_not_finite_is_named_even_without_candidates(name):
    z, ids = rows(6), torch.tensor([9, 0, 0, 1, 1, 1])
    z[0] = math.nan
    with pytest.raises(NumericalError, match=r"^1 of 6 rows of z hold NaN or infinity: 0$"):
        computed_by(name, tcl)(z, ids, temperature=0.1, k1=1.0, k2=0.0)
