"""kNN evaluation and retrieval against FAISS and other libraries: time, memory, and recall of approximate indexes.

pip install lightly pytorch-lightning pytorch-metric-learning && python benchmarks/knn.py    about eight minutes on two cores
python benchmarks/knn.py --only votes memory                                    some of it

Time: all calls in one process, in a new order every round; compare minima. Memory: the growth of the peak resident set during
one call in a separate process, after a small call has loaded everything. FAISS is loaded as reptk loads it, with threads that
sleep between searches. Metrics that both libraries compute are compared first. Libraries that are not installed are left out.
"""

import argparse
import functools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from measuring import Call, Seconds, median_ratio, memory_growth, seconds_of_rounds, versions_line
from processes import run_script
from reptk.core.environment import git_commit
from reptk.evaluate import knn, retrieval
from reptk.neighbors import ApproximateIndex, search
from reptk.neighbors.engine import load_faiss

BANK, QUERIES, WIDTH, K = 100_000, 1_000, 256, (1, 10, 20, 100, 200)
DEEP, DEEP_CLASSES = 50_000, 100
SMALLER = 10_000
FEW_CLASSES, FEW_CLASSES_ROWS = 3, 30_000
"""Classes so large that every query ranks a third of the bank."""
INTRINSIC = 24
KINDS = ("Flat", "IVF1024,Flat", "HNSW32", "IVF1024,PQ32")
PACKAGES = ("torch", "faiss-cpu", "lightly", "pytorch-metric-learning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"votes": _votes, "memory": _memory, "ranks": _ranks, "kinds": _kinds}
    parser.add_argument("--only", nargs="*", choices=tables, default=list(tables))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(_measure_peak(args.peak))
        return
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    print(
        f"{platform.machine()}, {gpu}{torch.get_num_threads()} threads, commit {git_commit()}, {versions_line(PACKAGES)}"
    )
    for name in args.only:
        tables[name](args.rounds)


# Tables


def _votes(rounds: int) -> None:
    for classes in (100, 1000):
        print(f"\n{BANK:,} x {WIDTH} bank, {QUERIES:,} queries, {classes:,} classes: seconds")
        data = _problem(BANK, QUERIES, classes)
        bank, labels, queries, query_labels = data
        index = load_faiss().IndexFlatIP(WIDTH)
        index.add(bank.numpy())
        calls: dict[str, Call] = {
            f"IndexFlatIP.search, k = {K[-1]}": functools.partial(index.search, queries.numpy(), K[-1]),
            "reptk.evaluate.knn, five k, both votes": functools.partial(knn, *data, k=K),
            f"reptk.evaluate.knn, k = {K[-1]} alone": functools.partial(knn, *data, k=K[-1:]),
        }
        if torch.cuda.is_available():
            calls |= _on_gpu(*data)
        if find_spec("lightly"):
            predict = _lightly(bank, labels, queries, classes)
            calls[f"lightly knn_predict, k = {K[-1]} alone"] = predict
            accuracy = knn(*data, k=K[-1:])[f"knn@{K[-1]}"]
            lightly_accuracy = (predict()[:, 0] == query_labels).double().mean().item()
            print(f"  accuracy: reptk {accuracy:.4f}, lightly {lightly_accuracy:.4f}")
        _print_seconds(_seconds(calls, rounds))


def _memory(rounds: int) -> None:
    print(f"\nmemory of one call: {BANK:,} x {WIDTH} bank, {QUERIES:,} queries, 1,000 classes, k = {K[-1]}")
    _print_peaks([name for name in PEAKS if not name.startswith("deep")])


def _ranks(rounds: int) -> None:
    print(
        f"\nmAP@R and R-precision, leave-one-out, {DEEP:,} x {WIDTH}, {DEEP_CLASSES} classes: memory and seconds of one call"
    )
    _print_peaks(["deep reptk"])
    print(f"\nthe same, {FEW_CLASSES_ROWS:,} x {WIDTH}, {FEW_CLASSES} classes")
    _print_peaks(["deep few classes reptk"])
    print(f"\nthe same, {SMALLER:,} x {WIDTH}: seconds")
    bank, labels, *_ = _problem(SMALLER, 1, DEEP_CLASSES)
    exclude = torch.arange(SMALLER)
    calls: dict[str, Call] = {"reptk": lambda: retrieval(bank, labels, bank, labels, exclude=exclude)}
    if find_spec("pytorch_metric_learning"):
        calls["pytorch-metric-learning"] = _accuracy_calculator(bank, labels)
        map_at_r = calls["reptk"]()["map@r"]
        peer_map_at_r = calls["pytorch-metric-learning"]()["mean_average_precision_at_r"]
        print(f"  mAP@R: reptk {map_at_r:.6f}, pytorch-metric-learning {peer_map_at_r:.6f}")
    _print_seconds(_seconds(calls, rounds))
    _print_peaks([name for name in PEAKS if name.startswith("deep smaller")])


def _kinds(rounds: int) -> None:
    _indexes(f"clustered, {INTRINSIC} dimensions and a little noise", *_of_few_dimensions(BANK, QUERIES), rounds)
    bank, _, queries, _ = _problem(BANK, QUERIES, 1000)
    _indexes("loosely clustered in all dimensions", bank, queries, rounds)


def _indexes(description: str, bank: Tensor, queries: Tensor, rounds: int) -> None:
    print(f"\nindexes of {BANK:,} x {WIDTH} rows, {description}; {QUERIES:,} queries, k = 10")
    seconds = _seconds({"exact": lambda: list(search(bank, queries, 10))}, rounds)["exact"]
    print(f"  {'exact search':<16} {'':>20} search {min(seconds):6.2f} s")
    for kind in KINDS:
        _print_index(kind, bank, queries, rounds)


def _print_index(kind: str, bank: Tensor, queries: Tensor, rounds: int) -> None:
    start = time.perf_counter()
    index = ApproximateIndex.build(bank, kind)
    build_seconds = time.perf_counter() - start
    seconds = _seconds({kind: lambda: index.search(queries, 10)}, rounds)[kind]
    recall = index.recall(bank, queries, 10)
    print(
        f"  {kind:<16} build {build_seconds:8.2f} s     search {min(seconds):6.2f} s     recall@10 {recall:.3f}",
        flush=True,
    )


# Calls


def _problem(bank: int, queries: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loosely clustered unit rows and their classes: bank, bank labels, queries, query labels."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, WIDTH, generator=generator)

    def rows(labels: Tensor) -> Tensor:
        noise = torch.randn(len(labels), WIDTH, generator=generator)
        return functional.normalize(0.35 * centers[labels] + noise, dim=1)

    labels, query_labels = torch.arange(bank) % classes, torch.arange(queries) % classes
    return rows(labels), labels, rows(query_labels), query_labels


def _of_few_dimensions(bank: int, queries: int) -> tuple[Tensor, Tensor]:
    """Unit rows that vary in few directions, as embeddings do: a thousand clusters in a subspace, and noise around it."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(INTRINSIC, WIDTH, generator=generator)
    centers = torch.randn(1000, INTRINSIC, generator=generator)

    def rows(count: int) -> Tensor:
        coordinates = centers[torch.arange(count) % 1000] + 0.5 * torch.randn(count, INTRINSIC, generator=generator)
        noise = 0.5 * torch.randn(count, WIDTH, generator=generator)
        return functional.normalize(coordinates @ directions + noise, dim=1)

    return rows(bank), rows(queries)


def _on_gpu(bank: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor) -> dict[str, Call]:
    """torch's product and topk alone, and the evaluation of rows that are on the GPU already."""
    bank, labels, queries, query_labels = bank.cuda(), labels.cuda(), queries.cuda(), query_labels.cuda()

    def product_and_topk() -> None:
        (queries @ bank.T).topk(K[-1])
        torch.cuda.synchronize()

    return {
        f"torch's product and topk on the GPU, k = {K[-1]}": product_and_topk,
        "reptk.evaluate.knn, rows on the GPU, five k, both votes": functools.partial(
            knn, bank, labels, queries, query_labels, k=K
        ),
    }


def _lightly(bank: Tensor, labels: Tensor, queries: Tensor, classes: int) -> Call:
    from lightly.utils.benchmarking import knn_predict

    transposed = bank.T.contiguous()
    return lambda: knn_predict(queries, transposed, labels, classes, knn_k=K[-1], knn_t=0.07)


def _accuracy_calculator(bank: Tensor, labels: Tensor) -> Call:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    metrics = ("mean_average_precision_at_r", "r_precision")
    calculator = AccuracyCalculator(include=metrics, k="max_bin_count", device=torch.device("cpu"))
    return lambda: calculator.get_accuracy(bank, labels, bank, labels, ref_includes_query=True)


def _knn_call(count: int, queries: int) -> Call:
    return functools.partial(knn, *_problem(count, queries, 1000), k=K[-1:])


def _lightly_call(count: int, queries: int) -> Call:
    bank, labels, query_rows, _ = _problem(count, queries, 1000)
    return _lightly(bank, labels, query_rows, 1000)


def _deep_call(count: int, queries: int) -> Call:
    bank, labels, *_ = _problem(count, 1, DEEP_CLASSES)
    return lambda: retrieval(bank, labels, bank, labels, exclude=torch.arange(count))


def _few_classes_call(count: int, queries: int) -> Call:
    bank, labels, *_ = _problem(count, 1, FEW_CLASSES)
    return lambda: retrieval(bank, labels, bank, labels, exclude=torch.arange(count))


def _deep_peer_call(count: int, queries: int) -> Call:
    bank, labels, *_ = _problem(count, 1, DEEP_CLASSES)
    return _accuracy_calculator(bank, labels)


PEAKS: dict[str, tuple[str | None, Callable[[int, int], Call], int]] = {
    "reptk": (None, _knn_call, BANK),
    "lightly": ("lightly", _lightly_call, BANK),
    "deep reptk": (None, _deep_call, DEEP),
    "deep few classes reptk": (None, _few_classes_call, FEW_CLASSES_ROWS),
    "deep smaller reptk": (None, _deep_call, SMALLER),
    "deep smaller pytorch-metric-learning": ("pytorch_metric_learning", _deep_peer_call, SMALLER),
}
"""Calls that run in separate processes: the package they need, the call, rows in the bank."""


# Measuring


def _seconds(calls: dict[str, Call], rounds: int) -> Seconds:
    """Return the seconds of every call in every round; a first round is not counted."""
    return seconds_of_rounds(calls, range(rounds + 1))


def _print_seconds(seconds: Seconds) -> None:
    base = next(iter(seconds.values()))
    for name, values in seconds.items():
        print(
            f"  {name:<56} min {min(values):7.4f}   median {statistics.median(values):7.4f}   "
            f"{min(values) / min(base):5.2f}x of the minima, {median_ratio(values, base):5.2f}x of the rounds",
            flush=True,
        )


def _print_peaks(names: list[str]) -> None:
    for name in names:
        package = PEAKS[name][0]
        if package is not None and not find_spec(package):
            print(f"  {name:<40} not installed")
            continue
        try:
            result = run_script(__file__, "--peak", name).strip()
        except subprocess.CalledProcessError as error:
            result = f"failed: {error.stderr.strip().splitlines()[-1]}"
        print(f"  {name:<40} {result}", flush=True)


def _measure_peak(name: str) -> str:
    """Return the growth of this process's peak resident set during one call, and its seconds."""
    _, prepare, bank_rows = PEAKS[name]
    prepare(2000, 100)()  # loads libraries and compiled functions
    growth_mb, seconds = memory_growth(prepare(bank_rows, QUERIES))
    return f"{growth_mb:8.0f} MB   {seconds:8.2f} s"


if __name__ == "__main__":
    main()
