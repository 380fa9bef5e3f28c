"""check_loss: shipped losses pass, and every requirement is violated by a loss written for it."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

import reptk
import reptk.plugins.dcl
from reptk.config.registry import LOSSES
from reptk.losses import RowStatistics, SupCon, Term, implementation, mean_over_anchors, normalize, supcon
from reptk.testing import LOSS_REQUIREMENTS, check_loss
from reptk.testing.loss_checks import CLASS_LOSS_REQUIREMENTS
from violations import assert_each_is_violated, assert_rng_untouched, assert_violates, shipped


@pytest.mark.parametrize("name", shipped(LOSSES))
def test_every_shipped_loss_meets_the_requirements(name):
    check_loss(LOSSES.get(name))


def test_the_losses_are_those_of_reptk_and_its_plugin():
    assert shipped(LOSSES) == [
        "dcl",
        "proxy_anchor",
        "siglip",
        "simclr",
        "smooth_ap",
        "subcenter_arcface",
        "supcon",
        "tcl",
    ]


FORMS = {
    "class": SupCon,
    "module": SupCon(0.2),
    "partial class": partial(SupCon, form="in"),
    "function that builds one": lambda: SupCon(),
    "partial function": partial(supcon, temperature=0.1),
    "function": lambda z, ids: supcon(z, ids, temperature=1),
}


@pytest.mark.parametrize("loss", FORMS.values(), ids=FORMS)
def test_a_loss_may_be_passed_in_any_form(loss):
    check_loss(loss)


@pytest.mark.parametrize(("rows", "dimension"), [(4, 2), (5, 16), (40, 3)])
def test_other_batch_sizes(rows, dimension):
    check_loss(SupCon, rows=rows, dimension=dimension)


@pytest.mark.parametrize("arguments", [{"rows": 3}, {"dimension": 1}])
def test_batches_that_are_too_small_are_refused(arguments):
    with pytest.raises(ValueError, match="at least"):
        check_loss(SupCon, **arguments)


def good(z, ids):
    return supcon(z, ids, temperature=0.5)


def widened(z):
    return z.to(torch.promote_types(z.dtype, torch.float32))


def plain_ntxent(rows, ids):
    """NT-Xent at temperature 1 that neither normalizes nor widens the precision."""
    similarity = rows @ rows.T
    diagonal = torch.eye(len(ids), dtype=torch.bool)
    positive = (ids[:, None] == ids[None, :]) & ~diagonal
    log_p = similarity - similarity.masked_fill(diagonal, -torch.inf).logsumexp(1, keepdim=True)
    per_anchor = -torch.where(positive, log_p, 0).sum(1) / positive.sum(1).clamp_min(1)
    return per_anchor.sum() / positive.any(1).sum().clamp_min(1)


def not_normalized(z, ids):
    with torch.autocast("cpu", enabled=False):
        return plain_ntxent(widened(z), ids)


def doubled_gradient(z, ids):
    value = good(z, ids)
    return 2 * value - value.detach()


def radial_gradient_of_one_hot_rows(z, ids):
    z = widened(z) / z.detach().float().abs().amax(1, keepdim=True).clamp_min(1e-6)
    return not_normalized(z / z.norm(dim=1, keepdim=True).clamp_min(1.0), ids)


def needs_equal_groups(z, ids):
    return good(torch.cat(list(torch.stack([z[ids == value] for value in ids.unique()]))), ids.sort().values)


def infinite_for_pairs(z, ids):
    count = RowStatistics(z, ids).positives()
    return good(z, ids) + 0 * mean_over_anchors(1 / (count - 1), count)


def no_negatives_no_number(z, ids):
    rows = RowStatistics(z, ids)
    return mean_over_anchors(rows.log_sum(Term("negatives", 2.0)) - rows.mean_over_positives(), rows.positives())


def mean_of_nothing(z, ids):
    rows = RowStatistics(z, ids)
    per_anchor = rows.log_sum(Term("others", 2.0)) - 2 * rows.mean_over_positives()
    return per_anchor[rows.positives() > 0].mean()


def half_inside(z, ids):
    with torch.autocast("cpu", enabled=False):
        return widened(plain_ntxent(functional.normalize(z, dim=1), ids))


def autocast_inside(z, ids):
    return widened(plain_ntxent(normalize(z), ids))


def autocast_result(z, ids):
    value = good(z, ids)[None]
    return value @ torch.ones_like(value)


def ignores_negative_ids(z, ids):
    return good(z[ids >= 0], ids[ids >= 0]) if (ids >= 0).any() else z.sum() * 0


def writes_to_z(z, ids):
    with torch.no_grad():
        z /= z.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return good(z, ids)


def writes_to_ids(z, ids):
    return good(z, ids.sub_(ids.min()))


class ChangesWithEveryCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z, ids):
        self.calls += 1
        return good(z, ids) * (1 + 1e-13 * self.calls)


def no_guard_for_zero(z, ids):
    return not_normalized(widened(z) / widened(z).norm(dim=1, keepdim=True), ids)


def constant_without_positives(z, ids):
    return good(z, ids) if RowStatistics(z, ids).positives().any() else torch.tensor(0.0)


def seeds_torch(z, ids):
    torch.manual_seed(0)
    return good(functional.dropout(z, 0.1), ids)


def draws_from_numpy(z, ids):
    np.random.rand()
    return good(z, ids)


def draws_from_python(z, ids):
    random.random()
    return good(z, ids)


def times_ranks(z, ids):
    return good(z, ids) * reptk.distributed.world_size()


def gradient_times_ranks(z, ids):
    value = good(z, ids)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return world_size * value - (world_size - 1) * value.detach()


def gathers_again(z, ids):
    if not dist.is_initialized():
        return good(z, ids)
    gathered = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, z.detach())
    gathered[dist.get_rank()] = z
    return good(torch.cat(gathered), ids.repeat(len(gathered)))


class OnHalfOfTheRows(nn.Module):
    computes_local_rows = True

    def forward(self, z, ids):
        half = len(z) // 2
        return good(z[:half], ids[:half]) + good(z[half:], ids[half:])


class FromItsRowsAlone(nn.Module):
    """The mean over the rows of this rank, as its value, in place of the mean over all rows."""

    computes_local_rows = True

    def forward(self, z, ids):
        rows = RowStatistics(z, ids)
        per_anchor = rows.log_sum(Term("others", 2.0)) - 2 * rows.mean_over_positives()
        if dist.is_initialized():
            count = len(z) // dist.get_world_size()
            local = slice(dist.get_rank() * count, (dist.get_rank() + 1) * count)
            return mean_over_anchors(per_anchor[local], rows.positives()[local])
        return mean_over_anchors(per_anchor, rows.positives())


BROKEN_LOSSES = {
    "a vector": (lambda z, ids: good(z, ids)[None], ["the value is a finite scalar"]),
    "a number": (lambda z, ids: good(z, ids).item(), ["the value is a finite scalar", ...]),
    "NaN": (lambda z, ids: good(z, ids) * torch.nan, ["the value is a finite scalar", ...]),
    "detached": (lambda z, ids: good(z, ids).detach(), ["the value is a finite scalar", ...]),
    "raises": (lambda z, ids: 1 / 0, ["the value is a finite scalar", ...]),
    "doubled gradient": (doubled_gradient, ["the gradient is that"]),
    "radial gradient": (radial_gradient_of_one_hot_rows, ["the gradient is that"]),
    "float32 at most": (lambda z, ids: good(z.float(), ids), ["the gradient is that"]),
    "needs equal groups": (needs_equal_groups, ["groups of uneven size", ...]),
    "infinite for pairs": (infinite_for_pairs, ["pairs give", ...]),
    "no negatives, no number": (no_negatives_no_number, ["a single group"]),
    "log of the spread": (lambda z, ids: good(z, ids) * normalize(z).var(0).sum().log(), ["identical rows"]),
    "no guard for zero": (no_guard_for_zero, ["a row of zeros"]),
    "mean of nothing": (mean_of_nothing, ["a batch without"]),
    "constant without positives": (constant_without_positives, ["a batch without"]),
    "pulls rows without positives": (lambda z, ids: good(z, ids) + normalize(z).sum(), ["a batch without"]),
    "half result": (lambda z, ids: good(z, ids).to(z.dtype), ["half precision"]),
    "half inside": (half_inside, ["half precision"]),
    "autocast result": (autocast_result, ["autocast"]),
    "autocast inside": (autocast_inside, ["autocast"]),
    "last row left out": (lambda z, ids: good(z[:-1], ids[:-1]), ["the order of the rows"]),
    "ids as floats": (lambda z, ids: good(z, ids.float().long()), ["only which ids"]),
    "ids as numbers": (lambda z, ids: good(z, ids) * ids.abs().max(), ["only which ids"]),
    "ids as columns": (lambda z, ids: good(z, functional.one_hot(ids.long()).argmax(1)), ["only which ids"]),
    "negative ids ignored": (ignores_negative_ids, ["only which ids"]),
    "not normalized": (not_normalized, ["the length of a row"]),
    "writes to z": (writes_to_z, ["the input is not written"]),
    "writes to ids": (writes_to_ids, ["the input is not written"]),
    "random": (lambda z, ids: good(functional.dropout(z, 0.1), ids), ["the same input gives", ...]),
    "changes with every call": (ChangesWithEveryCall(), ["the same input gives"]),
    "seeds torch": (seeds_torch, ["the random states", ...]),
    "draws from NumPy": (draws_from_numpy, ["the random states"]),
    "draws from Python": (draws_from_python, ["the random states"]),
    "times ranks": (times_ranks, ["on two ranks"]),
    "gradient times ranks": (gradient_times_ranks, ["on two ranks"]),
    "gathers again": (gathers_again, ["on two ranks"]),
    "statistics of half of the rows": (OnHalfOfTheRows, ["the order of the rows", "on two ranks"]),
    "mean over its rows": (FromItsRowsAlone, ["on two ranks"]),
}


@pytest.mark.parametrize(("loss", "expected"), BROKEN_LOSSES.values(), ids=BROKEN_LOSSES)
def test_a_broken_loss_is_detected(loss, expected):
    assert_violates(expected, LOSS_REQUIREMENTS, check_loss, loss)


def test_every_requirement_is_violated_by_a_broken_loss():
    assert_each_is_violated(LOSS_REQUIREMENTS, BROKEN_LOSSES)


class Prototypes(nn.Module):
    """Cross-entropy of similarities with a learned vector of each class, which is right if `is_counted` is."""

    def __init__(self, num_classes, embedding_dim):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(num_classes, embedding_dim))

    def forward(self, z, ids):
        with torch.autocast("cpu", enabled=False):
            logits = normalize(z) @ normalize(self.vectors).to(normalize(z).dtype).T
        is_counted = self.is_counted(ids)
        losses = functional.cross_entropy(logits, ids.long().clamp_min(0), reduction="none")
        return self.mean(losses, is_counted)

    def is_counted(self, ids):
        return ids >= 0

    def mean(self, losses, is_counted):
        return (losses * is_counted).sum() / is_counted.sum().clamp_min(1)


class UnlabeledOfFirstClass(Prototypes):
    def is_counted(self, ids):
        return torch.ones_like(ids, dtype=torch.bool)


class MeanOfNoLabels(Prototypes):
    def mean(self, losses, is_counted):
        return losses[is_counted].mean()


BROKEN_CLASS_LOSSES = {
    "unlabeled rows count": (UnlabeledOfFirstClass, ["rows without a label", "a batch without any label"]),
    "mean of no labels": (MeanOfNoLabels, ["a batch without any label"]),
}


def test_a_loss_with_vectors_of_classes_meets_the_requirements():
    check_loss(Prototypes)


@pytest.mark.parametrize(("loss", "expected"), BROKEN_CLASS_LOSSES.values(), ids=BROKEN_CLASS_LOSSES)
def test_a_broken_loss_of_classes_is_detected(loss, expected):
    assert_violates(expected, CLASS_LOSS_REQUIREMENTS, check_loss, loss)


def test_what_a_loss_must_not_do_is_said_in_the_words_of_its_author() -> None:
    with pytest.raises(
        AssertionError, match=r"on rank 0 it gave .* it must not gather rows itself, nor use the number"
    ):
        check_loss(times_ranks)
    with pytest.raises(AssertionError, match=r"it moves torch's: draw from a generator of its own, e\.g\. reptk\.rng"):
        check_loss(seeds_torch)
    states = random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises(AssertionError, match="it moves NumPy's and Python's"):
        check_loss(lambda z, ids: draws_from_numpy(z, ids) + draws_from_python(z, ids))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_a_gradient_that_is_a_multiple_is_named_as_such() -> None:
    with pytest.raises(AssertionError, match=r"but the gradient is 2 times that of one process$"):
        check_loss(gradient_times_ranks)


@pytest.mark.parametrize("name", ["dense", "tiled"])
def test_every_implementation_is_checked_on_ranks(name: str) -> None:
    with implementation(name):
        check_loss(SupCon(learn_temperature=True))


def test_a_failing_check_leaves_the_random_state() -> None:
    assert_rng_untouched(check_loss, lambda z, ids: good(functional.dropout(z), ids))
