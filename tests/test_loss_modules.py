"""Losses as modules: what they refuse, temperatures that are learned, keys, and how they are named and written down."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from batches import FUNCTIONS, IDS, Z, both_ways, by, every_layout, every_loss, every_way, rows
from reptk import LOSSES
from reptk.core.errors import NumericalError
from reptk.losses import TCL, SimCLR, SupCon, simclr, supcon, tcl
from reptk.plugins.dcl import DCL

pytestmark = pytest.mark.usefixtures("small_tiles")


# Bad input


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


@both_ways
def test_a_row_that_is_not_finite_is_named_though_it_has_nobody_to_be_compared_with(how):
    z, ids = rows(6), torch.tensor([9, 0, 0, 1, 1, 1])
    z[0] = math.nan
    with pytest.raises(NumericalError, match=r"^1 of 6 rows of z hold NaN or infinity: 0$"):
        by(how, tcl)(z, ids, temperature=0.1, k1=1.0, k2=0.0)


NOT_A_TEMPERATURE = [0, 0.0, -0.1, math.nan, math.inf, -math.inf, 1e-40]
NOT_A_WEIGHT = [-1.0, -1e-9, math.nan, math.inf]

BAD_ARGUMENTS = [
    *((name, "temperature", value) for name in FUNCTIONS for value in NOT_A_TEMPERATURE),
    *(("tcl", name, value) for name in ("k1", "k2") for value in NOT_A_WEIGHT),
    *(("supcon", "form", value) for value in ("both", "OUT", "", None)),
]


@pytest.mark.parametrize(("name", "argument", "value"), BAD_ARGUMENTS)
def test_bad_argument_is_named(name, argument, value):
    good = {"temperature": 0.1} | ({"k1": 1.0, "k2": 1.0} if name == "tcl" else {})
    with pytest.raises(ValueError, match=rf"^{argument} "):
        FUNCTIONS[name](Z, IDS, **good | {argument: value})
    with pytest.raises(ValueError, match=rf"^{argument} "):
        LOSSES.get(name)(**{argument: value})(Z, IDS)


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
LEARNED_COMPUTED = every_way(LEARNED)


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
    learning = module(0.2, learn_temperature=True)
    assert [name for name, _ in learning.named_parameters()] == ["temperature.logarithm"]
    assert_close(learning(Z, IDS), module(0.2)(Z, IDS), rtol=1e-6, atol=0)
    learning(Z, IDS).backward()
    assert learning.temperature.logarithm.grad != 0


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
    assert built_in == {"supcon": SupCon, "tcl": TCL, "simclr": SimCLR}
