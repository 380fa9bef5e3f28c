"""Batches on their way to the device: unchanged on the CPU, copied on a separate stream on CUDA; waiting is measured."""

import time

import pytest
import torch

from reptk.data import DevicePrefetcher


def test_on_the_cpu_batches_are_passed_through():
    batches = [(torch.rand(3), torch.arange(3)) for _ in range(4)]
    for expected, batch in zip(batches, DevicePrefetcher(batches, "cpu"), strict=True):
        assert all(a is b for a, b in zip(expected, batch, strict=True))


def test_waited_counts_the_time_that_batches_take_and_nothing_else():
    def slow_batches():
        for _ in range(3):
            time.sleep(0.05)
            yield (torch.zeros(1),)

    prefetcher = DevicePrefetcher(slow_batches(), "cpu")
    start = time.perf_counter()
    for _ in range(3):
        next(prefetcher)
        time.sleep(0.1)
    assert 0.15 <= prefetcher.waited() <= time.perf_counter() - start - 0.3
    assert prefetcher.waited() == 0
    with pytest.raises(StopIteration):
        next(prefetcher)


class FakeStream:
    """Logs how it is used."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "FakeStream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.log.append(f"on {self.name}")

    def __exit__(self, *_: object) -> None:
        self.log.append(f"off {self.name}")


class FakeEvent:
    count = 0

    def __init__(self, log: list[str], **_: object) -> None:
        self.log, self.number = log, FakeEvent.count
        FakeEvent.count += 1

    def record(self, stream: FakeStream) -> None:
        self.log.append(f"event on {stream.name}")

    def elapsed_time(self, other: "FakeEvent") -> float:
        return 250.0 * (other.number - self.number)


class FakeTensor:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def to(self, device: torch.device, non_blocking: bool = False) -> "FakeTensor":
        self.log.append(f"copy to {device.type}" + (" without waiting" if non_blocking else ""))
        return self

    def record_stream(self, stream: FakeStream) -> None:
        self.log.append(f"memory used by {stream.name}")


def test_on_cuda_batches_are_copied_on_a_separate_stream(monkeypatch):
    log: list[str] = []
    compute_stream = FakeStream("compute", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("copies", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute_stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: FakeEvent(log, **options))

    def batches():
        for _ in range(2):
            log.append("batch")
            yield (FakeTensor(log),)

    prefetcher = DevicePrefetcher(batches(), "cuda")
    next(prefetcher)
    expected = [
        "event on compute",
        "batch",
        "on copies",
        "copy to cuda without waiting",
        "off copies",
        "compute waits for copies",
        "memory used by compute",
        "event on compute",
    ]
    assert log == expected
    next(prefetcher)
    assert log == expected * 2
    assert prefetcher.waited() == 0.5
    assert prefetcher.waited() == 0
