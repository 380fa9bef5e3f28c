"""Triton kernels give what one matrix gives: interpreted, compiled for a GPU that need not be there, and on a GPU."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from implementation_cases import CASES, ID_LAYOUTS, N, every_case, sum_of_all_statistics, value_and_gradient_by
from loss_batches import rows
from reptk.core.errors import EnvironmentProblem
from reptk.losses import TCL, SimCLR, SupCon, implementation, supcon


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels that run in Python: the tests' `conftest.py` sets the variable that Triton reads."""
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    return monkeypatch


@pytest.mark.parametrize("ids", [ID_LAYOUTS["pairs"], ID_LAYOUTS["unbalanced"]], ids=["pairs", "unbalanced"])
@every_case
def test_triton_equals_dense(loss, ids, interpreted):
    z = rows(N, 9, dtype=torch.float32)
    expected_value, expected_gradient = value_and_gradient_by("dense", loss, z.double(), ids)
    value, gradient = value_and_gradient_by("triton", loss, z, ids)
    assert_close(value.double(), expected_value, rtol=1e-5, atol=0)
    # At a temperature of 0.001, float32's error in a similarity is a thousand times as large in the logit.
    precision = 1e-4 if loss is CASES["supcon cold"] else 2e-5
    largest = expected_gradient.abs().max().item()
    assert_close(gradient.double(), expected_gradient, rtol=0, atol=precision * largest)


@pytest.mark.parametrize(("count", "dimension"), [(1, 3), (203, 24), (64, 64), (40, 512)])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("deterministic", [False, True])
def test_triton_accepts_any_size(count, dimension, temperature, deterministic, interpreted):
    if deterministic and count != 203:
        pytest.skip("one size is enough for the other way to sum")
    z = rows(count, dimension, dtype=torch.float32)
    keys, ids = rows(45, dimension, key="keys", dtype=torch.float32), torch.arange(count) % 7
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    results = {}
    torch.use_deterministic_algorithms(deterministic)
    try:
        for name in ("dense", "triton"):
            leaf = z.clone().requires_grad_()
            with implementation(name):
                value = sum_of_all_statistics(leaf, ids, keys, torch.arange(45) % 9, t)
                results[name] = [value.detach(), *torch.autograd.grad(value, (leaf, t))]
    finally:
        torch.use_deterministic_algorithms(False)
    for result, expected in zip(results["triton"], results["dense"], strict=True):
        assert_close(result, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("loss_name", ["supcon out", "tcl k2=3"])
def test_triton_sums_several_blocks_by_halves(loss_name, interpreted):
    interpreted.setattr("reptk.losses.core.triton_backend.MAX_SHARES", 2)
    z, ids = rows(300, 24, dtype=torch.float32), torch.arange(300) % 7
    expected_value, expected_gradient = value_and_gradient_by("dense", CASES[loss_name], z.double(), ids)
    value, gradient = value_and_gradient_by("triton", CASES[loss_name], z, ids)
    assert_close(value.double(), expected_value, rtol=1e-5, atol=0)
    largest = expected_gradient.abs().max().item()
    assert_close(gradient.double(), expected_gradient, rtol=0, atol=2e-5 * largest)


def test_triton_accepts_half_precision(interpreted):
    # The interpreter does not support bfloat16.
    z, ids = rows(N, 16, dtype=torch.float32), ID_LAYOUTS["unbalanced"]
    loss = partial(supcon, temperature=0.1)
    expected_value, expected_gradient = value_and_gradient_by("dense", loss, z, ids)
    value, gradient = value_and_gradient_by("triton", loss, z.half(), ids)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.float16
    assert_close(value, expected_value, rtol=2e-3, atol=0)
    largest = expected_gradient.abs().max().item()
    assert_close(gradient.float(), expected_gradient, rtol=0, atol=5e-3 * largest)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "dimension"), [("bfloat16", 128), ("float32", 512)])
def test_triton_kernels_compile_for_cuda(dtype, dimension):
    """For an H100, on whatever machine: they use its tensor cores and fit its shared memory."""
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_for_cuda.py")), dtype, str(dimension)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kernels) == 8
    assert all(kernel["tensor_cores"] for kernel in kernels)
    assert max(kernel["shared"] for kernel in kernels) <= 227 * 1024


def test_triton_names_what_it_does_not_support(interpreted):
    ids = ID_LAYOUTS["pairs"]
    with implementation("triton"):
        with pytest.raises(
            EnvironmentProblem, match=r"up to 512 dimensions in float32 or less, not 9 in torch.float64"
        ):
            supcon(rows(N, 9), ids, temperature=0.1)
        with pytest.raises(EnvironmentProblem, match=r"up to 512 dimensions"):
            supcon(rows(N, 513, dtype=torch.float32), ids, temperature=0.1)
        interpreted.delenv("TRITON_INTERPRET")
        with pytest.raises(EnvironmentProblem, match="need CUDA, and the embeddings are on cpu"):
            supcon(rows(N, 9, dtype=torch.float32), ids, temperature=0.1)


# On a GPU


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("dimension", [24, 128, 512])
def test_triton_on_a_gpu_equals_dense(loss, dtype, tolerance, dimension):
    if dtype == torch.bfloat16 and loss in (CASES["supcon cold"], CASES["tcl cold"]):
        pytest.skip("three digits of a similarity are nothing at a temperature of 0.01 or below")
    z, ids = rows(1501, dimension).to(dtype), torch.arange(1501) % 37
    expected_value, expected_gradient = value_and_gradient_by("dense", loss, z.double(), ids)
    value, gradient = value_and_gradient_by("triton", loss, z.cuda(), ids.cuda())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(value.cpu().double(), expected_value, rtol=tolerance, atol=0)
    largest = expected_gradient.abs().max().item()
    assert_close(gradient.cpu().double(), expected_gradient, rtol=0, atol=tolerance * largest)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [300, 3000], ids=["one matrix", "triton"])
@pytest.mark.parametrize(
    "module", [SupCon(), TCL(k2=2.0), SimCLR(learn_temperature=True)], ids=["supcon", "tcl", "learned"]
)
def test_a_loss_does_not_wait_for_the_gpu(nothing_waits, module, count):
    module = module.cuda()
    z, ids = rows(count, 64, dtype=torch.float32).cuda().requires_grad_(), torch.arange(count).cuda() % 10
    module(z, ids).backward()  # compiles the kernels
    with nothing_waits():
        module(z, ids).backward()
