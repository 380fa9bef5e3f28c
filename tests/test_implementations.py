"""Row sums by matrix, tiles and Triton kernels are one function, which compilers take whole and which stores no N x N."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from batches import rows, value_and_gradient
from reptk.core import rng
from reptk.core.errors import EnvironmentProblem
from reptk.losses import TCL, RowStatistics, SimCLR, SupCon, Term, implementation, local_rows, simclr, supcon, tcl
from reptk.losses.core import operator, tiled
from reptk.plugins.dcl import DCL

N = 61  # a prime: no tile or block fits

LAYOUTS = {
    "one class": torch.zeros(N, dtype=torch.long),
    "all distinct": torch.arange(N),
    "pairs": torch.arange(N) // 2,
    "five classes": torch.arange(N) % 5,
    "unbalanced": (torch.arange(N).double().sqrt().long() * 7) % 11,
}
every_layout = pytest.mark.parametrize("ids", LAYOUTS.values(), ids=LAYOUTS)

LOSSES = {
    "supcon out": partial(supcon, temperature=0.1),
    "supcon in": partial(supcon, temperature=0.1, form="in"),
    "supcon cold": partial(supcon, temperature=0.001),
    "tcl": partial(tcl, temperature=0.1, k1=5000.0, k2=1.0),
    "tcl k2=3": partial(tcl, temperature=0.1, k1=5.0, k2=3.0),
    "tcl cold": partial(tcl, temperature=0.01, k1=5.0, k2=0.5),
    "simclr": partial(simclr, temperature=0.5),
    "dcl": DCL(temperature=0.1),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(params=[(16, 2**18), (16, 40), (512, 2**18)], ids=["several tiles", "small blocks", "one tile"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(tiled, "TILE", request.param[0])
    monkeypatch.setattr(tiled, "BLOCK_PAIRS", request.param[1])


def computed(how, loss, z, ids):
    with implementation(how):
        return value_and_gradient(loss, z, ids)


@every_loss
@every_layout
def test_tiles_give_what_the_matrix_gives(loss, ids, tiles):
    z = rows(N, 9) * rows(N, 1, key="length").exp()
    expected = computed("dense", loss, z, ids)
    assert_close(computed("tiled", loss, z, ids), expected, rtol=1e-9, atol=1e-11)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiles_take_half_precision(loss, dtype, tiles):
    z, ids = rows(N, 9).to(dtype), LAYOUTS["five classes"]
    mine, expected = computed("tiled", loss, z, ids), computed("dense", loss, z.double(), ids)
    assert mine[0].dtype == torch.float32
    assert mine[1].dtype == dtype
    assert_close(mine[0].double(), expected[0], rtol=2e-5, atol=0)
    precision = torch.finfo(dtype).eps * expected[1].abs().max().item()
    assert_close(mine[1].double(), expected[1], rtol=0, atol=max(precision, 1e-4 * expected[1].abs().max().item()))


def everything(z, ids, keys, key_ids, t):
    """All kinds of sums with all kinds of weights, as one number."""
    made = RowStatistics(z, ids, keys, key_ids).measure(
        Term("others", 1 / t), Term("negatives", 1 / t), Term("positives", -1.0), [Term("positives", 1 / t, 1.0)]
    )
    weights = torch.linspace(1, 2, len(z), dtype=z.dtype)
    return sum((torch.where(part.isinf(), 0.0, part) * weights).sum() for part in made)


@every_layout
@pytest.mark.parametrize("temperature", [0.1, 0.001])
@pytest.mark.parametrize("count", [0, 23])
def test_keys_and_learned_temperatures_are_the_same_in_tiles(ids, temperature, count, tiles):
    z, t = rows(N, 9).requires_grad_(), torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    keys, key_ids = rows(count, 9, key="keys"), torch.arange(count) % 7
    made = {}
    for how in ("dense", "tiled"):
        with implementation(how):
            value = everything(z, ids, keys, key_ids, t)
            made[how] = [value.detach(), *torch.autograd.grad(value, (z, t))]
    assert_close(made["tiled"], made["dense"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("how", ["dense", "tiled"])
@pytest.mark.parametrize("ids", [LAYOUTS["five classes"][:13], LAYOUTS["pairs"][:13]], ids=["classes", "pairs"])
def test_gradients_are_those_of_finite_differences(how, ids, tiles):
    z, keys = rows(13, 4).requires_grad_(), rows(5, 4, key="keys")
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    with implementation(how):
        assert gradcheck(lambda z, t: everything(z, ids, keys, torch.arange(5), t), (z, t))


@pytest.mark.parametrize("bad", ["fast", ""])
def test_unknown_implementation_is_named(bad):
    with pytest.raises(ValueError, match="must be one of auto, dense, tiled, triton"), implementation(bad):
        pass


def test_size_decides():
    z, ids = torch.randn(1100, 4, generator=rng.generator("size")), torch.arange(1100) // 2
    for how in ("auto", "tiled"):
        with implementation(how), forbid_tensors_above(1000 * 1000):
            value_and_gradient(partial(simclr, temperature=0.1), z, ids)
    few = 900  # small enough for a matrix
    with pytest.raises(AssertionError, match="elements"), forbid_tensors_above(few * few - 1):
        value_and_gradient(partial(simclr, temperature=0.1), z[:few], ids[:few])


# Nothing of size N x N


class forbid_tensors_above(TorchDispatchMode):  # noqa: N801 - used like a function
    """Inside the block, an operation that makes a larger tensor is an error."""

    def __init__(self, elements):
        super().__init__()
        self.elements = elements

    def __torch_dispatch__(self, function, types, given=(), chosen=None):
        made = function(*given, **(chosen or {}))
        for part in tree_leaves(made):
            # What a view shows is not new memory: what counts is the storage.
            if isinstance(part, torch.Tensor):
                size = part.untyped_storage().nbytes() // part.element_size()
                assert size <= self.elements, f"{function} made {size} elements, more than {self.elements}"
        return made


@every_loss
@pytest.mark.parametrize("classes", [1, 10, 350], ids=lambda count: f"{count} classes")
def test_no_matrix_is_stored(loss, classes, monkeypatch):
    count, dimension = 700, 8
    monkeypatch.setattr(tiled, "TILE", 64)
    monkeypatch.setattr(tiled, "BLOCK_PAIRS", 64 * count)
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


# Compilers, and derivatives of derivatives


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck's own making
@pytest.mark.parametrize("how", ["dense", "tiled", "auto"])
@pytest.mark.parametrize("overs", [[2], [0, 1]], ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("count", [0, 3])
def test_operator_keeps_the_rules(how, overs, learned, count):
    z, keys = rows(11, 4).requires_grad_(), rows(count, 4, key="keys")
    groups = operator.Groups(torch.arange(11 + count) % 4, 11)
    slopes = torch.full((len(overs),), 3.0, dtype=torch.float64, requires_grad=learned)
    given = (z, keys, groups.number, groups.positives, slopes, overs, 0, 11, True, learned, how)
    found = opcheck(torch.ops.reptk.row_statistics.default, given)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("how", ["dense", "tiled"])
@pytest.mark.parametrize(
    "loss", [SupCon(), SupCon(form="in"), TCL(), TCL(k2=2.0), SimCLR(learn_temperature=True), DCL()], ids=repr
)
def test_a_compiler_takes_a_loss_as_one_graph(loss, how):
    z, ids = rows(N, 9, dtype=torch.float32), LAYOUTS["five classes"]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(computed(how, compiled, z, ids), computed(how, loss, z, ids), rtol=1e-6, atol=1e-7)


def test_compiled_once_for_every_number_of_tiles():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(partial(supcon, temperature=0.1), fullgraph=True, backend=count)
    with implementation("tiled"):
        compiled(rows(2000, 4, dtype=torch.float32), torch.arange(2000) % 5)
    assert len(graphs) == 1
    assert len(list(graphs[0].graph.nodes)) < 100


@pytest.mark.parametrize("how", ["dense", "tiled"])
def test_second_derivative_by_the_temperature_is_refused(how):
    z, t = rows(N, 9), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    with implementation(how):
        (gradient,) = torch.autograd.grad(supcon(z, LAYOUTS["pairs"], temperature=t), t, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.backward()


@pytest.mark.parametrize("how", ["dense", "tiled"])
def test_a_learned_slope_may_be_0(how, tiles):
    z = rows(N, 9)
    slope = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)

    def summed(slope):
        with implementation(how):
            return RowStatistics(z, LAYOUTS["five classes"]).log_sum(Term("others", slope)).sum()

    assert gradcheck(summed, slope)


@pytest.mark.parametrize(("first", "count"), [(0, N + 1), (-1, 3), (N - 2, 3)])
def test_own_rows_outside_the_batch_are_refused(first, count):
    with (
        local_rows(first, count),
        pytest.raises(ValueError, match=rf"own_rows\({first}, {count}\) are not among the 61"),
    ):
        supcon(rows(N, 9), LAYOUTS["pairs"], temperature=0.1)


def test_own_rows_that_do_not_add_up_are_refused():
    with local_rows(0, 4), pytest.raises(ValueError, match="1 ranks of 4 rows are not the 61 rows of z"):
        supcon(rows(N, 9), LAYOUTS["pairs"], temperature=0.1)


@pytest.mark.parametrize("how", ["dense", "tiled"])
def test_second_derivative_is_refused(how):
    z, ids = rows(N, 9).requires_grad_(), LAYOUTS["pairs"]
    with implementation(how):
        (gradient,) = torch.autograd.grad(supcon(z, ids, temperature=0.1), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


# A rank's own rows, on one process


@every_loss
def test_own_rows_get_their_share_of_the_gradient(loss, monkeypatch):
    z, ids = rows(N, 9), LAYOUTS["unbalanced"]
    value, gradient = value_and_gradient(loss, z, ids)
    # What other ranks would send: here this process computes it from the same rows.
    first, count = 20, 17
    with monkeypatch.context() as patch:
        patch.setattr(operator, "_gather", lambda own, _: _all_sums[own.shape])
        _all_sums = _recorded_sums(loss, z, ids, count, patch)
        with local_rows(first, count):
            mine = value_and_gradient(loss, z, ids)
    expected = torch.zeros_like(gradient)
    assert_close(mine[0], value, rtol=1e-12, atol=1e-12)
    inside = slice(first, first + count)
    expected[inside] = gradient[inside]
    assert_close(mine[1], expected, rtol=1e-9, atol=1e-12)


def _recorded_sums(loss, z, ids, count, patch):
    """{shape of one rank's sums: all sums}, of the one pass that a loss makes."""
    made = {}
    real = operator._forward

    def record(*given):
        result = real(*given)
        made[(result[0].shape[0], count)] = result[0]
        return result

    with patch.context() as inner:
        inner.setattr(operator, "_forward", record)
        loss(z, ids)
    return made


# Triton


@pytest.mark.parametrize("ids", [LAYOUTS["pairs"], LAYOUTS["unbalanced"]], ids=["pairs", "unbalanced"])
@every_loss
def test_triton_kernels_give_what_the_matrix_gives(loss, ids, interpreted):
    z = rows(N, 9, dtype=torch.float32)
    expected = computed("dense", loss, z.double(), ids)
    value, gradient = computed("triton", loss, z, ids)
    assert_close(value.double(), expected[0], rtol=1e-5, atol=0)
    # At a temperature of 0.001, float32's error in a similarity is a thousand times as large in the logit.
    precision = 1e-4 if loss is LOSSES["supcon cold"] else 2e-5
    assert_close(gradient.double(), expected[1], rtol=0, atol=precision * expected[1].abs().max().item())


@pytest.mark.parametrize(("count", "dimension"), [(1, 3), (203, 24), (64, 64), (40, 512)])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("deterministic", [False, True])
def test_triton_kernels_take_any_size(count, dimension, temperature, deterministic, interpreted):
    if deterministic and count != 203:
        pytest.skip("one size is enough for the other way to sum")
    z = rows(count, dimension, dtype=torch.float32)
    keys, ids = rows(45, dimension, key="keys", dtype=torch.float32), torch.arange(count) % 7
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    made = {}
    torch.use_deterministic_algorithms(deterministic)
    try:
        for how in ("dense", "triton"):
            leaf = z.clone().requires_grad_()
            with implementation(how):
                value = everything(leaf, ids, keys, torch.arange(45) % 9, t)
                made[how] = [value.detach(), *torch.autograd.grad(value, (leaf, t))]
    finally:
        torch.use_deterministic_algorithms(False)
    for mine, expected in zip(made["triton"], made["dense"], strict=True):
        assert_close(mine, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["supcon out", "tcl k2=3"])
def test_triton_kernels_take_several_blocks_by_halves(name, interpreted):
    interpreted.setattr("reptk.losses.core.triton_kernels.MOST_SHARES", 2)
    z, ids = rows(300, 24, dtype=torch.float32), torch.arange(300) % 7
    expected = computed("dense", LOSSES[name], z.double(), ids)
    value, gradient = computed("triton", LOSSES[name], z, ids)
    assert_close(value.double(), expected[0], rtol=1e-5, atol=0)
    assert_close(gradient.double(), expected[1], rtol=0, atol=2e-5 * expected[1].abs().max().item())


def test_triton_kernels_take_half_precision(interpreted):
    # bfloat16 is beyond the interpreter.
    z, ids = rows(N, 16, dtype=torch.float32), LAYOUTS["unbalanced"]
    loss = partial(supcon, temperature=0.1)
    expected = computed("dense", loss, z, ids)
    value, gradient = computed("triton", loss, z.half(), ids)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.float16
    assert_close(value, expected[0], rtol=2e-3, atol=0)
    assert_close(gradient.float(), expected[1], rtol=0, atol=5e-3 * expected[1].abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "dimension"), [("bfloat16", 128), ("float32", 512)])
def test_triton_kernels_compile_for_cuda(dtype, dimension):
    """For an H100, on whatever machine: they use its tensor cores and fit its shared memory."""
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_for_cuda.py")), dtype, str(dimension)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    made = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(made) == 8
    assert all(kernel["tensor_cores"] for kernel in made)
    assert max(kernel["shared"] for kernel in made) <= 227 * 1024


def test_triton_says_what_it_cannot_take(interpreted):
    ids = LAYOUTS["pairs"]
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


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels that run in Python: `conftest.py` sets the variable that Triton looks at."""
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    return monkeypatch


# On a GPU


@pytest.mark.gpu
@every_loss
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("dimension", [24, 128, 512])
def test_triton_kernels_on_a_gpu_give_what_the_matrix_gives(loss, dtype, tolerance, dimension):
    if dtype == torch.bfloat16 and loss in (LOSSES["supcon cold"], LOSSES["tcl cold"]):
        pytest.skip("three digits of a similarity are nothing at a temperature of 0.01 or below")
    z, ids = rows(1501, dimension).to(dtype), torch.arange(1501) % 37
    expected = computed("dense", loss, z.double(), ids)
    value, gradient = computed("triton", loss, z.cuda(), ids.cuda())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(value.cpu().double(), expected[0], rtol=tolerance, atol=0)
    assert_close(gradient.cpu().double(), expected[1], rtol=0, atol=tolerance * expected[1].abs().max().item())


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
