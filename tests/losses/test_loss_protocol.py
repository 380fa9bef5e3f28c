"""The members of a loss: documented defaults, and what the shipped losses say."""

import pytest
import torch

from loss_batches import IDS, Z
from reptk.losses import TCL, Loss, SimCLR, SupCon
from reptk.plugins.dcl import DCL

SHIPPED = [SupCon, TCL, SimCLR, DCL]


def test_only_the_call_is_required():
    class Squares(Loss):
        def __call__(self, z, ids):
            return z.square().sum()

    loss = Squares()
    assert loss(Z, IDS) == Z.square().sum()
    assert loss.computes_local_rows is False
    assert loss.temperature is None


@pytest.mark.parametrize("loss", SHIPPED)
def test_shipped_losses_compute_local_rows(loss):
    assert loss.computes_local_rows is True


@pytest.mark.parametrize("loss", SHIPPED)
def test_shipped_losses_have_a_temperature(loss):
    temperature = loss(temperature=0.25).temperature
    value = temperature() if callable(temperature) else temperature
    assert value == 0.25


def test_a_learned_temperature_is_a_tensor():
    value = SupCon(temperature=0.25, learn_temperature=True).temperature()
    assert isinstance(value, torch.Tensor)
    assert value.item() == pytest.approx(0.25)
