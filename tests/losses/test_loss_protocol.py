"""The members of a loss: documented defaults, and what the shipped losses say."""

import pytest
import torch

from loss_batches import IDS, Z
from reptk.config.registry import with_defaults
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


def test_a_plain_module_gets_the_defaults():
    class Squares(torch.nn.Module):
        def forward(self, z, ids):
            return z.square().sum()

    loss = with_defaults(Squares(), Loss)
    assert loss(Z, IDS) == Z.square().sum()
    assert loss.computes_local_rows is False
    assert loss.temperature is None


@pytest.mark.parametrize("loss", SHIPPED)
def test_shipped_losses_keep_what_they_say(loss):
    temperature = loss().temperature
    completed = with_defaults(loss(), Loss)
    assert completed.computes_local_rows is True
    assert type(completed.temperature) is type(temperature)


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
