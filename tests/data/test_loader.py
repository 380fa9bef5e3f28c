"""Batches are a function of the step: for any number of ranks, workers and interruptions."""

import re
import threading
import time

import pytest
import torch
from torch import Tensor

from image_files import fill, put
from reptk.core.errors import DataError
from reptk.data import DevicePrefetcher, Images, InMemory, Loader, Split, digits, folder, read_blocks
from reptk.data.protocol import WritableImages, fetch_batch

# The small folders made here say so themselves; what is said is tested where it matters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:no class of .* is held out"),
    pytest.mark.filterwarnings("ignore:.*skipped"),
]


def numbered(count: int) -> Split:
    """Images that show their number; labels that are ten times it."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Split(InMemory(pixels), torch.arange(count) * 10)


def order(loader: Loader, first: int, last: int) -> list[int]:
    return [number for batch in loader.batches(first, last) for number in batch[2].tolist()]


def same_batches(one: Loader, other: Loader, first: int, last: int) -> bool:
    pairs = zip(one.batches(first, last), other.batches(first, last), strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def test_a_batch_holds_images_with_their_labels_and_numbers():
    split = numbered(20)
    for images, labels, index in Loader(split, batch_size=6, seed=0).batches(0, 4):
        assert images.shape == (6, 3, 2, 2)
        assert torch.equal(images, split.images.fetch(index))
        assert torch.equal(labels, index * 10)


def test_the_order_is_a_function_of_seed_and_epoch():
    split, orders = numbered(20), {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            orders[seed, epoch] = order(Loader(split, batch_size=5, seed=seed), 4 * epoch, 4 * epoch + 4)
    assert len({tuple(numbers) for numbers in orders.values()}) == 6
    torch.manual_seed(5)
    assert order(Loader(split, batch_size=5, seed=1), 8, 12) == orders[1, 2]


def test_the_order_does_not_depend_on_the_batch_size():
    split = numbered(24)
    twos, sixes, whole = (order(Loader(split, batch_size=size, seed=3), 0, 24 // size) for size in (2, 6, 24))
    assert twos == sixes == whole


def test_an_epoch_has_no_image_twice_and_epochs_together_have_all():
    loader = Loader(numbered(20), batch_size=6, seed=0)
    assert loader.steps_per_epoch == 3
    epochs = [order(loader, 3 * epoch, 3 * epoch + 3) for epoch in range(6)]
    assert all(len(epoch) == len(set(epoch)) == 18 for epoch in epochs)
    assert set().union(*epochs) == set(range(20))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_parts_make_up_the_global_batch(world):
    split = numbered(30)
    whole = list(Loader(split, batch_size=8, seed=2).batches(0, 7))
    ranks = [list(Loader(split, batch_size=8, seed=2, rank=rank, world=world).batches(0, 7)) for rank in range(world)]
    for step, expected in enumerate(whole):
        joined = [torch.cat(parts) for parts in zip(*(batches[step] for batches in ranks), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, expected, strict=True))


def test_starting_at_a_step_is_skipping_the_steps_before():
    loader = Loader(numbered(20), batch_size=6, seed=0)
    whole = order(loader, 0, 8)
    for first in range(9):
        assert order(loader, first, 8) == whole[6 * first :]


def test_workers_change_nothing(tmp_path):
    for number in range(12):
        put(tmp_path / "ab"[number % 2] / f"{number:02}.png", (20 * number, 0, 255))
    from_files = folder(str(tmp_path), size=8).train
    grey = digits().train
    for split, size in ((from_files, 4), (grey, 300)):
        alone, helped = (Loader(split, batch_size=size, seed=1, workers=workers) for workers in (0, 2))
        assert same_batches(alone, helped, 1, 7)
        assert not same_batches(alone, Loader(split, batch_size=size, seed=2), 1, 7)


@pytest.mark.parametrize("count", [2, 3, 5, 31, 100])
def test_too_few_images_suggest_a_batch_size_that_fits(count):
    split = numbered(count)
    with pytest.raises(DataError, match=rf"^{count} training images, .*is 256; use") as caught:
        Loader(split, batch_size=256, seed=0)
    fitting = int(re.search(r"train\.batch_size=(\d+)", str(caught.value)).group(1))
    assert Loader(split, batch_size=fitting, seed=0).steps_per_epoch >= 1


def test_a_single_image_fits_no_batch_and_none_is_suggested():
    with pytest.raises(DataError) as caught:
        Loader(numbered(1), batch_size=256, seed=0)
    assert "train.batch_size=" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_wherever_it_is_met(tmp_path, workers):
    fill(tmp_path, **{"": 5})
    (tmp_path / "bad.jpg").write_text("<!doctype html>")
    loader = Loader(folder(str(tmp_path), size=8).train, batch_size=2, seed=0, workers=workers)
    with pytest.raises(DataError, match=f"^cannot read {re.escape(str(tmp_path / 'bad.jpg'))} as an image"):
        list(loader.batches(0, 3))


class Slow(Images):
    """Images that show their number, fetched slowly, by whoever fetches them; as a plugin would write them."""

    def __init__(self, count: int, bad: int | None = None) -> None:
        self.count, self.bad = count, bad
        self.threads: set[int] = set()
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def fetch(self, numbers: Tensor) -> Tensor:
        self.threads.add(threading.get_ident())
        self.asked += numbers.tolist()
        time.sleep(0.001)
        if self.bad in numbers.tolist():
            raise LookupError(f"image {self.bad}")
        return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


class SlowRows(Slow, WritableImages):
    """The same, written in place."""

    size = 4

    def fetch_into(self, numbers: Tensor, rows: object) -> None:
        rows[:] = super().fetch(numbers).permute(0, 2, 3, 1).numpy()

    def fetch(self, numbers: Tensor) -> Tensor:
        return fetch_batch(self, numbers)


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reptk-prefetch")]


@pytest.mark.parametrize("kind", [Slow, SlowRows])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_batches_in_the_same_memory(kind, workers):
    assert isinstance(SlowRows(1), WritableImages)
    assert not isinstance(Slow(1), WritableImages)
    splits = [Split(kind(50), torch.arange(50)) for _ in range(2)]
    alone, helped = (
        Loader(split, batch_size=7, seed=3, workers=n) for split, n in zip(splits, (0, workers), strict=True)
    )
    for one, other in zip(alone.batches(2, 20), helped.batches(2, 20), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert torch.equal(other[0][:, 0, 0, 0], other[2].byte())
        assert one[0].is_contiguous(memory_format=torch.channels_last)
        assert other[0].is_contiguous(memory_format=torch.channels_last)


def test_files_come_by_pixel(tmp_path):
    fill(tmp_path, **{"": 4})
    for workers in (0, 2):
        [(images, _, _)] = Loader(folder(str(tmp_path), size=8).train, batch_size=4, seed=0, workers=workers).batches(
            0, 1
        )
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_epochs_share_their_threads_and_leave_none():
    images = Slow(40)
    loader = Loader(Split(images, torch.arange(40)), batch_size=10, seed=0, workers=2)
    assert len(list(loader.batches(0, 40))) == 40
    assert len(images.threads) <= 2
    assert threading.get_ident() not in images.threads
    assert not ours()


@pytest.mark.parametrize("kind", [Slow, SlowRows])
def test_an_abandoned_iterator_leaves_no_thread_and_does_not_read_on(kind):
    images = kind(4000)
    batches = Loader(Split(images, torch.arange(4000)), batch_size=10, seed=0, workers=2).batches(0, 400)
    next(batches)
    assert ours()
    del batches
    assert not ours()
    assert len(images.asked) <= 40


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_images_raise_keeps_its_type_and_its_turn(workers):
    images = Slow(30, bad=17)
    loader = Loader(Split(images, torch.arange(30)), batch_size=5, seed=0, workers=workers)
    turn = order(Loader(numbered(30), batch_size=5, seed=0), 0, 6).index(17) // 5
    batches = loader.batches(0, 6)
    for _ in range(turn):
        next(batches)
    with pytest.raises(LookupError, match="image 17"):
        next(batches)
    assert not ours()


def test_batches_are_fetched_before_they_are_asked_for():
    images = Slow(100)
    batches = Loader(Split(images, torch.arange(100)), batch_size=10, seed=0, workers=2).batches(0, 10)
    next(batches)
    for _ in range(200):
        if len(images.asked) == 30:
            break
        time.sleep(0.01)
    assert len(images.asked) == 30
    batches.close()


def test_batches_do_not_share_memory():
    loader = Loader(Split(SlowRows(40), torch.arange(40)), batch_size=10, seed=0, workers=2)
    for images, _, numbers in list(loader.batches(0, 8)):
        assert torch.equal(images[:, 0, 0, 0], numbers.byte())


def test_blocks_come_in_their_order(tmp_path):
    split = Split(Slow(30), torch.arange(30))
    for workers in (0, 3):
        made = [images[:, 0, 0, 0].tolist() for (images,) in read_blocks(split, [range(20, 30), range(0, 3)], workers)]
        assert made == [list(range(20, 30)), [0, 1, 2]]
    assert not ours()


# Images in memory


def test_images_in_memory_need_no_threads(monkeypatch):
    monkeypatch.setattr("reptk.data.prefetch.ThreadPoolExecutor", None)
    assert len(order(Loader(numbered(20), batch_size=5, seed=0, workers=3), 0, 4)) == 20


def test_colour_images_in_memory_come_by_pixel():
    [(images, _, _)] = Loader(numbered(20), batch_size=5, seed=0).batches(0, 1)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_grey_channels_share_their_memory():
    images = InMemory(torch.zeros(9, 1, 4, 4, dtype=torch.uint8)).fetch(torch.tensor([1, 2]))
    assert images.shape == (2, 3, 4, 4)
    assert images.stride(1) == 0


def test_pixels_are_what_was_given():
    for channels in (1, 3):
        pixels = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
        images = InMemory(pixels)
        assert torch.equal(images.pixels, pixels)
        assert torch.equal(images.fetch(torch.tensor([3, 3, 0])), pixels[[3, 3, 0]].expand(-1, 3, -1, -1))
        assert images.to("cpu") is images


def test_images_in_memory_move_to_the_device_when_batches_are_asked_for(monkeypatch):
    moved = []
    monkeypatch.setattr(InMemory, "to", lambda self, device: moved.append(device))
    batches = Loader(numbered(20), batch_size=5, seed=0, device="cpu").batches(0, 1)
    assert not moved
    next(batches)
    assert moved == ["cpu"]


@pytest.mark.gpu
def test_batches_arrive_on_cuda_unchanged():
    for split in (numbered(60), Split(Slow(60), torch.arange(60)), Split(SlowRows(60), torch.arange(60))):
        here = list(Loader(split, batch_size=6, seed=0).batches(0, 30))
        loader = Loader(split, batch_size=6, seed=0, workers=2, device="cuda")
        feed = DevicePrefetcher(loader.batches(0, 30), "cuda")
        for one, other in zip(here, feed, strict=True):
            assert all(part.is_cuda for part in other)
            torch.cuda._sleep(1_000_000)
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))
        torch.cuda.synchronize()
        assert feed.waited() >= 0


# On the way to the device


def test_a_feed_on_the_cpu_hands_through_what_it_gets():
    given = [(torch.rand(3), torch.arange(3)) for _ in range(4)]
    for one, other in zip(given, DevicePrefetcher(given, "cpu"), strict=True):
        assert all(a is b for a, b in zip(one, other, strict=True))


def test_a_feed_counts_the_time_that_batches_take_and_no_other():
    def slow():
        for _ in range(3):
            time.sleep(0.05)
            yield (torch.zeros(1),)

    feed, since = DevicePrefetcher(slow(), "cpu"), time.perf_counter()
    for _ in range(3):
        next(feed)
        time.sleep(0.1)
    assert 0.15 <= feed.waited() <= time.perf_counter() - since - 0.3
    assert feed.waited() == 0
    with pytest.raises(StopIteration):
        next(feed)


class FakeStream:
    """Notes what is asked of it."""

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
        self.log.append(f"kept for {stream.name}")


def test_a_feed_on_cuda_copies_on_a_stream_of_its_own(monkeypatch):
    log: list[str] = []
    current = FakeStream("compute", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("copies", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: FakeEvent(log, **options))

    def batches():
        for _ in range(2):
            log.append("batch")
            yield (FakeTensor(log),)

    feed = DevicePrefetcher(batches(), "cuda")
    next(feed)
    once = [
        "event on compute",
        "batch",
        "on copies",
        "copy to cuda without waiting",
        "off copies",
        "compute waits for copies",
        "kept for compute",
        "event on compute",
    ]
    assert log == once
    next(feed)
    assert log == once * 2
    assert feed.waited() == 0.5
    assert feed.waited() == 0
