"""Losses equal triple loops written from their formulas, as one matrix and in tiles."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from loss_batches import IDS, LAYOUTS, Z, computed_by, dense_and_tiled, every_layout, rows, value_and_gradient
from loss_formulas import FORMULAS, assert_same_loss, mean_over_anchors_in_a_loop
from reptk.losses import supcon

pytestmark = pytest.mark.usefixtures("small_tiles")


@dense_and_tiled
@every_layout
@pytest.mark.parametrize("loss_name", FORMULAS)
def test_loss_is_its_formula(loss_name, ids, name):
    loss, per_anchor = FORMULAS[loss_name]
    looped = partial(mean_over_anchors_in_a_loop, per_anchor, len(ids))
    assert_same_loss(computed_by(name, loss), looped, rows(len(ids)), ids)


@dense_and_tiled
@pytest.mark.parametrize("loss_name", FORMULAS)
def test_loss_is_its_formula_on_one_hot_rows(loss_name, name):
    loss, per_anchor = FORMULAS[loss_name]
    ids = torch.tensor(LAYOUTS["unsorted"])
    one_hot = torch.eye(4, dtype=torch.float64)[torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])]
    looped = partial(mean_over_anchors_in_a_loop, per_anchor, len(ids))
    assert_same_loss(computed_by(name, loss), looped, one_hot, ids)


# Keys


@dense_and_tiled
@pytest.mark.parametrize("loss_name", [name for name in FORMULAS if name != "dcl"])
def test_keys_are_compared_with_but_are_not_anchors(loss_name, name):
    loss, per_anchor = FORMULAS[loss_name]
    z, keys = rows(8), rows(11, key=1)
    ids, key_ids = torch.tensor(LAYOUTS["unsorted"]), torch.tensor([5, 5, 7, -2, 3, 3, 9, 0, 1, 1, 1])
    all_ids = torch.cat([ids, key_ids])

    def loss_with_keys(z, ids):
        return computed_by(name, loss)(z, ids, keys=keys, key_ids=key_ids)

    def looped(z, ids):
        return mean_over_anchors_in_a_loop(per_anchor, len(z), torch.cat([z, keys]), all_ids)

    expected = value_and_gradient(looped, z, ids)
    assert_close(value_and_gradient(loss_with_keys, z, ids), expected, rtol=1e-10, atol=1e-12)


def test_keys_get_no_gradient():
    keys = rows(4, key=1).requires_grad_()
    supcon(rows(6).requires_grad_(), IDS, temperature=0.1, keys=keys, key_ids=torch.arange(4)).backward()
    assert keys.grad is None


@pytest.mark.parametrize(
    ("keys", "key_ids", "message"),
    [
        (rows(4), None, "keys and key_ids come together"),
        (None, torch.arange(4), "keys and key_ids come together"),
        (rows(4, 3), torch.arange(4), "as wide as z, got 3 and 5"),
        (rows(4), torch.arange(3), r"takes keys \(N, D\) and key_ids \(N,\)"),
    ],
)
def test_bad_keys_are_named(keys, key_ids, message):
    with pytest.raises(ValueError, match=message):
        supcon(Z, IDS, temperature=0.1, keys=keys, key_ids=key_ids)
