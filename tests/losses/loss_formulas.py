"""The losses as triple loops written from their formulas."""

from functools import partial

from torch.nn import functional
from torch.testing import assert_close

from loss_batches import value_and_gradient
from reptk.losses import simclr, supcon, tcl
from reptk.plugins.dcl import DCL


def assert_same_loss(loss, expected_loss, z, ids):
    """Two losses agree in value and gradient, in float64."""
    value, gradient = value_and_gradient(loss, z, ids)
    expected_value, expected_gradient = value_and_gradient(expected_loss, z, ids)
    assert_close(value, expected_value, rtol=1e-10, atol=1e-12)
    assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def mean_over_anchors_in_a_loop(per_anchor, num_anchors, z, ids):
    """Mean over the first rows of per_anchor(similarities, positives, negatives), where that has a value."""
    unit = functional.normalize(z, dim=1, eps=0)
    values = []
    for i in range(num_anchors):
        positives = [j for j in range(len(z)) if j != i and ids[j] == ids[i]]
        negatives = [j for j in range(len(z)) if ids[j] != ids[i]]
        if not positives:
            continue
        value = per_anchor([unit[i].dot(row) for row in unit], positives, negatives)
        if value is not None:
            values.append(value)
    if not values:
        return 0 * z.sum()
    return sum(values) / len(values)


def supcon_out(t):
    def per_anchor(s, positives, negatives):
        others = positives + negatives
        terms = [(s[p].div(t).exp() / sum(s[a].div(t).exp() for a in others)).log() for p in positives]
        return -sum(terms) / len(positives)

    return per_anchor


def supcon_in(t):
    def per_anchor(s, positives, negatives):
        others = positives + negatives
        denominator = sum(s[a].div(t).exp() for a in others)
        return -(sum(s[p].div(t).exp() / denominator for p in positives) / len(positives)).log()

    return per_anchor


def tuned(t, k1, k2):
    def per_anchor(s, positives, negatives):
        denominator = sum(s[p].div(t).exp() + k1 * s[p].neg().exp() for p in positives)
        denominator = denominator + k2 * sum(s[n].div(t).exp() for n in negatives)
        return -sum((s[p].div(t).exp() / denominator).log() for p in positives) / len(positives)

    return per_anchor


def decoupled(t):
    def per_anchor(s, positives, negatives):
        if not negatives:
            return None
        denominator = sum(s[n].div(t).exp() for n in negatives)
        return sum(-s[p] / t + denominator.log() for p in positives) / len(positives)

    return per_anchor


FORMULAS = {
    "supcon out": (partial(supcon, temperature=0.3), supcon_out(0.3)),
    "supcon in": (partial(supcon, temperature=0.3, form="in"), supcon_in(0.3)),
    "simclr": (partial(simclr, temperature=0.5), supcon_out(0.5)),
    "dcl": (DCL(temperature=0.2), decoupled(0.2)),
}
for k1, k2 in [(5000.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.5, 2.5), (0, 3)]:
    FORMULAS[f"tcl k1={k1:g} k2={k2:g}"] = (partial(tcl, temperature=0.2, k1=k1, k2=k2), tuned(0.2, k1, k2))
