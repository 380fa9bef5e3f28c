"""What the benchmarks share: seconds in rounds of changing order, growth of resident memory, and versions."""

import ctypes
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

Call = Callable[[], object]

Seconds = dict[str, list[float]]
"""Seconds of each counted round, by name."""


def seconds_of(call: Call) -> float:
    """Return the seconds of one call, with everything that it starts on a GPU."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def seconds_of_rounds(calls: dict[str, Call], rounds: Iterable[int], uncounted: int = 1) -> Seconds:
    """Return the seconds of every call in every round, without those of the first `uncounted` rounds.

    The order changes every round, because a call finds the caches and the allocator as the one before it left them.
    """
    seconds: Seconds = {name: [] for name in calls}
    for number in rounds:
        for name in random.Random(number).sample(list(calls), len(calls)):
            seconds[name].append(seconds_of(calls[name]))
    return {name: values[uncounted:] for name, values in seconds.items()}


def rounds_within(seconds: float, *, at_least: int, at_most: int) -> Iterator[int]:
    """Yield the numbers of rounds from 0 until the time is over."""
    start = time.perf_counter()
    for number in range(at_most):
        if number >= at_least and time.perf_counter() - start >= seconds:
            return
        yield number


def median_ratio(values: list[float], base: list[float]) -> float:
    """Return the median of the ratios of each round, in which neighbors in time share what else the machine does."""
    return statistics.median(value / base_value for value, base_value in zip(values, base, strict=True))


def synchronize() -> None:
    """Wait for the GPU, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory_growth(call: Call) -> tuple[float, float]:
    """Return the growth of the peak resident set of this process during a call, in MB, and the seconds of the call.

    Linux only. A smaller call has to come first, which loads libraries and compiles functions.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that was freed but not returned would hide growth
    before_mb = _resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    seconds = seconds_of(call)
    return _resident_mb("VmHWM") - before_mb, seconds


def versions_line(packages: Iterable[str]) -> str:
    """Return the versions of Python and of packages, e.g. "python 3.11.7, torch 2.14.1, lightly absent"."""
    versions = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    return ", ".join(versions)


def _resident_mb(field: str) -> float:
    """Return a field of Linux's status of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)
