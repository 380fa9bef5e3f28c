"""The operator under torch.compile, its second derivative, and the rows that one of several ranks computes."""

from functools import partial

import pytest
import torch
from torch.library import opcheck
from torch.testing import assert_close

from implementation_cases import ID_LAYOUTS, N, every_case, value_and_gradient_by
from loss_batches import dense_and_tiled, rows, value_and_gradient
from reptk.core import distributed
from reptk.losses import TCL, RowStatistics, SimCLR, SupCon, Term, implementation, local_rows, supcon
from reptk.losses.core.key_blocks import CANDIDATES
from reptk.losses.core.positives import Groups
from reptk.plugins.dcl import DCL

# Compilers


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised by opcheck itself
@pytest.mark.parametrize("name", ["dense", "tiled", "auto"])
@pytest.mark.parametrize("candidates", [["others"], ["positives", "negatives"]], ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("num_keys", [0, 3])
def test_operator_keeps_the_rules(name, candidates, learned, num_keys):
    z, keys = rows(11, 4).requires_grad_(), rows(num_keys, 4, key="keys")
    groups = Groups(torch.arange(11 + num_keys) % 4, 11)
    places = [CANDIDATES.index(each) for each in candidates]
    logit_scales = torch.full((len(places),), 3.0, dtype=torch.float64, requires_grad=learned)
    inputs = (z, keys, groups.group, groups.num_positives, logit_scales, places, 0, 11, True, learned, name)
    checks = opcheck(torch.ops.reptk.row_statistics.default, inputs)
    assert set(checks.values()) == {"SUCCESS"}


@dense_and_tiled
@pytest.mark.parametrize(
    "loss", [SupCon(), SupCon(form="in"), TCL(), TCL(k2=2.0), SimCLR(learn_temperature=True), DCL()], ids=repr
)
def test_a_compiler_accepts_a_loss_as_one_graph(loss, name):
    z, ids = rows(N, 9, dtype=torch.float32), ID_LAYOUTS["five classes"]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = value_and_gradient_by(name, loss, z, ids)
    assert_close(value_and_gradient_by(name, compiled, z, ids), expected, rtol=1e-6, atol=1e-7)


def test_compiled_once_for_every_number_of_tiles():
    graphs = []

    def collect(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(partial(supcon, temperature=0.1), fullgraph=True, backend=collect)
    with implementation("tiled"):
        compiled(rows(2000, 4, dtype=torch.float32), torch.arange(2000) % 5)
    assert len(graphs) == 1
    assert len(list(graphs[0].graph.nodes)) < 100


# Derivatives of derivatives


@dense_and_tiled
def test_second_derivative_by_the_temperature_is_refused(name):
    z, t = rows(N, 9), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    with implementation(name):
        (gradient,) = torch.autograd.grad(supcon(z, ID_LAYOUTS["pairs"], temperature=t), t, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.backward()


@dense_and_tiled
def test_second_derivative_is_refused(name):
    z, ids = rows(N, 9).requires_grad_(), ID_LAYOUTS["pairs"]
    with implementation(name):
        (gradient,) = torch.autograd.grad(supcon(z, ids, temperature=0.1), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


# Rows of one rank


RANKS, ROWS_OF_A_RANK = 4, 15


@pytest.fixture
def on_every_rank(monkeypatch):
    """A function that computes a loss for the rows of each of several ranks in turn, in this process."""

    def compute(loss, z, ids):
        sent_by_rank = [[] for _ in range(RANKS)]

        def record(values, **_):
            sent_by_rank[rank].append(values.detach().clone())
            return values.repeat(RANKS, 1)

        def answer(values, **_):
            return torch.cat([sent.pop(0) for sent in answers])

        results = []
        for rank in range(RANKS):
            monkeypatch.setattr(distributed, "all_gather", record)
            with local_rows(rank * ROWS_OF_A_RANK, ROWS_OF_A_RANK):
                loss(z, ids)
        for rank in range(RANKS):
            answers = [list(sent) for sent in sent_by_rank]
            monkeypatch.setattr(distributed, "all_gather", answer)
            with local_rows(rank * ROWS_OF_A_RANK, ROWS_OF_A_RANK):
                results.append(value_and_gradient(loss, z, ids))
        return results

    return compute


@every_case
@pytest.mark.parametrize("name", ["auto", "dense", "tiled"])
def test_every_rank_gets_the_gradient_of_its_rows(loss, name, on_every_rank):
    z, ids = rows(RANKS * ROWS_OF_A_RANK, 9), ID_LAYOUTS["unbalanced"][: RANKS * ROWS_OF_A_RANK]
    with implementation(name):
        value, gradient = value_and_gradient(loss, z, ids)
        results = on_every_rank(loss, z, ids)
    for rank, (rank_value, rank_gradient) in enumerate(results):
        rows_of_rank = slice(rank * ROWS_OF_A_RANK, (rank + 1) * ROWS_OF_A_RANK)
        expected = torch.zeros_like(gradient)
        expected[rows_of_rank] = gradient[rows_of_rank]
        assert_close(rank_value, value, rtol=1e-12, atol=1e-12)
        assert_close(rank_gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("first", "count"), [(0, N + 1), (-1, 3), (N - 2, 3)])
def test_local_rows_outside_the_batch_are_refused(first, count):
    with (
        local_rows(first, count),
        pytest.raises(ValueError, match=rf"local_rows\({first}, {count}\) are not among the 61"),
    ):
        supcon(rows(N, 9), ID_LAYOUTS["pairs"], temperature=0.1)


def test_local_rows_that_do_not_add_up_are_refused():
    with local_rows(0, 4), pytest.raises(ValueError, match="1 ranks of 4 rows are not the 61 rows of z"):
        supcon(rows(N, 9), ID_LAYOUTS["pairs"], temperature=0.1)


@dense_and_tiled
def test_local_rows_end_with_their_block(name):
    z, ids = rows(N, 9), ID_LAYOUTS["pairs"]
    with implementation(name):
        before = RowStatistics(z, ids).log_sum(Term("others", 2.0))
        with local_rows(0, N):
            inside = RowStatistics(z, ids).log_sum(Term("others", 2.0))
        after = RowStatistics(z, ids).log_sum(Term("others", 2.0))
    assert torch.equal(before, inside)
    assert torch.equal(before, after)
