"""Evaluation against definitions written out here in NumPy, against scikit-learn, and against itself done another way."""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from reptk.evaluate import engine_name, knn, retrieval, search
from reptk.evaluate.voting import predict

# Its functions are replaced here, so the module itself is asked for.
search_module = importlib.import_module("reptk.neighbors.exact")
features_module = importlib.import_module("reptk.evaluate.features")
voting_module = importlib.import_module("reptk.evaluate.voting")

SIZES = [1, 2, 3, 5, 8, 13, 21]

Case = dict[str, Any]
Numbers = dict[str, float]


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


def rows(count: int, width: int = 12, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bank and queries of seven classes of very uneven size, loosely clustered."""
    classes = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    shuffled = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))]
    centres = rows(len(SIZES), seed=seed + 1)
    bank = torch.nn.functional.normalize(0.6 * centres[shuffled] + rows(len(shuffled), seed=seed + 2), dim=1)
    asked = torch.arange(40) % len(SIZES)
    queries = torch.nn.functional.normalize(0.6 * centres[asked] + rows(len(asked), seed=seed + 3), dim=1)
    return bank, shuffled, queries, asked


def ranked(bank: Tensor, bank_labels: Tensor, query: Tensor, own: int) -> tuple[list[int], np.ndarray]:
    """Labelled rows other than the query itself, best first, and their similarities."""
    similarities = bank.double().numpy() @ query.double().numpy()
    order = [row for row in np.argsort(-similarities, kind="stable") if row != own and bank_labels[row] >= 0]
    return order, similarities


def asked_of(query_labels: Tensor, exclude: Tensor | None) -> list[tuple[int, int]]:
    """Queries that have a label, each with the row of the bank that it is itself."""
    own = exclude.tolist() if exclude is not None else [-1] * len(query_labels)
    return [(number, own[number]) for number in range(len(query_labels)) if query_labels[number] >= 0]


def brute_knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int,
    temperature: float = 0.07,
    exclude: Tensor | None = None,
) -> Numbers:
    """Wu et al. 2018: class c scores the sum of exp(s / t) over its rows among the k nearest; majority: their number."""
    right = {"weighted": 0, "majority": 0}
    asked = asked_of(query_labels, exclude)
    for number, own in asked:
        order, similarities = ranked(bank, bank_labels, queries[number], own)
        weight, count = np.zeros(len(SIZES)), np.zeros(len(SIZES))
        for row in order[:k]:
            weight[bank_labels[row]] += np.exp(similarities[row] / temperature)
            count[bank_labels[row]] += 1
        by_count = max(range(len(SIZES)), key=lambda label: (count[label], weight[label], -label))
        right["weighted"] += int(weight.argmax() == query_labels[number])
        right["majority"] += int(by_count == query_labels[number])
    return {f"knn@{k}": right["weighted"] / len(asked), f"knn_majority@{k}": right["majority"] / len(asked)}


def brute_retrieval(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: list[int],
    exclude: Tensor | None = None,
) -> Numbers:
    """Musgrave et al. 2020 (arXiv 2003.08505): r / R, and (1 / R) sum_{i <= R} P(i) with P(i) = 0 at a miss."""
    hits = []
    for number, own in asked_of(query_labels, exclude):
        order, _ = ranked(bank, bank_labels, queries[number], own)
        hits.append([int(bank_labels[row] == query_labels[number]) for row in order])
    depth = max(*k, *(sum(hit) for hit in hits))
    per_query = []
    for hit in hits:
        r = sum(hit)
        if r == 0:
            continue
        average = sum(sum(hit[: i + 1]) / (i + 1) for i in range(r) if hit[i]) / r
        first = 1 / (hit.index(1) + 1) if 1 in hit[:depth] else 0.0
        per_query.append([*(float(any(hit[:value])) for value in k), first, average, sum(hit[:r]) / r])
    names = [*(f"recall@{value}" for value in k), "mrr", "map@r", "r_precision"]
    return dict(zip(names, np.mean(per_query, axis=0).tolist(), strict=True))


def leave_one_out() -> Case:
    bank, labels, _, _ = problem()
    return {"given": (bank, labels, bank, labels), "exclude": torch.arange(len(bank))}


def partly_labelled() -> Case:
    bank, labels, _, _ = problem()
    labels = torch.where(torch.arange(len(labels)) % 3 == 0, -1, labels)
    return {"given": (bank, labels, bank, labels), "exclude": torch.arange(len(bank))}


def partly_excluded() -> Case:
    """Queries that are in the bank together with some that are not."""
    bank, labels, queries, asked = problem()
    own = torch.cat([torch.arange(10), torch.full((len(queries),), -1)])
    return {"given": (bank, labels, torch.cat([bank[:10], queries]), torch.cat([labels[:10], asked])), "exclude": own}


CASES: dict[str, Callable[[], Case]] = {
    "apart": lambda: {"given": problem()},
    "leave one out": leave_one_out,
    "partly labelled": partly_labelled,
    "partly excluded": partly_excluded,
}


@pytest.fixture(params=["faiss", "torch"])
def either_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(search_module, "engine_name", lambda: request.param)
    return request.param


@pytest.fixture
def fresh_engine() -> Iterator[None]:
    """`engine` decides anew inside the test, and again after it."""
    engine_name.cache_clear()
    yield
    engine_name.cache_clear()


# kNN


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_knn_is_the_vote_written_out(case: str, temperature: float, either_engine: str) -> None:
    asked = CASES[case]()
    exclude = asked.get("exclude")
    found = knn(*asked["given"], k=[1, 2, 5, 30], temperature=temperature, exclude=exclude)
    expected = {}
    for k in (1, 2, 5, 30):
        expected |= brute_knn(*asked["given"], k, temperature, exclude)
    assert found == pytest.approx(expected)
    assert 0.2 < found["knn@5"] < 1  # neither chance nor a problem too easy to tell right from wrong


@pytest.mark.parametrize("grain", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("classes", [2, 9, 300])
def test_both_ways_to_count_votes_agree(classes: int, grain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With coarse weights many classes are equal, and with -1 (here `classes`) there are fewer neighbours than k."""
    draw = torch.Generator().manual_seed(classes)
    votes = torch.randint(0, classes + 1, (200, 50), generator=draw)
    given = torch.rand(200, 50, generator=draw, dtype=torch.float64)
    given = ((given / grain).ceil() * grain if grain else given) * (votes < classes)
    assert voting_module.load_kernels("reptk.evaluate.vote_kernels") is not None
    ks = [1, 2, 7, 50]
    compiled = predict(votes, given, ks, classes)
    monkeypatch.setattr(voting_module, "load_kernels", lambda package: None)
    by_torch = predict(votes, given, ks, classes)
    for k, by_kernel, by_table in zip(ks, compiled, by_torch, strict=True):
        some = (votes[:, :k] < classes).any(1)
        for one, other in zip(by_kernel, by_table, strict=True):
            assert torch.equal(one[some], other[some])


def test_brute_force_can_disagree() -> None:
    given = problem()
    assert knn(*given, k=[5])["knn_majority@5"] != brute_knn(*given, 30)["knn_majority@30"]
    assert knn(*given, k=[30])["knn@30"] != brute_knn(*given, 30, temperature=1.0)["knn@30"]
    assert retrieval(*given)["map@r"] != brute_retrieval(*given, [1])["r_precision"]


@pytest.mark.parametrize("k", [1, 4, 15, 53])
@pytest.mark.parametrize("case", ["apart", "leave one out"])
def test_weighted_knn_is_scikit_learns(case: str, k: int) -> None:
    asked = CASES[case]()
    bank, labels, queries, query_labels = asked["given"]
    if case == "leave one out" and k == len(bank):
        k -= 1
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07))
    peer.fit(bank.numpy(), labels.numpy())
    predicted = peer.predict(None if case == "leave one out" else queries.numpy())
    found = knn(*asked["given"], k=[k], exclude=asked.get("exclude"))
    assert found[f"knn@{k}"] == pytest.approx((predicted == query_labels.numpy()).mean())


@pytest.mark.parametrize("k", [1, 3, 7, 21])
def test_majority_knn_is_scikit_learns(k: int) -> None:
    bank, labels, queries, query_labels = problem()
    labels, query_labels = labels % 2, query_labels % 2  # an odd k and two classes: no ties, which it decides otherwise
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(bank.numpy(), labels.numpy())
    expected = (peer.predict(queries.numpy()) == query_labels.numpy()).mean()
    assert knn(bank, labels, queries, query_labels, k=[k])[f"knn_majority@{k}"] == pytest.approx(expected)


def test_all_k_at_once_is_each_alone() -> None:
    given = problem()
    alone = {}
    for k in (1, 3, 10, 53):
        alone |= knn(*given, k=[k])
    assert knn(*given, k=[10, 1, 53, 3, 3]) == alone
    assert list(knn(*given, k=[10, 1])) == ["knn@1", "knn@10", "knn_majority@1", "knn_majority@10"]


@pytest.mark.parametrize("winner", [0, 1])
def test_equal_votes_go_to_the_larger_weight(winner: int) -> None:
    similarities = torch.tensor([0.9, 0.6, 0.5, 0.1])
    bank = torch.stack([similarities, (1 - similarities**2).sqrt()], dim=1)
    labels = torch.tensor([winner, 1 - winner, 1 - winner, winner])
    found = knn(bank, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([winner]), k=[3, 4])
    assert found["knn_majority@3"] == 0  # one vote against two, whatever their weight
    assert found["knn_majority@4"] == 1


def test_equal_votes_of_equal_weight_are_decided_alike_each_time() -> None:
    bank = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    labels = torch.tensor([2, 1, 0, 2, 1, 0])
    found = [knn(bank, labels, bank[:1], torch.tensor([label]), k=[6])["knn_majority@6"] for label in (0, 1, 2)] * 2
    assert found == [1, 0, 0] * 2


# Search


def test_a_query_never_finds_itself(either_engine: str) -> None:
    bank = rows(50)
    own = torch.arange(50)
    for k in (1, 7, 49):
        found = torch.cat([found for _, found in search(bank, bank, k, own)])
        assert found.shape == (50, k)
        assert not (found == own[:, None]).any()


def test_duplicates_of_a_query_are_found(either_engine: str) -> None:
    bank = rows(20).repeat(2, 1)
    own = torch.arange(40)
    ((similarities, found),) = search(bank, bank, 1, own)
    assert (found[:, 0] == (own + 20) % 40).all()
    assert torch.allclose(similarities, torch.ones(40, 1))


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_a_query_among_many_equal_rows_finds_k_others(k: int, either_engine: str) -> None:
    bank = torch.cat([rows(1).repeat(6, 1), rows(3, seed=1)])
    own = torch.arange(6)
    ((similarities, found),) = search(bank, bank[:6], k, own)
    assert not (found == own[:, None]).any()
    assert all(len(set(line)) == k and max(line) < 6 for line in found.tolist())
    assert torch.allclose(similarities, torch.ones(6, k))


def test_excluding_nothing_changes_nothing(either_engine: str) -> None:
    given = problem()
    nothing = torch.full((len(given[2]),), -1)
    assert knn(*given, k=[1, 5, 53], exclude=nothing) == knn(*given, k=[1, 5, 53])
    assert retrieval(*given, exclude=nothing) == retrieval(*given)


@pytest.mark.parametrize("case", CASES)
def test_both_engines_give_the_same_numbers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    asked = CASES[case]()
    found = {}
    for name in ("faiss", "torch"):
        monkeypatch.setattr(search_module, "engine_name", lambda name=name: name)
        votes = knn(*asked["given"], k=[1, 5, 20], exclude=asked.get("exclude"))
        found[name] = votes | retrieval(*asked["given"], exclude=asked.get("exclude"))
    assert found["faiss"] == pytest.approx(found["torch"])


@pytest.mark.skipif(sys.platform == "darwin", reason="torch searches there, FAISS or not")
def test_without_faiss_one_warning_and_the_same_numbers(monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    given = problem()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [knn(*given, k=[1, 5]) | retrieval(*given, k=[1]) for _ in range(2)]
    assert engine_name() == "torch"
    assert [str(warning.message).split(";")[0] for warning in caught] == ["FAISS is not installed"]
    expected = brute_knn(*given, 1) | brute_knn(*given, 5) | brute_retrieval(*given, [1])
    assert found == [pytest.approx(expected)] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("measure", [partial(knn, k=[1, 5, 20]), retrieval])
def test_rows_on_a_gpu_give_the_same_numbers(measure: Callable[..., Numbers]) -> None:
    given = problem()
    given[1][3], given[3][5] = -1, -1
    there = measure(*(part.cuda() for part in given), exclude=torch.arange(40).cuda())
    assert there == measure(*given, exclude=torch.arange(40))


def test_blocks_of_queries_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch, either_engine: str) -> None:
    bank, labels, _, _ = problem()
    queries = rows(2500, seed=9)
    asked = torch.arange(2500) % len(SIZES)
    own = torch.where(torch.arange(2500) % 5 == 0, torch.arange(2500) % len(bank), -1)
    asked = torch.where(own >= 0, labels[own], asked)
    found = []
    for block in (1024, 2500, 999):
        monkeypatch.setattr(search_module, "BLOCK", block)
        blocks = [len(rows) for _, rows in search(bank, queries, 3, own)]
        assert blocks[:-1] == [block] * (len(blocks) - 1)
        assert sum(blocks) == 2500
        given = (bank, labels, queries, asked)
        found.append(knn(*given, k=[1, 9], exclude=own) | retrieval(*given, exclude=own))
    assert found[0] == pytest.approx(found[1])
    assert found[0] == pytest.approx(found[2])


# Retrieval


@pytest.mark.parametrize("case", CASES)
def test_retrieval_is_its_definition(case: str, either_engine: str) -> None:
    asked = CASES[case]()
    found = retrieval(*asked["given"], k=[1, 5, 10], exclude=asked.get("exclude"))
    assert found == pytest.approx(brute_retrieval(*asked["given"], [1, 5, 10], asked.get("exclude")))
    assert 0 < found["map@r"] < found["r_precision"] < 1


@pytest.mark.parametrize("alone", [False, True], ids=["apart", "leave one out"])
def test_retrieval_is_pytorch_metric_learnings(alone: bool) -> None:
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    bank, labels, queries, asked = problem()
    if alone:  # a class of one image has nothing to find: it is passed over there as well
        queries, asked = bank, labels
    wanted = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")
    calculator = accuracy.AccuracyCalculator(include=wanted, k="max_bin_count", device=torch.device("cpu"))
    expected = calculator.get_accuracy(queries, asked, bank, labels, ref_includes_query=alone)
    own = torch.arange(len(bank)) if alone else None
    found = retrieval(bank, labels, queries, asked, k=[1], exclude=own)
    for theirs, ours in zip(wanted, ("recall@1", "r_precision", "map@r", "mrr"), strict=True):
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-6), ours


def test_map_at_r_sees_the_order_that_r_precision_does_not() -> None:
    hits = {"first half": [1] * 5 + [0] * 5, "second half": [0] * 5 + [1] * 5}
    expected = {"first half": 0.5, "second half": sum(i / (5 + i) for i in range(1, 6)) / 10}
    for name, found in hits.items():
        labels = torch.tensor(found + [0] * 20 + [1] * 5)
        similarities = torch.linspace(0.9, 0.1, len(labels))
        bank = torch.stack([similarities, (1 - similarities**2).sqrt()], dim=1)
        numbers = retrieval(bank, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), k=[1])
        assert numbers["r_precision"] == pytest.approx(0.5)
        assert numbers["map@r"] == pytest.approx(expected[name])


def test_queries_with_nothing_to_find_are_passed_over(either_engine: str) -> None:
    bank, labels, queries, asked = problem()
    absent = torch.where(torch.arange(len(asked)) % 4 == 0, 99, asked)
    kept = absent < 99
    assert retrieval(bank, labels, queries, absent) == pytest.approx(
        retrieval(bank, labels, queries[kept], asked[kept]), rel=1e-12
    )
    # Left out of the bank, the only image of a class has none to find; as a kNN query it still counts, as wrong.
    single = int((labels == 0).nonzero())
    own = torch.arange(len(bank))
    others = own != single
    without = retrieval(bank, labels, bank[others], labels[others], exclude=own[others])
    assert retrieval(bank, labels, bank, labels, exclude=own) == pytest.approx(without, rel=1e-12)
    assert knn(bank, labels, bank[[single]], labels[[single]], k=[1], exclude=own[[single]])["knn@1"] == 0


# Labels, and what is refused


@pytest.mark.parametrize("measure", [lambda *given, **own: knn(*given, k=[1, 5, 20], **own), retrieval])
def test_unlabelled_rows_neither_vote_nor_ask(measure: Callable[..., Numbers]) -> None:
    bank, labels, queries, asked = problem()
    hidden, silent = torch.arange(len(labels)) % 3 == 0, torch.arange(len(asked)) % 4 == 0
    given = (bank, torch.where(hidden, -1, labels), queries, torch.where(silent, -1, asked))
    assert measure(*given) == measure(bank[~hidden], labels[~hidden], queries[~silent], asked[~silent])
    # A query that is itself an unlabelled row of the bank loses nothing by leaving itself out.
    own = torch.arange(len(queries))
    kept = hidden[own]
    before = measure(bank, given[1], queries[kept], asked[kept], exclude=own[kept])
    assert before == measure(bank, given[1], queries[kept], asked[kept])


def with_nan(table: Tensor, *numbers: int) -> Tensor:
    table = table.clone()
    table[list(numbers), 1] = float("nan")
    return table


def test_what_does_not_fit_is_refused_with_its_numbers() -> None:
    bank, labels, queries, asked = problem()
    nobody = torch.full_like(labels, -1)
    own = torch.arange(len(bank))
    refused = [
        ((bank, labels, queries, asked), {"k": [1, 54]}, r"k must be 1 to 53 \(rows in the bank\), got 54"),
        ((bank, labels, bank, labels), {"k": [53], "exclude": own}, r"1 to 52 .*besides the query\), got 53"),
        ((bank, labels, queries, asked), {"k": [0, 5]}, r"k must be at least 1, got \[0, 5\]"),
        ((bank, labels, queries, asked), {"k": []}, r"k must be at least 1, got \[\]"),
        ((with_nan(bank, 3, 7), labels, queries, asked), {"k": [1]}, r"2 of 53 rows of bank .* first \[3, 7\]"),
        ((bank, labels, queries / 0, asked), {"k": [1]}, r"40 of 40 rows of queries .* first \[0, 1, 2, 3, 4\]"),
        ((bank, labels, queries[:, :9], asked), {"k": [1]}, r"bank rows have 12 values, query rows 9"),
        ((bank, labels[:50], queries, asked), {"k": [1]}, r"53 bank rows but labels of shape \(50,\)"),
        ((bank, labels, queries, asked[:, None]), {"k": [1]}, r"40 query rows but labels of shape \(40, 1\)"),
        ((bank, nobody, queries, asked), {"k": [1]}, "no bank row has a label"),
        ((bank, labels, queries, nobody[:40]), {"k": [1]}, "no query row has a label"),
        (
            (bank.long(), labels, queries, asked),
            {"k": [1]},
            r"must be \(n, F\) floating point, got torch.int64 \(53, 12\)",
        ),
    ]
    for given, options, message in refused:
        for measure in (knn, retrieval):
            with pytest.raises(ValueError, match=message):
                measure(*given, **options)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        knn(bank, labels, queries, asked, k=[1], temperature=0)
    with pytest.raises(ValueError, match="no query has another image of its class"):
        retrieval(bank, labels, queries, asked + 50)


def test_bad_rows_are_named_as_the_caller_numbers_them() -> None:
    bank, labels, queries, asked = problem()
    labels[:2] = -1
    with pytest.raises(ValueError, match=r"1 of 53 rows of bank .* first \[7\]"):
        knn(with_nan(bank, 7), labels, queries, asked, k=[1])


@pytest.mark.parametrize("exclude", [torch.arange(3), torch.arange(40) + 30])
def test_an_exclude_that_does_not_fit_is_refused(exclude: Tensor) -> None:
    with pytest.raises(ValueError, match="exclude"):
        knn(*problem(), k=[1], exclude=exclude)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_labels_may_be_any_integers(dtype: torch.dtype) -> None:
    bank, labels, queries, asked = problem()
    assert knn(bank, labels.to(dtype), queries, asked.to(dtype), k=[5]) == knn(bank, labels, queries, asked, k=[5])
