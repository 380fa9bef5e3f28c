"""NT-Xent: every loss of two views of an image, and SupCon for more views."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from loss_batches import every_layout, rows
from loss_formulas import assert_same_loss
from reptk.losses import simclr, supcon, tcl

pytestmark = pytest.mark.usefixtures("small_tiles")


def nt_xent(z, ids, *, temperature):
    """Cross entropy of finding an image's other view among all other rows (two views each)."""
    logits = functional.cosine_similarity(z[:, None], z[None, :], dim=2) / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    other_view = [next(j for j in range(len(z)) if j != i and ids[j] == ids[i]) for i in range(len(z))]
    return functional.cross_entropy(logits, torch.tensor(other_view))


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize(
    "loss", [simclr, supcon, partial(supcon, form="in"), partial(tcl, k1=0, k2=1)], ids=["simclr", "out", "in", "tcl"]
)
def test_two_views_of_every_image_give_nt_xent(loss, temperature):
    ids = torch.tensor([4, 0, 7, 2, 2, 7, 0, 4, 9, 9])
    z = rows(len(ids))
    assert_same_loss(partial(loss, temperature=temperature), partial(nt_xent, temperature=temperature), z, ids)


@every_layout
def test_simclr_of_any_number_of_views_is_supcon_out(ids):
    z = rows(len(ids))
    assert_same_loss(partial(simclr, temperature=0.2), partial(supcon, temperature=0.2), z, ids)
