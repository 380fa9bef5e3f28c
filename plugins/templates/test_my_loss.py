"""my_loss does what every loss must do, and has the value that was computed by hand."""

import math

import torch
from my_loss import MyLoss

from reptk.testing import check_loss


def test_it_does_what_a_loss_must_do():
    check_loss(MyLoss)


def test_value():
    # Two classes of two rows. Each row has one positive of similarity 1 and two negatives of similarity 0.
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    ids = torch.tensor([0, 0, 1, 1])
    by_hand = math.log(math.exp(1 / 0.5) + 2) - 1 / 0.5
    assert math.isclose(MyLoss(temperature=0.5)(z, ids).item(), by_hand, rel_tol=1e-6)
