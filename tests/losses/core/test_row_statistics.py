"""Row statistics: log-sums and means over positives by their definition, and rows of unit length."""

import math

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from loss_batches import dense_and_tiled, every_layout, rows
from reptk.losses import RowStatistics, Term, implementation, mean_over_anchors, normalize
from reptk.losses.core.row_statistics import _merge_complements

pytestmark = pytest.mark.usefixtures("small_tiles")


IS_CANDIDATE = {
    "positives": lambda ids, i, j: i != j and ids[i] == ids[j],
    "negatives": lambda ids, i, j: ids[i] != ids[j],
    "others": lambda ids, i, j: i != j,
}
SUMS = {
    "one": [Term("others", 3.0)],
    "weighted": [Term("negatives", 2.0, math.log(5.0))],
    "falling": [Term("positives", -1.0)],
    "overlapping": [Term("positives", 4.0), Term("positives", -1.0, 2.0), Term("others", 0.5, -1.0)],
    "far apart": [Term("positives", 1.0, 60.0), Term("negatives", 1.0, -60.0)],
}


def sum_of_terms(terms, unit, ids, i):
    total = 0.0
    for term in terms:
        for j in range(len(ids)):
            if IS_CANDIDATE[term.candidates](ids, i, j):
                total += math.exp(term.log_weight + term.logit_scale * float(unit[i] @ unit[j]))
    return total


@dense_and_tiled
@every_layout
@pytest.mark.parametrize("terms", SUMS.values(), ids=SUMS)
def test_log_sum_is_the_logarithm_of_the_sum(terms, ids, name):
    z = rows(len(ids))
    unit = functional.normalize(z, dim=1)
    sums = [sum_of_terms(terms, unit, ids.tolist(), i) for i in range(len(ids))]
    with implementation(name):
        log_sum = RowStatistics(z, ids).log_sum(*terms)
    assert_close(log_sum, torch.tensor(sums, dtype=z.dtype).log(), rtol=1e-10, atol=1e-12)


def test_measure_gives_everything_in_one_pass():
    z, ids = rows(8), torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    near, far = [Term("positives", 2.0), Term("positives", -1.0, 3.0)], Term("negatives", 5.0)
    expected = (
        RowStatistics(z, ids).mean_over_positives(),
        RowStatistics(z, ids).log_sum(*near),
        RowStatistics(z, ids).log_sum(far),
    )
    assert_close(RowStatistics(z, ids).measure(near, far), expected, rtol=1e-12, atol=1e-12)


def test_positives_and_negatives_of_equal_scale_and_weight_are_summed_as_others():
    halves = [Term("positives", 3.0, 1.0), Term("positives", -1.0), Term("negatives", 3.0, 1.0)]
    assert _merge_complements(halves) == [Term("others", 3.0, 1.0), Term("positives", -1.0)]
    scale = torch.tensor(2.0)
    assert _merge_complements([Term("negatives", scale), Term("positives", scale)]) == [Term("others", scale)]
    apart = [Term("negatives", 3.0, 1.0), Term("positives", 3.0)]
    assert _merge_complements(apart) == apart


def test_log_sum_of_nothing_is_minus_infinity_without_gradient():
    z, ids = rows(4).requires_grad_(), torch.tensor([0, 0, 1, 2])
    sums = RowStatistics(z, ids).log_sum(Term("positives", 1.0))
    assert sums.isneginf().tolist() == [False, False, True, True]
    torch.where(sums.isneginf(), 0.0, sums).sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad[:2].any(1).all()
    assert not z.grad[2:].any()


@every_layout
def test_positives_are_counted_and_averaged(ids):
    z = rows(len(ids))
    unit = functional.normalize(z, dim=1)
    counts, means = [], []
    for i in range(len(ids)):
        positives = [j for j in range(len(ids)) if IS_CANDIDATE["positives"](ids.tolist(), i, j)]
        counts.append(len(positives))
        means.append(sum(float(unit[i] @ unit[j]) for j in positives) / max(len(positives), 1))
    statistics = RowStatistics(z, ids)
    assert statistics.positives().tolist() == counts
    expected = torch.tensor(means, dtype=z.dtype)
    assert_close(statistics.mean_over_positives(), expected, rtol=1e-10, atol=1e-12)


def test_mean_over_anchors_leaves_out_rows_without_positives():
    values = torch.tensor([1.0, math.nan, 3.0, -math.inf], requires_grad=True)
    mean = mean_over_anchors(values, torch.tensor([2, 0, 1, 0]))
    mean.backward()
    assert mean == 2
    assert values.grad.tolist() == [0.5, 0, 0.5, 0]


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-10, 1.0, 1e10, 1e38])
def test_normalize_gives_unit_rows_of_any_scale_in_float32(scale):
    z = torch.tensor([[1.0, -2.0, 2.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    expected = z / torch.tensor([3.0, 1.0, math.sqrt(3)])[:, None]
    assert_close(normalize(z * scale), expected, rtol=1e-6, atol=0)


def test_normalize_leaves_zero_rows_at_zero_with_a_finite_gradient():
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    normalize(z)[:, 0].sum().backward()
    assert normalize(z).tolist()[0] == [0, 0]
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "dtype_of_unit_rows"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_normalize_is_float32_or_wider(dtype, dtype_of_unit_rows):
    assert normalize(rows(3).to(dtype)).dtype == dtype_of_unit_rows
