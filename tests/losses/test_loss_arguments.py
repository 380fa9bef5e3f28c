"""Arguments of losses: what is refused, temperatures that are learned, and modules as their functions."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from loss_batches import FUNCTIONS, IDS, Z, by_both_implementations, every_layout, rows
from reptk import LOSSES
from reptk.losses import (
    TCL,
    ProxyAnchor,
    SigLIP,
    SimCLR,
    SmoothAP,
    SubCenterArcFace,
    SupCon,
    simclr,
    supcon,
    tcl,
)
from reptk.plugins.dcl import DCL

pytestmark = pytest.mark.usefixtures("small_tiles")


BAD_TEMPERATURES = [0, 0.0, -0.1, math.nan, math.inf, -math.inf, 1e-40]
BAD_WEIGHTS = [-1.0, -1e-9, math.nan, math.inf]

BAD_ARGUMENTS = [
    *((loss_name, "temperature", value) for loss_name in FUNCTIONS for value in BAD_TEMPERATURES),
    *(("tcl", argument, value) for argument in ("k1", "k2") for value in BAD_WEIGHTS),
    *(("supcon", "form", value) for value in ("both", "OUT", "", None)),
]


@pytest.mark.parametrize(("loss_name", "argument", "value"), BAD_ARGUMENTS)
def test_bad_argument_is_named(loss_name, argument, value):
    good = {"temperature": 0.1}
    if loss_name == "tcl":
        good |= {"k1": 1.0, "k2": 1.0}
    with pytest.raises(ValueError, match=rf"^{argument} "):
        FUNCTIONS[loss_name](Z, IDS, **good | {argument: value})
    with pytest.raises(ValueError, match=rf"^{argument} "):
        LOSSES.get(loss_name)(**{argument: value})(Z, IDS)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_dcl_refuses_a_bad_temperature(temperature):
    with pytest.raises(ValueError, match=r"^temperature "):
        DCL(temperature=temperature)


# A temperature that is learned


LEARNED = {
    "supcon out": supcon,
    "supcon in": partial(supcon, form="in"),
    "tcl": partial(tcl, k1=50.0, k2=1.0),
    "tcl k2=2": partial(tcl, k1=50.0, k2=2.0),
    "simclr": simclr,
}
LEARNED_COMPUTED = by_both_implementations(LEARNED)


@every_layout
@pytest.mark.parametrize("loss", LEARNED_COMPUTED.values(), ids=LEARNED_COMPUTED)
@pytest.mark.parametrize("temperature", [0.3, 0.0011])
def test_temperature_gets_its_gradient(loss, ids, temperature):
    z = rows(len(ids)).requires_grad_()
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    assert_close(loss(z, ids, temperature=t), loss(z, ids, temperature=temperature), rtol=1e-12, atol=1e-12)
    step = {"eps": 1e-6 * temperature, "atol": 1e-4 / temperature, "rtol": 1e-4}
    assert gradcheck(lambda t: loss(z.detach(), ids, temperature=t), (t,), **step)


@pytest.mark.parametrize("module", [SupCon, TCL, SimCLR])
def test_module_learns_its_temperature(module):
    loss = module(0.2, learn_temperature=True)
    assert [name for name, _ in loss.named_parameters()] == ["temperature.logarithm"]
    assert_close(loss(Z, IDS), module(0.2)(Z, IDS), rtol=1e-6, atol=0)
    loss(Z, IDS).backward()
    assert loss.temperature.logarithm.grad != 0


def test_temperature_tensor_must_be_a_scalar():
    with pytest.raises(ValueError, match=r"^temperature must be a number or a scalar tensor, got shape \(1,\)"):
        supcon(Z, IDS, temperature=torch.tensor([0.1]))


# Modules

MODULES = {
    "SupCon()": (SupCon(), partial(supcon, temperature=0.1, form="out")),
    "SupCon(0.3, in)": (SupCon(0.3, "in"), partial(supcon, temperature=0.3, form="in")),
    "TCL()": (TCL(), partial(tcl, temperature=0.1, k1=5000.0, k2=1.0)),
    "TCL(0.3, 2, 0.5)": (TCL(0.3, 2, 0.5), partial(tcl, temperature=0.3, k1=2, k2=0.5)),
    "SimCLR()": (SimCLR(), partial(simclr, temperature=0.5)),
    "SimCLR(0.2)": (SimCLR(0.2), partial(simclr, temperature=0.2)),
}


@pytest.mark.parametrize(("module", "function"), MODULES.values(), ids=MODULES)
def test_module_is_its_function(module, function):
    assert torch.equal(module(Z, IDS), function(Z, IDS))
    assert not list(module.parameters())
    assert not module.state_dict()


def test_registered_names():
    built_in = {name: LOSSES.get(name) for name in LOSSES.names() if LOSSES.source(name).startswith("reptk.losses")}
    assert built_in == {
        "supcon": SupCon,
        "tcl": TCL,
        "simclr": SimCLR,
        "proxy_anchor": ProxyAnchor,
        "siglip": SigLIP,
        "smooth_ap": SmoothAP,
        "subcenter_arcface": SubCenterArcFace,
    }


@pytest.mark.parametrize(("z", "ids"), [(np.ones((4, 2)), torch.arange(4)), (torch.ones(4, 2), [0, 1, 0, 1])])
def test_what_is_no_tensor_is_named(z: object, ids: object) -> None:
    with pytest.raises(TypeError, match=r"must be a tensor, not (ndarray|list); torch\.as_tensor"):
        simclr(z, ids, temperature=0.5)
