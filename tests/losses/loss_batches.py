"""Small batches, the losses by name, and how they are computed and differentiated, for the tests of losses."""

from functools import partial

import pytest
import torch

from reptk.core import rng
from reptk.losses import implementation, simclr, supcon, tcl
from reptk.plugins.dcl import DCL

LAYOUTS = {
    "one class": [3] * 7,
    "all distinct": list(range(7)),
    "pairs": [0, 1, 2, 3, 0, 1, 2, 3],
    "singletons": [0, 0, 1, 2, 2, 3, 4],
    "unsorted": [5, -2, 5, 9, -2, 5, 9, 0],
    "unbalanced": [0] * 8 + [1, 1],
}
every_layout = pytest.mark.parametrize("ids", [torch.tensor(ids) for ids in LAYOUTS.values()], ids=LAYOUTS)
dense_and_tiled = pytest.mark.parametrize("name", ["dense", "tiled"])


def rows(count, dimension=5, *, key=0, dtype=torch.float64):
    return torch.randn(count, dimension, generator=rng.generator("test", key), dtype=dtype)


def value_and_gradient(loss, z, ids):
    z = z.detach().clone().requires_grad_()
    value = loss(z, ids)
    return value.detach(), torch.autograd.grad(value, z)[0]


def computed_by(name, loss):
    """Return the loss, computed by one implementation."""

    def loss_by_implementation(*args, **kwargs):
        with implementation(name):
            return loss(*args, **kwargs)

    return loss_by_implementation


def by_both_implementations(losses):
    """Return `{name and implementation: loss}` for `{name: loss}`."""
    return {
        f"{loss_name} {name}": computed_by(name, loss)
        for loss_name, loss in losses.items()
        for name in ("dense", "tiled")
    }


FUNCTIONS = {"supcon": supcon, "tcl": tcl, "simclr": simclr}

LOSSES_BY_NAME = {
    "supcon out": partial(supcon, temperature=0.1, form="out"),
    "supcon in": partial(supcon, temperature=0.1, form="in"),
    "tcl": partial(tcl, temperature=0.1, k1=5000.0, k2=1.0),
    "tcl positives only": partial(tcl, temperature=0.1, k1=1.0, k2=0.0),
    "tcl k2=2": partial(tcl, temperature=0.1, k1=1.0, k2=2.0),
    "simclr": partial(simclr, temperature=0.1),
    "dcl": DCL(temperature=0.1),
}
_COMPUTED = by_both_implementations(LOSSES_BY_NAME)
every_loss = pytest.mark.parametrize("loss", _COMPUTED.values(), ids=_COMPUTED)

Z, IDS = rows(6), torch.tensor([0, 1, 2, 0, 1, 2])
