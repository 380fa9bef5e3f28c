"""Every part keeps its promises, and every promise is broken by some part made for it."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import reptk.plugins.dcl  # noqa: F401 - registers a loss
from reptk import testing
from reptk.config.registry import EVALUATORS, LOSSES, VIEWS
from reptk.core import rng
from reptk.evaluate import EvalResult
from reptk.losses import RowStatistics, SupCon, Term, mean_over_anchors, normalize, supcon
from reptk.testing import check_evaluator, check_loss, check_views
from reptk.views import resize_center_crop

SIZE = 16


def own(registry):
    return [name for name in registry.names() if registry.source(name).startswith("reptk.")]


def broken(promises, check, *arguments, **options):
    """Which promises a check finds broken."""
    with pytest.raises(AssertionError) as caught:
        check(*arguments, **options)
    head, *lines = str(caught.value).splitlines()
    found = {promise.says for promise in promises for line in lines if line.startswith(f"{promise.says}, but ")}
    assert len(found) == len(lines)
    assert f"breaks {len(lines)} of {len(promises)} promises" in head
    return found


def assert_breaks(expected, promises, check, *arguments, **options):
    """The promises that start with these words are broken, and no others unless there is an ellipsis among them."""
    starts = [start for start in expected if start is not ...]
    wanted = {promise.says for promise in promises if promise.says.startswith(tuple(starts))}
    found = broken(promises, check, *arguments, **options)
    assert len(wanted) == len(starts)
    assert found >= wanted if ... in expected else found == wanted


def assert_all_broken(promises, *tables):
    """Every promise has a part that breaks it."""
    starts = {start for table in tables for *_, expected in table.values() for start in expected if start is not ...}
    assert [promise.says for promise in promises if not promise.says.startswith(tuple(starts))] == []


# Losses


@pytest.mark.parametrize("name", own(LOSSES))
def test_every_loss_keeps_its_promises(name):
    check_loss(LOSSES.get(name))


def test_the_losses_are_those_of_reptk_and_its_plugin():
    assert own(LOSSES) == ["dcl", "simclr", "supcon", "tcl"]


FORMS = {
    "class": SupCon,
    "module": SupCon(0.2),
    "partial class": partial(SupCon, form="in"),
    "function that makes one": lambda: SupCon(),
    "partial function": partial(supcon, temperature=0.1),
    "function": lambda z, ids: supcon(z, ids, temperature=1),
}


@pytest.mark.parametrize("loss", FORMS.values(), ids=FORMS)
def test_a_loss_may_be_given_in_any_form(loss):
    check_loss(loss)


@pytest.mark.parametrize(("rows", "dimension"), [(4, 2), (5, 16), (40, 3)])
def test_a_loss_may_be_tried_on_other_batches(rows, dimension):
    check_loss(SupCon, rows=rows, dimension=dimension)


@pytest.mark.parametrize("arguments", [{"rows": 3}, {"dimension": 1}])
def test_batches_too_small_to_tell_are_refused(arguments):
    with pytest.raises(ValueError, match="at least"):
        check_loss(SupCon, **arguments)


def good(z, ids):
    return supcon(z, ids, temperature=0.5)


def wide(z):
    return z.to(torch.promote_types(z.dtype, torch.float32))


def as_it_comes(rows, ids):
    """NT-Xent at temperature 1 that neither normalises nor minds the precision."""
    similarity = rows @ rows.T
    myself = torch.eye(len(ids), dtype=torch.bool)
    positive = (ids[:, None] == ids[None, :]) & ~myself
    log_p = similarity - similarity.masked_fill(myself, -torch.inf).logsumexp(1, keepdim=True)
    per_anchor = -torch.where(positive, log_p, 0).sum(1) / positive.sum(1).clamp_min(1)
    return per_anchor.sum() / positive.any(1).sum().clamp_min(1)


def not_normalised(z, ids):
    with torch.autocast("cpu", enabled=False):
        return as_it_comes(wide(z), ids)


def doubled_gradient(z, ids):
    value = good(z, ids)
    return 2 * value - value.detach()


def radial_gradient_of_one_hot_rows(z, ids):
    z = wide(z) / z.detach().float().abs().amax(1, keepdim=True).clamp_min(1e-6)
    return not_normalised(z / z.norm(dim=1, keepdim=True).clamp_min(1.0), ids)


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
        return wide(as_it_comes(functional.normalize(z, dim=1), ids))


def autocast_inside(z, ids):
    return wide(as_it_comes(normalize(z), ids))


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


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z, ids):
        self.calls += 1
        return good(z, ids) * (1 + 1e-13 * self.calls)


def no_guard_for_zero(z, ids):
    return not_normalised(wide(z) / wide(z).norm(dim=1, keepdim=True), ids)


def constant_without_positives(z, ids):
    return good(z, ids) if RowStatistics(z, ids).positives().any() else torch.tensor(0.0)


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
    "pulls lone rows": (lambda z, ids: good(z, ids) + normalize(z).sum(), ["a batch without"]),
    "half result": (lambda z, ids: good(z, ids).to(z.dtype), ["half precision"]),
    "half inside": (half_inside, ["half precision"]),
    "autocast result": (autocast_result, ["autocast"]),
    "autocast inside": (autocast_inside, ["autocast"]),
    "last row left out": (lambda z, ids: good(z[:-1], ids[:-1]), ["the order of the rows"]),
    "ids as floats": (lambda z, ids: good(z, ids.float().long()), ["only which ids"]),
    "ids as numbers": (lambda z, ids: good(z, ids) * ids.abs().max(), ["only which ids"]),
    "ids as columns": (lambda z, ids: good(z, functional.one_hot(ids.long()).argmax(1)), ["only which ids"]),
    "negative ids ignored": (ignores_negative_ids, ["only which ids"]),
    "not normalised": (not_normalised, ["the length of a row"]),
    "writes to z": (writes_to_z, ["the input is left"]),
    "writes to ids": (writes_to_ids, ["the input is left"]),
    "random": (lambda z, ids: good(functional.dropout(z, 0.1), ids), ["the same input gives", ...]),
    "remembers": (Remembers(), ["the same input gives"]),
}


@pytest.mark.parametrize(("loss", "expected"), BROKEN_LOSSES.values(), ids=BROKEN_LOSSES)
def test_a_broken_loss_is_found_out(loss, expected):
    assert_breaks(expected, testing.LOSS_PROMISES, check_loss, loss)


def test_every_promise_of_a_loss_is_tried():
    assert_all_broken(testing.LOSS_PROMISES, BROKEN_LOSSES)


# Views

VIEWS_ARGUMENTS = {
    "kornia": {
        "operations": [{"name": "RandomResizedCrop", "size": [SIZE, SIZE]}, {"name": "RandomErasing", "p": 0.5}]
    },
    "multi_crop": {"small_size": SIZE // 2},
    "per_view": {"lists": ["simclr_small", "crop_flip", "none"]},
}


@pytest.mark.parametrize("name", own(VIEWS))
def test_every_views_set_keeps_its_promises(name):
    views = VIEWS.get(name)(size=SIZE, **VIEWS_ARGUMENTS.get(name, {}))
    check_views(views, size=SIZE, random=name != "none")


class Brighten:
    """Two views of every image, each brighter by an amount of its own. Subclasses break something."""

    def __init__(self):
        self.rank, self.world = 0, 1

    def shard(self, rank, world):
        self.rank, self.world = rank, world
        return self

    def draw(self, count, key):
        return torch.rand(2, count * self.world, 1, 1, 1, generator=rng.generator(key))

    def __call__(self, images, key):
        part = slice(self.rank * len(images), (self.rank + 1) * len(images))
        return (resize_center_crop(images, SIZE) + self.draw(len(images), key)[:, part]).clamp(0, 1)


class GlobalStream(Brighten):
    def draw(self, count, key):
        return torch.rand(2, count * self.world, 1, 1, 1)


class SeedsGlobalStream(Brighten):
    def draw(self, count, key):
        torch.manual_seed(key)
        return torch.rand(2, count * self.world, 1, 1, 1)


class DrawsForItsOwnPart(Brighten):
    def __call__(self, images, key):
        return (resize_center_crop(images, SIZE) + self.draw(len(images), key)[:, : len(images)]).clamp(0, 1)


class ShardGivesAnother(Brighten):
    def shard(self, rank, world):
        other = type(self)()
        other.rank, other.world = rank, world
        return other


class InAutocast(Brighten):
    def __call__(self, images, key):
        turn = torch.linalg.qr(torch.rand(SIZE, SIZE, generator=rng.generator("turn")))[0]
        return (super().__call__(images, key) @ turn @ turn.T).clamp(0, 1)


class Writes(Brighten):
    def __call__(self, images, key):
        made = super().__call__(images, key)
        images.fill_(7)
        return made


class SmallKeys(Brighten):
    def draw(self, count, key):
        return super().draw(count, int(torch.tensor(key, dtype=torch.int32)))


class OneDraw(Brighten):
    def draw(self, count, key):
        return super().draw(count, key)[:1].expand(2, -1, -1, -1, -1)


def of(change):
    """`Brighten` with its result changed, and without `shard`."""
    return lambda images, key: change(Brighten()(images, key))


BROKEN_VIEWS = {
    "one view, no axis": (of(lambda views: views[0]), ["(B, 3, H, W)", ...]),
    "a list": (of(list), ["(B, 3, H, W)", ...]),
    "another size": (of(lambda views: views[..., 1:]), ["(B, 3, H, W)"]),
    "bytes": (of(lambda views: (views * 255).to(torch.uint8)), ["(B, 3, H, W)"]),
    "0..255": (of(lambda views: views * 255), ["(B, 3, H, W)"]),
    "NaN": (of(lambda views: views * torch.nan), ["(B, 3, H, W)", ...]),
    "global stream": (GlobalStream(), ["the same images and key", "torch's random state", ...]),
    "seeds the global stream": (SeedsGlobalStream(), ["torch's random state"]),
    "in autocast": (InAutocast(), ["autocast"]),
    "writes": (Writes(), ["the images are left", ...]),
    "draws for its own part": (DrawsForItsOwnPart(), ["two ranks"]),
    "shard gives another": (ShardGivesAnother(), ["two ranks"]),
    "key ignored": (lambda images, key: Brighten()(images, 0), ["another key"]),
    "short keys": (SmallKeys(), ["another key"]),
    "one draw": (OneDraw(), ["the views of an image"]),
}
BROKEN_FIXED_VIEWS = {"random": (Brighten(), ["the key does not matter"])}


def test_brighten_keeps_its_promises():
    check_views(Brighten(), size=SIZE)
    check_views(lambda images, key: Brighten()(images, 0), size=SIZE, random=False)


@pytest.mark.parametrize(("views", "expected"), BROKEN_VIEWS.values(), ids=BROKEN_VIEWS)
def test_broken_views_are_found_out(views, expected):
    assert_breaks(expected, testing.VIEWS_PROMISES + testing.RANDOM_VIEWS_PROMISES, check_views, views, size=SIZE)


@pytest.mark.parametrize(("views", "expected"), BROKEN_FIXED_VIEWS.values(), ids=BROKEN_FIXED_VIEWS)
def test_views_that_are_not_fixed_are_found_out(views, expected):
    promises = testing.VIEWS_PROMISES + testing.FIXED_VIEWS_PROMISES
    assert_breaks(expected, promises, check_views, views, size=SIZE, random=False)


def test_every_promise_of_views_is_tried():
    promises = testing.VIEWS_PROMISES + testing.RANDOM_VIEWS_PROMISES + testing.FIXED_VIEWS_PROMISES
    assert_all_broken(promises, BROKEN_VIEWS, BROKEN_FIXED_VIEWS)


def test_views_are_left_on_one_process():
    views = Brighten()
    check_views(views, size=SIZE)
    assert (views.rank, views.world_size) == (0, 1)


# Evaluators


@pytest.mark.parametrize("name", own(EVALUATORS))
def test_every_evaluator_keeps_its_promises(name):
    check_evaluator(EVALUATORS.get(name)())


def spread(features, data):
    """How far apart the features of the training images are."""
    return EvalResult({"spread": features.features(data.train).var(0).sum().item()})


def unseeded(features, data):
    some = features.features(data.train)[torch.randperm(len(data.train))[:10]]
    return EvalResult({"spread": some.var(0).sum().item()})


def seeds_global_stream(features, data):
    torch.manual_seed(0)
    return unseeded(features, data)


def finds_the_query_itself(features, data):
    nearest = (features.features(data.query) @ features.features(data.bank).T).argmax(1)
    farthest = (nearest - torch.arange(len(nearest))).abs().max()
    return EvalResult({"distance": (1 / farthest).item()})


class NeedsNoLabels:
    needs_labels = False

    def __call__(self, features, data):
        return spread(features, data)


class NeedsABank(NeedsNoLabels):
    def __call__(self, features, data):
        return EvalResult({"spread": features.features(data.bank).var(0).sum().item()})


class QuietDuringTraining(NeedsNoLabels):
    def during_training(self, features, data):
        return EvalResult({})


def returns(value):
    return lambda features, data: value


BROKEN_EVALUATORS = {
    "nothing": (returns(EvalResult({})), ["evaluator(features, data)", ...]),
    "None": (returns(None), ["evaluator(features, data)", ...]),
    "a dictionary": (returns({"x": 0.5}), ["evaluator(features, data)", ...]),
    "pairs": (returns([("x", 0.5)]), ["evaluator(features, data)", ...]),
    "a tensor": (returns(EvalResult({"x": torch.tensor(1.0)})), ["evaluator(features, data)", ...]),
    "NaN": (returns(EvalResult({"x": float("nan")})), ["evaluator(features, data)", ...]),
    "a name that is none": (returns(EvalResult({5: 0.5})), ["evaluator(features, data)", ...]),
    "unseeded": (unseeded, ["the same features and data", "torch's random state"]),
    "seeds the global stream": (seeds_global_stream, ["torch's random state"]),
    "finds the query itself": (finds_the_query_itself, ["the same split as bank"]),
    "needs a bank": (NeedsABank(), ["with needs_labels"]),
    "quiet during training": (QuietDuringTraining(), ["during_training"]),
}


@pytest.mark.parametrize("evaluator", [spread, NeedsNoLabels()], ids=["function", "object"])
def test_spread_keeps_its_promises(evaluator):
    check_evaluator(evaluator)


@pytest.mark.parametrize(("evaluator", "expected"), BROKEN_EVALUATORS.values(), ids=BROKEN_EVALUATORS)
def test_a_broken_evaluator_is_found_out(evaluator, expected):
    assert_breaks(expected, testing.EVALUATOR_PROMISES, check_evaluator, evaluator)


def test_every_promise_of_an_evaluator_is_tried():
    assert_all_broken(testing.EVALUATOR_PROMISES, BROKEN_EVALUATORS)


# All


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (check_loss, {"factory_or_module": lambda z, ids: good(functional.dropout(z), ids)}),
        (check_views, {"views": SeedsGlobalStream(), "size": SIZE}),
        (check_evaluator, {"evaluator": unseeded}),
    ],
    ids=["loss", "views", "evaluator"],
)
def test_a_check_leaves_the_random_state_as_it_was(check, arguments):
    before = torch.get_rng_state()
    with pytest.raises(AssertionError):
        check(**arguments)
    assert torch.equal(torch.get_rng_state(), before)


def test_checks_need_no_test_runner():
    assert "pytest" not in inspect.getsource(testing)
