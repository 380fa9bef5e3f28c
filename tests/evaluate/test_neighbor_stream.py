"""What kNN and retrieval share: excluded rows, engines, blocks of queries, labels, and what is refused."""

import importlib
import mmap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reptk.evaluate import few_shot, knn, linear, retrieval, search
from reptk.evaluate.metrics.knn import KNNAccuracy
from reptk.evaluate.metrics.retrieval import RankingMetrics
from reptk.evaluate.neighbor_stream import QueryTable, accumulate, labeled_task
from reptk.evaluate.predictions import PredictionCollector
from retrieval_problems import NUM_CLASSES, PROBLEMS, Metrics, separate_queries, unit_rows, with_nan

engine_module = importlib.import_module("reptk.neighbors.engine")
exact_search = importlib.import_module("reptk.neighbors.exact")

# Excluded rows


def test_a_query_never_finds_itself(either_engine: str) -> None:
    bank = unit_rows(50)
    exclude = torch.arange(50)
    for k in (1, 7, 49):
        rows = torch.cat([rows for _, rows in search(bank, bank, k, exclude)])
        assert rows.shape == (50, k)
        assert not (rows == exclude[:, None]).any()


def test_duplicates_of_a_query_are_found(either_engine: str) -> None:
    bank = unit_rows(20).repeat(2, 1)
    exclude = torch.arange(40)
    ((similarities, rows),) = search(bank, bank, 1, exclude)
    assert (rows[:, 0] == (exclude + 20) % 40).all()
    assert torch.allclose(similarities, torch.ones(40, 1))


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_a_query_among_many_equal_rows_finds_k_others(k: int, either_engine: str) -> None:
    bank = torch.cat([unit_rows(1).repeat(6, 1), unit_rows(3, seed=1)])
    exclude = torch.arange(6)
    ((similarities, rows),) = search(bank, bank[:6], k, exclude)
    assert not (rows == exclude[:, None]).any()
    assert all(len(set(neighbors)) == k and max(neighbors) < 6 for neighbors in rows.tolist())
    assert torch.allclose(similarities, torch.ones(6, k))


def test_excluding_nothing_changes_nothing(either_engine: str) -> None:
    tensors = separate_queries().tensors
    nothing = torch.full((len(tensors[2]),), -1)
    assert knn(*tensors, k=[1, 5, 53], exclude=nothing) == knn(*tensors, k=[1, 5, 53])
    assert retrieval(*tensors, exclude=nothing) == retrieval(*tensors)


# Engines, devices, blocks


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_engines_give_the_same_metrics(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    problem = PROBLEMS[name]()
    metrics = {}
    for engine in ("faiss", "torch"):
        monkeypatch.setattr(engine_module, "engine_name", lambda engine=engine: engine)
        votes = knn(*problem.tensors, k=[1, 5, 20], exclude=problem.exclude)
        metrics[engine] = votes | retrieval(*problem.tensors, exclude=problem.exclude)
    assert metrics["faiss"] == pytest.approx(metrics["torch"])


@pytest.mark.gpu
@pytest.mark.parametrize("function", [partial(knn, k=[1, 5, 20]), retrieval])
def test_rows_on_a_gpu_give_the_same_metrics(function: Callable[..., Metrics]) -> None:
    tensors = separate_queries().tensors
    tensors[1][3], tensors[3][5] = -1, -1
    on_gpu = function(*(tensor.cuda() for tensor in tensors), exclude=torch.arange(40).cuda())
    assert on_gpu == function(*tensors, exclude=torch.arange(40))


def test_blocks_of_queries_do_not_change_the_metrics(monkeypatch: pytest.MonkeyPatch, either_engine: str) -> None:
    bank, labels, _, _, _ = separate_queries()
    queries = unit_rows(2500, seed=9)
    numbers = torch.arange(2500)
    exclude = torch.where(numbers % 5 == 0, numbers % len(bank), -1)
    query_labels = torch.where(exclude >= 0, labels[exclude], numbers % NUM_CLASSES)
    metrics = []
    for block in (1024, 2500, 999):
        monkeypatch.setattr(exact_search, "BLOCK", block)
        sizes = [len(rows) for _, rows in search(bank, queries, 3, exclude)]
        assert sizes[:-1] == [block] * (len(sizes) - 1)
        assert sum(sizes) == 2500
        tensors = (bank, labels, queries, query_labels)
        metrics.append(knn(*tensors, k=[1, 9], exclude=exclude) | retrieval(*tensors, exclude=exclude))
    assert metrics[0] == pytest.approx(metrics[1])
    assert metrics[0] == pytest.approx(metrics[2])


@pytest.mark.parametrize("function", [partial(knn, k=[1]), retrieval])
def test_progress_counts_the_queries(function: Callable[..., Metrics], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "BLOCK", 15)
    reports = []
    function(*separate_queries().tensors, progress=reports.append)
    assert reports == [15, 30, 40]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_metrics_do_not_keep_the_blocks_of_a_deep_search() -> None:
    task = labeled_task(*separate_queries().tensors)
    count = len(task.queries)
    depth = 1 << 20
    similarities = torch.zeros(1, depth)
    rows = torch.zeros(1, depth, dtype=torch.long)
    resident_mb = []

    def deep_search(*_: object) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            resident_mb.append(_resident_mb())
            yield similarities.clone(), rows

    metrics = [
        PredictionCollector(task, 20, 0.07, 10),
        KNNAccuracy(task.bank_labels, count, [1, 20], [0.07]),
        RankingMetrics(task.bank_labels, task.relevant_counts(), [1, 5]),
    ]
    accumulate(task, metrics, deep_search)
    # A block has 4 MB, and there are 40 of them.
    assert resident_mb[-1] - resident_mb[5] < 40


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE / 1e6


def test_table_of_queries_joins_blocks() -> None:
    table = QueryTable(5)
    values, rows = torch.rand(5), torch.arange(10).view(5, 2)
    for first, last in ((0, 0), (0, 2), (2, 5)):
        table.append({"value": values[first:last], "rows": rows[first:last]})
    assert torch.equal(table.columns["value"], values)
    assert torch.equal(table.columns["rows"], rows)


# Labels


@pytest.mark.parametrize("function", [partial(knn, k=[1, 5, 20]), retrieval])
def test_unlabeled_rows_neither_vote_nor_are_queries(function: Callable[..., Metrics]) -> None:
    bank, labels, queries, query_labels, _ = separate_queries()
    is_hidden, is_silent = torch.arange(len(labels)) % 3 == 0, torch.arange(len(query_labels)) % 4 == 0
    some_labels, some_query_labels = torch.where(is_hidden, -1, labels), torch.where(is_silent, -1, query_labels)
    assert function(bank, some_labels, queries, some_query_labels) == function(
        bank[~is_hidden], labels[~is_hidden], queries[~is_silent], query_labels[~is_silent]
    )
    # A query that is itself an unlabeled row of the bank loses nothing by being left out.
    exclude = torch.arange(len(queries))
    chosen = is_hidden[exclude]
    with_exclude = function(bank, some_labels, queries[chosen], query_labels[chosen], exclude=exclude[chosen])
    assert with_exclude == function(bank, some_labels, queries[chosen], query_labels[chosen])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_labels_may_be_any_integers(dtype: torch.dtype) -> None:
    bank, labels, queries, query_labels, _ = separate_queries()
    expected = knn(bank, labels, queries, query_labels, k=[5])
    assert knn(bank, labels.to(dtype), queries, query_labels.to(dtype), k=[5]) == expected


# What is refused


def test_what_does_not_fit_is_refused_with_its_numbers() -> None:
    bank, labels, queries, query_labels, _ = separate_queries()
    no_labels = torch.full_like(labels, -1)
    exclude = torch.arange(len(bank))
    refused = [
        ((bank, labels, queries, query_labels), {"k": [1, 54]}, r"k must be 1 to 53 \(rows in the bank\), got 54"),
        ((bank, labels, bank, labels), {"k": [53], "exclude": exclude}, r"1 to 52 .*besides the query\), got 53"),
        ((bank, labels, queries, query_labels), {"k": [0, 5]}, r"k must be at least 1, got \[0, 5\]"),
        ((bank, labels, queries, query_labels), {"k": []}, r"k must be at least 1, got \[\]"),
        ((with_nan(bank, 3, 7), labels, queries, query_labels), {"k": [1]}, r"2 of 53 rows of bank .* first \[3, 7\]"),
        (
            (bank, labels, queries / 0, query_labels),
            {"k": [1]},
            r"40 of 40 rows of queries .* first \[0, 1, 2, 3, 4\]",
        ),
        ((bank, labels, queries[:, :9], query_labels), {"k": [1]}, r"bank rows have 12 values, query rows 9"),
        ((bank, labels[:50], queries, query_labels), {"k": [1]}, r"53 bank rows but labels of shape \(50,\)"),
        (
            (bank, labels, queries, query_labels[:, None]),
            {"k": [1]},
            r"40 query rows but labels of shape \(40, 1\)",
        ),
        ((bank, no_labels, queries, query_labels), {"k": [1]}, "no bank row has a label"),
        ((bank, labels, queries, no_labels[:40]), {"k": [1]}, "no query row has a label"),
        (
            (bank.long(), labels, queries, query_labels),
            {"k": [1]},
            r"must be \(n, F\) floating point, got torch.int64 \(53, 12\)",
        ),
    ]
    for tensors, options, message in refused:
        for function in (knn, retrieval):
            with pytest.raises(ValueError, match=message):
                function(*tensors, **options)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        knn(bank, labels, queries, query_labels, k=[1], temperature=0)
    with pytest.raises(ValueError, match="no query has another image of its class"):
        retrieval(bank, labels, queries, query_labels + 50)


def test_bad_rows_are_numbered_as_in_the_input() -> None:
    bank, labels, queries, query_labels, _ = separate_queries()
    labels[:2] = -1
    with pytest.raises(ValueError, match=r"1 of 53 rows of bank .* first \[7\]"):
        knn(with_nan(bank, 7), labels, queries, query_labels, k=[1])


@pytest.mark.parametrize("exclude", [torch.arange(3), torch.arange(40) + 30])
def test_an_exclude_that_does_not_fit_is_refused(exclude: Tensor) -> None:
    with pytest.raises(ValueError, match="exclude"):
        knn(*separate_queries().tensors, k=[1], exclude=exclude)


# NumPy


@pytest.mark.parametrize("function", [partial(knn, k=[1, 5]), retrieval, few_shot, linear])
def test_arrays_are_as_good_as_tensors(function: Callable[..., Metrics]) -> None:
    tensors = separate_queries().tensors
    assert function(*[tensor.numpy() for tensor in tensors]) == function(*tensors)
