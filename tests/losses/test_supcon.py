"""SupCon: its two forms against each other and against NT-Xent."""

import math
from functools import partial

import pytest
import torch

from loss_batches import LAYOUTS, every_layout, rows
from loss_formulas import assert_same_loss
from reptk.losses import supcon

pytestmark = pytest.mark.usefixtures("small_tiles")


@every_layout
@pytest.mark.parametrize("key", range(5))
def test_supcon_in_is_at_most_out(ids, key):
    z = rows(len(ids), key=key)
    assert supcon(z, ids, temperature=0.1, form="in") <= supcon(z, ids, temperature=0.1, form="out") + 1e-12


def test_one_positive_each_makes_supcon_in_equal_out():
    ids = torch.tensor(LAYOUTS["pairs"])
    z = rows(len(ids))
    assert_same_loss(partial(supcon, temperature=0.1, form="in"), partial(supcon, temperature=0.1, form="out"), z, ids)


@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.005, 0.001])
def test_similarity_with_itself_does_not_hide_orthogonal_rows(temperature):
    ids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert supcon(torch.eye(8), ids, temperature=temperature).item() == pytest.approx(math.log(7), rel=1e-6)
