"""Losses for retrieval against loops written from their formulas in float64, and against pytorch-metric-learning."""

import math

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from loss_batches import rows, value_and_gradient
from reptk.losses import proxy_anchor, siglip, smooth_ap, subcenter_arcface, unit_rows
from reptk.losses.proxy_anchor import ProxyAnchor
from reptk.losses.subcenter_arcface import SubCenterArcFace

IDS = torch.tensor([5, 2, 5, 1, 2, 5, 7, 1])
"""Three classes, and a row that is alone in its class."""
LABELS = torch.tensor([0, 2, 0, -1, 2, 1, -5, 1])
"""Of four classes, of which the last has no row."""
PROXIES = rows(4, key="proxies")
CENTERS = rows(12, key="centers").view(4, 3, 5)

both_block_sizes = pytest.mark.parametrize("block_elements", [2**24, 20])


def unit(z):
    return functional.normalize(z, dim=1, eps=0)


def sigmoid_in_a_loop(z, ids, scale, bias, keys=None, key_ids=()):
    others = unit(z) if keys is None else torch.cat([unit(z), unit(keys)])
    other_ids = [*ids.tolist(), *key_ids]
    values = []
    for i in range(len(z)):
        if other_ids.count(other_ids[i]) < 2:
            continue
        terms = []
        for j in range(len(others)):
            sign = 1 if other_ids[j] == other_ids[i] else -1
            if j != i:
                terms.append(-(1 / (1 + (-sign * (scale * others[i] @ others[j] + bias)).exp())).log())
        values.append(sum(terms))
    return sum(values) / len(values)


def average_precision_in_a_loop(z, ids, anneal, keys=None, key_ids=(), *, counts_query=False):
    """Smooth-AP; with `counts_query`, the query is among its own positives, as in the published codes."""
    others = unit(z) if keys is None else torch.cat([unit(z), unit(keys)])
    other_ids = [*ids.tolist(), *key_ids]
    values = []
    for q in range(len(z)):
        ranked = [j for j in range(len(others)) if counts_query or j != q]
        positives = [j for j in ranked if other_ids[j] == other_ids[q]]
        if not positives:
            continue
        precisions = []
        for i in positives:

            def rank(among, q=q, i=i):
                return 1 + sum(
                    1 / (1 + (-(others[q] @ others[j] - others[q] @ others[i]) / anneal).exp()) for j in among if j != i
                )

            precisions.append(rank(positives) / rank(ranked))
        values.append(1 - sum(precisions) / len(precisions))
    return sum(values) / len(values)


def proxy_anchor_in_a_loop(z, labels, proxies, alpha, margin):
    similarity = unit(z) @ unit(proxies).T
    present = sorted({label for label in labels.tolist() if label >= 0})
    attraction = repulsion = 0
    for p in range(len(proxies)):
        positives = [x for x in range(len(z)) if labels[x] == p]
        negatives = [x for x in range(len(z)) if labels[x] != p and labels[x] >= 0]
        if p in present:
            attraction += (1 + sum((-alpha * (similarity[x, p] - margin)).exp() for x in positives)).log()
        repulsion += (1 + sum((alpha * (similarity[x, p] + margin)).exp() for x in negatives)).log()
    return attraction / len(present) + repulsion / len(proxies)


def arcface_in_a_loop(z, labels, centers, scale, margin):
    values = []
    for x in range(len(z)):
        if labels[x] < 0:
            continue
        logits = [(unit(of_class) @ unit(z)[x]).max() for of_class in centers]
        angle = logits[labels[x]].acos()
        if angle + margin <= math.pi:
            logits[labels[x]] = (angle + margin).cos()
        else:
            logits[labels[x]] = angle.cos() - margin * math.sin(margin)
        exponentials = torch.stack([scale * logit for logit in logits]).exp()
        values.append(-(exponentials[labels[x]] / exponentials.sum()).log())
    return sum(values) / len(values)


KEYS, KEY_IDS = rows(4, key="keys"), torch.tensor([7, 2, 9, 9])

FORMULAS = {
    "siglip": (
        lambda z, ids: siglip(z, ids, scale=3.0, bias=-1.5),
        lambda z, ids: sigmoid_in_a_loop(z, ids, 3.0, -1.5),
        IDS,
    ),
    "siglip with keys": (
        lambda z, ids: siglip(z, ids, scale=3.0, bias=-1.5, keys=KEYS, key_ids=KEY_IDS),
        lambda z, ids: sigmoid_in_a_loop(z, ids, 3.0, -1.5, KEYS, KEY_IDS.tolist()),
        IDS,
    ),
    "smooth_ap": (
        lambda z, ids: smooth_ap(z, ids, anneal=0.1),
        lambda z, ids: average_precision_in_a_loop(z, ids, 0.1),
        IDS,
    ),
    "smooth_ap with keys": (
        lambda z, ids: smooth_ap(z, ids, anneal=0.1, keys=KEYS, key_ids=KEY_IDS),
        lambda z, ids: average_precision_in_a_loop(z, ids, 0.1, KEYS, KEY_IDS.tolist()),
        IDS,
    ),
    "proxy_anchor": (
        lambda z, ids: proxy_anchor(z, ids, PROXIES, alpha=8.0, margin=0.1),
        lambda z, ids: proxy_anchor_in_a_loop(z, ids, PROXIES, 8.0, 0.1),
        LABELS,
    ),
    "subcenter_arcface": (
        lambda z, ids: subcenter_arcface(z, ids, CENTERS, scale=8.0, margin=0.5),
        lambda z, ids: arcface_in_a_loop(z, ids, CENTERS, 8.0, 0.5),
        LABELS,
    ),
    "subcenter_arcface beyond pi": (
        lambda z, ids: subcenter_arcface(z, ids, CENTERS, scale=8.0, margin=2.5),
        lambda z, ids: arcface_in_a_loop(z, ids, CENTERS, 8.0, 2.5),
        LABELS,
    ),
}


@both_block_sizes
@pytest.mark.parametrize(("loss", "expected", "ids"), FORMULAS.values(), ids=FORMULAS)
def test_loss_is_its_formula(loss, expected, ids, block_elements, monkeypatch):
    monkeypatch.setattr(unit_rows, "BLOCK_ELEMENTS", block_elements)
    z = rows(len(ids)) * torch.logspace(-2, 2, len(ids), dtype=torch.float64)[:, None]
    assert_close(value_and_gradient(loss, z, ids), value_and_gradient(expected, z, ids), rtol=1e-10, atol=1e-12)


def test_smooth_ap_without_annealing_is_average_precision() -> None:
    z = rows(12)
    ids = torch.arange(12) % 3
    similarity = (unit(z) @ unit(z).T).fill_diagonal_(-2)
    precisions = []
    for query in range(12):
        is_positive = (ids == ids[query])[similarity[query].argsort(descending=True)][:-1]
        ranks = is_positive.nonzero()[:, 0] + 1
        precisions.append((torch.arange(1, 4) / ranks).mean())
    assert_close(1 - smooth_ap(z, ids, anneal=1e-6), torch.stack(precisions).mean().double(), rtol=1e-6, atol=0)


# pytorch-metric-learning


def gradients(value, *tensors):
    return value.detach(), *torch.autograd.grad(value, tensors)


def test_proxy_anchor_is_that_of_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    published = losses.ProxyAnchorLoss(num_classes=4, embedding_size=5).double()
    ours = ProxyAnchor(num_classes=4, embedding_dim=5).double()
    ours.load_state_dict(published.state_dict())
    labels = torch.tensor([0, 2, 0, 2, 2, 1, 1, 1])
    z = rows(8).requires_grad_()
    expected = gradients(published(z, labels), z, published.proxies)
    assert_close(gradients(ours(z, labels), z, ours.proxies), expected, rtol=1e-9, atol=1e-12)


def test_subcenter_arcface_is_that_of_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    published = losses.SubCenterArcFaceLoss(
        num_classes=4, embedding_size=5, sub_centers=3, margin=math.degrees(0.5), scale=64
    ).double()
    ours = SubCenterArcFace(num_classes=4, embedding_dim=5, centers=3).double()
    ours.centers.data = published.W.detach().T.reshape(4, 3, 5).clone()
    labels = torch.tensor([0, 2, 0, 2, 2, 1, 1, 3])
    z = rows(8).requires_grad_()
    value, of_z, of_centers = gradients(published(z, labels), z, published.W)
    expected = value, of_z, of_centers.T.reshape(4, 3, 5)
    assert_close(gradients(ours(z, labels), z, ours.centers), expected, rtol=1e-7, atol=1e-9)


def test_smooth_ap_with_the_query_among_its_positives_is_that_of_pytorch_metric_learning() -> None:
    """So that the loop, which without the query is our reference, agrees with a published code."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    ids = torch.arange(3).repeat_interleave(3)
    z = rows(9).requires_grad_()
    expected = gradients(losses.SmoothAPLoss(temperature=0.1)(z, ids), z)
    counted = gradients(average_precision_in_a_loop(z, ids, 0.1, counts_query=True), z)
    # It adds up in float32.
    assert_close(counted, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


# Arguments


BAD_ARGUMENTS = [
    (lambda: siglip(rows(4), torch.arange(4), scale=1.0, bias=0.0, keys=KEYS), "keys and key_ids come together"),
    (lambda: smooth_ap(rows(4), torch.arange(4), anneal=0.0), "anneal must be"),
    (
        lambda: smooth_ap(rows(4), torch.arange(4), anneal=0.1, keys=rows(2, 3), key_ids=torch.arange(2)),
        "keys must be as wide as z, got 3 and 5",
    ),
    (lambda: proxy_anchor(rows(4), torch.arange(4), PROXIES[:, :3], alpha=1.0, margin=0.1), "z must be as wide as the"),
    (lambda: proxy_anchor(rows(4), torch.arange(4), PROXIES, alpha=1.0, margin=-0.1), "margin must be"),
    (lambda: subcenter_arcface(rows(4), torch.arange(4), CENTERS, scale=1.0, margin=4.0), "margin is an angle"),
    (
        lambda: subcenter_arcface(rows(4)[0], torch.arange(4), CENTERS, scale=1.0, margin=0.5),
        r"a loss takes z \(N, D\)",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
