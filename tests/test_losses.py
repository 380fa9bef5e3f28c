"""Losses equal the published values, triple loops written from the formulas, and each other where theory says so.

Everything is tried on one matrix and in tiles so small that these few rows need several.
"""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.testing import assert_close

from batches import (
    FUNCTIONS,
    IDS,
    LAYOUTS,
    LOSS,
    Z,
    both_ways,
    by,
    every_layout,
    every_loss,
    rows,
    value_and_gradient,
)
from reptk.core import rng
from reptk.losses import simclr, supcon, tcl
from reptk.plugins.dcl import DCL

pytestmark = pytest.mark.usefixtures("small_tiles")

GOLDEN = json.loads(Path(__file__).with_name("golden_losses.json").read_text(encoding="utf-8"))["cases"]


def assert_same(left, right, z, ids):
    """Two losses agree in value and gradient, in float64."""
    for mine, expected in zip(value_and_gradient(left, z, ids), value_and_gradient(right, z, ids), strict=True):
        assert_close(mine, expected, rtol=1e-10, atol=1e-12)


# Published values


def kind(case):
    return case["dtype"], "grad_free" if case["grad_free"] else "grad_through_normalisation"


def published(case):
    """Value and gradient of a loss that normalises, as `about` in the file says."""
    z = torch.tensor(case["z"], dtype=torch.float64)
    if case["grad_free"] is None:
        return z, case["value"], torch.tensor(case["grad_through_normalisation"], dtype=torch.float64)
    free = torch.tensor(case["grad_free"], dtype=torch.float64)
    return z, case["value"], free - (free * z).sum(1, keepdim=True) * z


def test_every_golden_case_is_of_a_known_kind():
    assert Counter(map(kind, GOLDEN)) == {
        ("float64", "grad_free"): 20,
        ("float32", "grad_free"): 2,
        ("float64", "grad_through_normalisation"): 2,
    }
    assert Counter(case["loss"] for case in GOLDEN) == {"tcl": 12, "supcon": 10, "simclr": 2}
    assert all((case["grad_free"] is None) != (case["grad_through_normalisation"] is None) for case in GOLDEN)
    keys = {"id", "loss", "args", "z", "ids", "value", "grad_free", "grad_through_normalisation", "dtype", "source"}
    assert all(set(case) == keys for case in GOLDEN)


@both_ways
@pytest.mark.parametrize("case", GOLDEN, ids=[case["id"] for case in GOLDEN])
def test_published_value_and_gradient(case, how):
    z, value, gradient = published(case)
    loss = by(how, partial(FUNCTIONS[case["loss"]], **case["args"]))
    mine = value_and_gradient(loss, z, torch.tensor(case["ids"]))
    tolerance = {"float64": 1e-10, "float32": 2e-5}[case["dtype"]]
    assert_close(mine[0].item(), value, rtol=tolerance, atol=0)
    # The collapsed batches have a gradient of 0, which the subtraction above leaves at rounding size.
    assert_close(mine[1], gradient, rtol=tolerance, atol=tolerance * max(gradient.abs().max().item(), 1e-3))


@both_ways
@pytest.mark.parametrize("case", GOLDEN, ids=[case["id"] for case in GOLDEN])
def test_float32_reaches_the_published_value(case, how):
    z, value, gradient = published(case)
    loss = by(how, partial(FUNCTIONS[case["loss"]], **case["args"]))
    mine = value_and_gradient(loss, z.float(), torch.tensor(case["ids"]))
    assert_close(mine[0].item(), value, rtol=2e-5, atol=0)
    assert_close(mine[1].double(), gradient, rtol=1e-4, atol=1e-5)


# Triple loops


def loop(per_anchor, z, ids):
    """Mean over the anchors of per_anchor(similarities, positives, negatives), where that has a value."""
    unit = [row / row.dot(row).sqrt() for row in z]
    values = []
    for i, anchor in enumerate(unit):
        positives = [j for j in range(len(z)) if j != i and ids[j] == ids[i]]
        negatives = [j for j in range(len(z)) if ids[j] != ids[i]]
        if positives:
            values.append(per_anchor([anchor.dot(row) for row in unit], positives, negatives))
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else 0 * z.sum()


def supcon_out(t):
    def per_anchor(s, positives, negatives):
        others = positives + negatives
        terms = [(s[p].div(t).exp() / sum(s[a].div(t).exp() for a in others)).log() for p in positives]
        return -sum(terms) / len(positives)

    return per_anchor


def supcon_in(t):
    def per_anchor(s, positives, negatives):
        others = positives + negatives
        over_all = sum(s[a].div(t).exp() for a in others)
        return -(sum(s[p].div(t).exp() / over_all for p in positives) / len(positives)).log()

    return per_anchor


def tuned(t, k1, k2):
    def per_anchor(s, positives, negatives):
        total = sum(s[p].div(t).exp() + k1 * s[p].neg().exp() for p in positives)
        total = total + k2 * sum(s[n].div(t).exp() for n in negatives)
        return -sum((s[p].div(t).exp() / total).log() for p in positives) / len(positives)

    return per_anchor


def decoupled(t):
    def per_anchor(s, positives, negatives):
        if not negatives:
            return None
        return sum(-s[p] / t + sum(s[n].div(t).exp() for n in negatives).log() for p in positives) / len(positives)

    return per_anchor


FORMULAS = {
    "supcon out": (partial(supcon, temperature=0.3), supcon_out(0.3)),
    "supcon in": (partial(supcon, temperature=0.3, form="in"), supcon_in(0.3)),
    "simclr": (partial(simclr, temperature=0.5), supcon_out(0.5)),
    "dcl": (DCL(temperature=0.2), decoupled(0.2)),
} | {
    f"tcl k1={k1:g} k2={k2:g}": (partial(tcl, temperature=0.2, k1=k1, k2=k2), tuned(0.2, k1, k2))
    for k1, k2 in [(5000.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.5, 2.5), (0, 3)]
}


@both_ways
@every_layout
@pytest.mark.parametrize("name", FORMULAS)
def test_loss_is_its_formula(name, ids, how):
    loss, per_anchor = FORMULAS[name]
    assert_same(by(how, loss), partial(loop, per_anchor), rows(len(ids)), ids)


@both_ways
@pytest.mark.parametrize("name", FORMULAS)
def test_loss_is_its_formula_on_one_hot_rows(name, how):
    loss, per_anchor = FORMULAS[name]
    ids = torch.tensor(LAYOUTS["unsorted"])
    one_hot = torch.eye(4, dtype=torch.float64)[torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])]
    assert_same(by(how, loss), partial(loop, per_anchor), one_hot, ids)


# Identities


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
    assert_same(partial(loss, temperature=temperature), partial(nt_xent, temperature=temperature), z, ids)


@every_layout
def test_tcl_without_k1_is_supcon(ids):
    z = rows(len(ids))
    assert_same(partial(tcl, temperature=0.1, k1=0.0, k2=1.0), partial(supcon, temperature=0.1), z, ids)


@every_layout
def test_simclr_of_any_number_of_views_is_supcon_out(ids):
    z = rows(len(ids))
    assert_same(partial(simclr, temperature=0.2), partial(supcon, temperature=0.2), z, ids)


@every_layout
@pytest.mark.parametrize("key", range(5))
def test_supcon_in_is_at_most_out(ids, key):
    z = rows(len(ids), key=key)
    assert supcon(z, ids, temperature=0.1, form="in") <= supcon(z, ids, temperature=0.1, form="out") + 1e-12


def test_one_positive_each_makes_supcon_in_equal_out():
    ids = torch.tensor(LAYOUTS["pairs"])
    z = rows(len(ids))
    assert_same(partial(supcon, temperature=0.1, form="in"), partial(supcon, temperature=0.1, form="out"), z, ids)


@pytest.mark.parametrize("k1", [0.0, 1.0, 5000.0])
def test_tcl_without_k2_does_not_compare_classes(k1):
    ids = torch.tensor(LAYOUTS["unsorted"])
    z = rows(len(ids))
    turned = torch.where((ids == 5)[:, None], z @ rotation(z.shape[1]), z)
    loss = partial(tcl, temperature=0.1, k1=k1, k2=0.0)
    assert_close(loss(turned, ids), loss(z, ids), rtol=1e-10, atol=1e-12)
    assert not torch.isclose(
        tcl(turned, ids, temperature=0.1, k1=k1, k2=1.0), tcl(z, ids, temperature=0.1, k1=k1, k2=1.0)
    )


@every_layout
@pytest.mark.parametrize("dropped", ["k1", "k2"])
def test_tcl_with_k_0_is_the_limit_of_small_k(ids, dropped):
    z = rows(len(ids))
    k = {"k1": 2.0, "k2": 2.0}
    small, none = (
        partial(tcl, temperature=0.2, **k | {dropped: 1e-14}),
        partial(tcl, temperature=0.2, **k | {dropped: 0}),
    )
    assert_same(small, none, z, ids)


def rotation(dimension, key=0):
    return torch.linalg.qr(rows(dimension, dimension, key=("rotation", key)))[0]


@st.composite
def batches(draw):
    ids = draw(st.lists(st.integers(-3, 3), min_size=2, max_size=12))
    return rows(len(ids), draw(st.integers(2, 6)), key=draw(st.integers(0, 2**32))), torch.tensor(ids)


modest = settings(deadline=None, max_examples=25, derandomize=True)


@every_loss
@modest
@given(batch=batches(), key=st.integers(0, 2**32))
def test_rows_may_come_in_any_order(loss, batch, key):
    z, ids = batch
    order = torch.randperm(len(ids), generator=rng.generator("order", key))
    value, gradient = value_and_gradient(loss, z, ids)
    shuffled = value_and_gradient(loss, z[order], ids[order])
    assert_close(shuffled, (value, gradient[order]), rtol=1e-9, atol=1e-10)


@every_loss
@modest
@given(batch=batches(), exponents=st.lists(st.integers(-100, 100), min_size=12, max_size=12))
def test_rows_may_have_any_length(loss, batch, exponents):
    z, ids = batch
    lengths = 10.0 ** torch.tensor(exponents[: len(ids)], dtype=torch.float64)[:, None]
    value, gradient = value_and_gradient(loss, z, ids)
    scaled = value_and_gradient(loss, z * lengths, ids)
    assert_close((scaled[0], scaled[1] * lengths), (value, gradient), rtol=1e-9, atol=1e-10)


@every_loss
@modest
@given(batch=batches(), key=st.integers(0, 2**32))
def test_space_may_be_rotated(loss, batch, key):
    z, ids = batch
    turn = rotation(z.shape[1], key)
    value, gradient = value_and_gradient(loss, z, ids)
    turned = value_and_gradient(loss, z @ turn, ids)
    assert_close(turned, (value, gradient @ turn), rtol=1e-9, atol=1e-10)


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


@both_ways
@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.005])
@pytest.mark.parametrize("name", ["supcon out", "supcon in", "tcl", "tcl positives only", "simclr", "dcl"])
@pytest.mark.parametrize("z", HARD_ROWS.values(), ids=HARD_ROWS)
def test_float32_is_close_to_float64_at_low_temperature(z, name, temperature, how):
    loss = by(how, DCL(temperature=temperature) if name == "dcl" else partial(LOSS[name], temperature=temperature))
    exact = value_and_gradient(loss, z, HARD_IDS)
    single = value_and_gradient(loss, z.float(), HARD_IDS)
    # Similarities are right to about 2e-7, and divided by the temperature.
    assert_close(single[0].double(), exact[0], rtol=1e-6, atol=1e-6 / temperature)
    assert_close(single[1].double(), exact[1], rtol=1e-3, atol=1e-4 / temperature)


@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.005, 0.001])
def test_own_similarity_does_not_drown_orthogonal_rows(temperature):
    ids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert supcon(torch.eye(8), ids, temperature=temperature).item() == pytest.approx(math.log(7), rel=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    ids = torch.tensor(LAYOUTS["unsorted"])
    z = rows(len(ids)).to(dtype)
    value, gradient = value_and_gradient(loss, z, ids)
    expected = value_and_gradient(loss, z.float(), ids)
    assert value.dtype == torch.float32
    assert_close((value, gradient), (expected[0], expected[1].to(dtype)), rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_autocast_changes_nothing(loss, dtype):
    ids = torch.tensor(LAYOUTS["unsorted"])
    z = rows(len(ids)).to(dtype)
    expected = value_and_gradient(loss, z, ids)

    def under_autocast(z, ids):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(z, ids)

    assert_close(value_and_gradient(under_autocast, z, ids), expected, rtol=0, atol=0)


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


# Keys


def with_keys(per_anchor, anchors):
    """The triple loop over all rows, averaged over the first ones alone."""

    def loss(z, ids):
        unit = functional.normalize(z, dim=1)
        values = []
        for i in range(anchors):
            positives = [j for j in range(len(z)) if j != i and ids[j] == ids[i]]
            negatives = [j for j in range(len(z)) if ids[j] != ids[i]]
            if positives:
                value = per_anchor([unit[i] @ row for row in unit], positives, negatives)
                values += [] if value is None else [value]
        return sum(values) / len(values)

    return loss


@both_ways
@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "dcl"])
def test_keys_are_compared_with_but_are_no_anchors(name, how):
    loss, per_anchor = FORMULAS[name]
    z, keys = rows(8), rows(11, key=1)
    ids, key_ids = torch.tensor(LAYOUTS["unsorted"]), torch.tensor([5, 5, 7, -2, 3, 3, 9, 0, 1, 1, 1])
    mine = value_and_gradient(lambda z, ids: by(how, loss)(z, ids, keys=keys, key_ids=key_ids), z, ids)
    all_ids = torch.cat([ids, key_ids])
    looped = value_and_gradient(lambda z, ids: with_keys(per_anchor, 8)(torch.cat([z, keys]), all_ids), z, ids)
    assert_close(mine, looped, rtol=1e-10, atol=1e-12)


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
