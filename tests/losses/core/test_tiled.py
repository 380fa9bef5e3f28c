"""Tiles give what one matrix gives, and store no N x N."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from implementation_cases import (
    CASES,
    ID_LAYOUTS,
    N,
    every_case,
    every_id_layout,
    sum_of_all_statistics,
    value_and_gradient_by,
)
from loss_batches import dense_and_tiled, rows, value_and_gradient
from reptk.core import rng
from reptk.losses import RowStatistics, Term, implementation, simclr, supcon
from reptk.losses.core import positive_blocks, tiled


@every_case
@every_id_layout
def test_tiled_equals_dense(loss, ids, tiles):
    z = rows(N, 9) * rows(N, 1, key="length").exp()
    expected = value_and_gradient_by("dense", loss, z, ids)
    assert_close(value_and_gradient_by("tiled", loss, z, ids), expected, rtol=1e-9, atol=1e-11)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiled_accepts_half_precision(loss, dtype, tiles):
    z, ids = rows(N, 9).to(dtype), ID_LAYOUTS["five classes"]
    value, gradient = value_and_gradient_by("tiled", loss, z, ids)
    expected_value, expected_gradient = value_and_gradient_by("dense", loss, z.double(), ids)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(value.double(), expected_value, rtol=2e-5, atol=0)
    largest = expected_gradient.abs().max().item()
    precision = max(torch.finfo(dtype).eps, 1e-4)
    assert_close(gradient.double(), expected_gradient, rtol=0, atol=precision * largest)


@every_id_layout
@pytest.mark.parametrize("temperature", [0.1, 0.001])
@pytest.mark.parametrize("count", [0, 23])
def test_tiled_equals_dense_with_keys_and_learned_temperature(ids, temperature, count, tiles):
    z, t = rows(N, 9).requires_grad_(), torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    keys, key_ids = rows(count, 9, key="keys"), torch.arange(count) % 7
    results = {}
    for name in ("dense", "tiled"):
        with implementation(name):
            value = sum_of_all_statistics(z, ids, keys, key_ids, t)
            results[name] = [value.detach(), *torch.autograd.grad(value, (z, t))]
    assert_close(results["tiled"], results["dense"], rtol=1e-8, atol=1e-8)


@dense_and_tiled
@pytest.mark.parametrize("ids", [ID_LAYOUTS["five classes"][:13], ID_LAYOUTS["pairs"][:13]], ids=["classes", "pairs"])
def test_gradients_are_those_of_finite_differences(name, ids, tiles):
    z, keys = rows(13, 4).requires_grad_(), rows(5, 4, key="keys")
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    with implementation(name):
        assert gradcheck(lambda z, t: sum_of_all_statistics(z, ids, keys, torch.arange(5), t), (z, t))


@dense_and_tiled
def test_a_learned_logit_scale_may_be_0(name, tiles):
    z = rows(N, 9)
    logit_scale = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)

    def sum_of_log_sums(logit_scale):
        with implementation(name):
            return RowStatistics(z, ID_LAYOUTS["five classes"]).log_sum(Term("others", logit_scale)).sum()

    assert gradcheck(sum_of_log_sums, logit_scale)


# Nothing of size N x N


class forbid_tensors_above(TorchDispatchMode):  # noqa: N801 - used like a function
    """Inside the block, an operation that makes a larger tensor is an error."""

    def __init__(self, elements):
        super().__init__()
        self.elements = elements

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            # What a view shows is not new memory: what counts is the storage.
            if isinstance(leaf, torch.Tensor):
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                assert size <= self.elements, f"{function} made {size} elements, more than {self.elements}"
        return output


@every_case
@pytest.mark.parametrize("classes", [1, 10, 350], ids=lambda count: f"{count} classes")
def test_no_matrix_is_stored(loss, classes, monkeypatch):
    count, dimension = 700, 8
    monkeypatch.setattr(tiled, "TILE", 64)
    monkeypatch.setattr(positive_blocks, "BLOCK_PAIRS", 64 * count)
    z, ids = rows(count, dimension, dtype=torch.float32), torch.arange(count) % classes
    with implementation("tiled"), forbid_tensors_above(2 * count * (64 + dimension)):
        value, gradient = value_and_gradient(loss, z, ids)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_the_guard_notices_a_matrix():
    z, ids = rows(700, 8, dtype=torch.float32), torch.arange(700) % 10
    with implementation("dense"), forbid_tensors_above(2 * 700 * 72), pytest.raises(AssertionError, match="elements"):
        supcon(z, ids, temperature=0.1)
    with forbid_tensors_above(700 * 700 - 1), pytest.raises(AssertionError, match=r"mm.* made 490000 elements"):
        z @ z.T


# Which implementation computes


@pytest.mark.parametrize("bad", ["fast", ""])
def test_unknown_implementation_is_named(bad):
    with pytest.raises(ValueError, match="must be one of auto, dense, tiled, triton"), implementation(bad):
        pass


def test_size_decides():
    z, ids = torch.randn(1100, 4, generator=rng.generator("size")), torch.arange(1100) // 2
    for name in ("auto", "tiled"):
        with implementation(name), forbid_tensors_above(1000 * 1000):
            value_and_gradient(partial(simclr, temperature=0.1), z, ids)
    few = 900  # small enough for a matrix
    with pytest.raises(AssertionError, match="elements"), forbid_tensors_above(few * few - 1):
        value_and_gradient(partial(simclr, temperature=0.1), z[:few], ids[:few])


def test_every_implementation_is_left_with_its_block():
    before = value_and_gradient(CASES["supcon out"], rows(N, 9), ID_LAYOUTS["pairs"])
    with pytest.raises(RuntimeError, match="inside"), implementation("tiled"):
        raise RuntimeError("inside")
    after = value_and_gradient(CASES["supcon out"], rows(N, 9), ID_LAYOUTS["pairs"])
    assert_close(after, before, rtol=0, atol=0)
