"""kNN evaluation and retrieval against bare FAISS and their peers: time, memory, and what approximate indexes find.

pip install lightly pytorch-lightning pytorch-metric-learning && python benchmarks/knn.py    about eight minutes on two cores
python benchmarks/knn.py --only votes memory                                    some of it

Time: all in one process, in turns of changing order; compare minima. Memory: the growth of the peak resident set over one call
in a process of its own, after a small call has loaded everything. FAISS is loaded as reptk loads it, with threads that sleep
between searches. Numbers that mean the same are compared first. Peers that
are not installed are left out.
"""

import argparse
import ctypes
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from reptk.core.environment import git_commit
from reptk.evaluate import knn, retrieval
from reptk.neighbors import ApproximateIndex, search
from reptk.neighbors.engine import load_faiss

BANK, QUERIES, WIDTH, K = 100_000, 1_000, 256, (1, 10, 20, 100, 200)
DEEP, DEEP_CLASSES = 50_000, 100
SMALLER = 10_000
INTRINSIC = 24
KINDS = ("Flat", "IVF1024,Flat", "HNSW32", "IVF1024,PQ32")

Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"votes": _votes, "memory": _memory, "ranks": _ranks, "kinds": _kinds}
    parser.add_argument("--only", nargs="*", choices=tables, default=list(tables))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(_own_peak(chosen.peak))
        return
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    print(f"{platform.machine()}, {gpu}{torch.get_num_threads()} threads, commit {git_commit()}, {_versions()}")
    for name in chosen.only:
        tables[name](chosen.rounds)


# Tables


def _votes(rounds: int) -> None:
    for classes in (100, 1000):
        print(f"\n{BANK:,} x {WIDTH} bank, {QUERIES:,} queries, {classes:,} classes: seconds")
        bank, labels, queries, asked = _problem(BANK, QUERIES, classes)
        index = load_faiss().IndexFlatIP(WIDTH)
        index.add(bank.numpy())
        calls: dict[str, Call] = {
            f"IndexFlatIP.search, k = {K[-1]}": lambda index=index, queries=queries: index.search(
                queries.numpy(), K[-1]
            ),
            "reptk.evaluate.knn, five k, both votes": lambda given=(bank, labels, queries, asked): knn(*given, k=K),
            f"reptk.evaluate.knn, k = {K[-1]} alone": lambda given=(bank, labels, queries, asked): knn(
                *given, k=K[-1:]
            ),
        }
        if torch.cuda.is_available():
            calls |= _on_gpu(bank, labels, queries, asked)
        if find_spec("lightly"):
            calls[f"lightly knn_predict, k = {K[-1]} alone"] = _lightly(bank, labels, queries, classes)
            ours = knn(bank, labels, queries, asked, k=K[-1:])[f"knn@{K[-1]}"]
            theirs = (calls[f"lightly knn_predict, k = {K[-1]} alone"]()[:, 0] == asked).double().mean().item()
            print(f"  accuracy: reptk {ours:.4f}, lightly {theirs:.4f}")
        _print_seconds(_seconds(calls, rounds))


def _memory(rounds: int) -> None:
    print(f"\nmemory of one call: {BANK:,} x {WIDTH} bank, {QUERIES:,} queries, 1,000 classes, k = {K[-1]}")
    _print_peaks([name for name in PEAKS if not name.startswith("deep")])


def _ranks(rounds: int) -> None:
    print(
        f"\nmAP@R and R-precision, leave-one-out, {DEEP:,} x {WIDTH}, {DEEP_CLASSES} classes: memory and seconds of one call"
    )
    _print_peaks(["deep reptk"])
    print(f"\nthe same, {SMALLER:,} x {WIDTH}: seconds")
    bank, labels, *_ = _problem(SMALLER, 1, DEEP_CLASSES)
    own = torch.arange(SMALLER)
    calls: dict[str, Call] = {"reptk": lambda: retrieval(bank, labels, bank, labels, exclude=own)}
    if find_spec("pytorch_metric_learning"):
        calls["pytorch-metric-learning"] = _accuracy_calculator(bank, labels)
        ours, theirs = calls["reptk"](), calls["pytorch-metric-learning"]()
        print(f"  mAP@R: reptk {ours['map@r']:.6f}, theirs {theirs['mean_average_precision_at_r']:.6f}")
    _print_seconds(_seconds(calls, rounds))
    _print_peaks([name for name in PEAKS if name.startswith("deep smaller")])


def _kinds(rounds: int) -> None:
    _indexes(f"clustered, {INTRINSIC} dimensions and a little noise", *_of_few_dimensions(BANK, QUERIES), rounds)
    bank, _, queries, _ = _problem(BANK, QUERIES, 1000)
    _indexes("loosely clustered in all dimensions", bank, queries, rounds)


def _indexes(how: str, bank: Tensor, queries: Tensor, rounds: int) -> None:
    print(f"\nindexes of {BANK:,} x {WIDTH} rows, {how}; {QUERIES:,} queries, k = 10")
    seconds = min(_seconds({"exact": lambda: list(search(bank, queries, 10))}, rounds)["exact"])
    print(f"  {'exact search':<16} {'':>20} search {seconds:6.2f} s")
    for kind in KINDS:
        since = time.perf_counter()
        index = ApproximateIndex.build(bank, kind)
        built = time.perf_counter() - since
        seconds = _seconds({kind: lambda index=index: index.search(queries, 10)}, rounds)[kind]
        recall = index.recall(bank, queries, 10)
        print(
            f"  {kind:<16} build {built:8.2f} s     search {min(seconds):6.2f} s     recall@10 {recall:.3f}", flush=True
        )


# What is compared


def _problem(bank: int, queries: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loosely clustered unit rows and their classes."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, WIDTH, generator=draw)
    labels, asked = torch.arange(bank) % classes, torch.arange(queries) % classes
    rows = [
        functional.normalize(0.35 * centres[of] + torch.randn(len(of), WIDTH, generator=draw), dim=1)
        for of in (labels, asked)
    ]
    return rows[0], labels, rows[1], asked


def _of_few_dimensions(bank: int, queries: int) -> tuple[Tensor, Tensor]:
    """Unit rows that vary in few directions, as embeddings do: a thousand clusters in a subspace, and noise around it."""
    draw = torch.Generator().manual_seed(1)
    directions = torch.randn(INTRINSIC, WIDTH, generator=draw)
    centres = torch.randn(1000, INTRINSIC, generator=draw)

    def rows(count: int) -> Tensor:
        within = centres[torch.arange(count) % 1000] + 0.5 * torch.randn(count, INTRINSIC, generator=draw)
        return functional.normalize(within @ directions + 0.5 * torch.randn(count, WIDTH, generator=draw), dim=1)

    return rows(bank), rows(queries)


def _on_gpu(bank: Tensor, labels: Tensor, queries: Tensor, asked: Tensor) -> dict[str, Call]:
    """What the GPU does alone, and the evaluation of rows that lie there already."""
    rows = [part.cuda() for part in (bank, labels, queries, asked)]

    def bare() -> None:
        (rows[2] @ rows[0].T).topk(K[-1])
        torch.cuda.synchronize()

    return {
        f"torch's product and topk on the GPU, k = {K[-1]}": bare,
        "reptk.evaluate.knn, rows on the GPU, five k, both votes": lambda: knn(*rows, k=K),
    }


def _lightly(bank: Tensor, labels: Tensor, queries: Tensor, classes: int) -> Call:
    from lightly.utils.benchmarking import knn_predict

    transposed = bank.T.contiguous()
    return lambda: knn_predict(queries, transposed, labels, classes, knn_k=K[-1], knn_t=0.07)


def _accuracy_calculator(bank: Tensor, labels: Tensor) -> Call:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    wanted = ("mean_average_precision_at_r", "r_precision")
    calculator = AccuracyCalculator(include=wanted, k="max_bin_count", device=torch.device("cpu"))
    return lambda: calculator.get_accuracy(bank, labels, bank, labels, ref_includes_query=True)


def _knn_call(count: int, queries: int) -> Call:
    given = _problem(count, queries, 1000)
    return lambda: knn(*given, k=K[-1:])


def _lightly_call(count: int, queries: int) -> Call:
    bank, labels, asked, _ = _problem(count, queries, 1000)
    return _lightly(bank, labels, asked, 1000)


def _deep_call(count: int, queries: int) -> Call:
    bank, labels, *_ = _problem(count, 1, DEEP_CLASSES)
    return lambda: retrieval(bank, labels, bank, labels, exclude=torch.arange(count))


def _deep_peer_call(count: int, queries: int) -> Call:
    bank, labels, *_ = _problem(count, 1, DEEP_CLASSES)
    return _accuracy_calculator(bank, labels)


PEAKS: dict[str, tuple[str | None, Callable[[int, int], Call], int]] = {
    "reptk": (None, _knn_call, BANK),
    "lightly": ("lightly", _lightly_call, BANK),
    "deep reptk": (None, _deep_call, DEEP),
    "deep smaller reptk": (None, _deep_call, SMALLER),
    "deep smaller pytorch-metric-learning": ("pytorch_metric_learning", _deep_peer_call, SMALLER),
}
"""What is run in a process of its own: the package it needs, the call, rows in the bank."""


# Measuring


def _seconds(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Of every call in every round, the calls in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(calls), len(calls)):
            since = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - since)
    return {name: values[1:] for name, values in seconds.items()}


def _print_seconds(seconds: dict[str, list[float]]) -> None:
    base = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratios = statistics.median(value / first for value, first in zip(values, base, strict=True))
        print(
            f"  {name:<56} min {min(values):7.4f}   median {statistics.median(values):7.4f}   "
            f"{min(values) / min(base):5.2f}x of the minima, {ratios:5.2f}x of the rounds",
            flush=True,
        )


def _print_peaks(names: list[str]) -> None:
    for name in names:
        needs = PEAKS[name][0]
        if needs is not None and not find_spec(needs):
            print(f"  {name:<40} not installed")
            continue
        made = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=False)
        said = made.stdout.strip() if made.returncode == 0 else f"failed: {made.stderr.strip().splitlines()[-1]}"
        print(f"  {name:<40} {said}", flush=True)


def _own_peak(name: str) -> str:
    """Growth of this process's peak resident set over one call, and its seconds."""
    _, make, count = PEAKS[name]
    make(2000, 100)()  # load what there is to load
    call = make(count, QUERIES)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed must not be used again unseen
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    since = time.perf_counter()
    call()
    return f"{_resident('VmHWM') - before:8.0f} MB   {time.perf_counter() - since:8.2f} s"


def _resident(what: str) -> float:
    """MB, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def _versions() -> str:
    names = ("torch", "faiss-cpu", "lightly", "pytorch-metric-learning")
    return f"python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
