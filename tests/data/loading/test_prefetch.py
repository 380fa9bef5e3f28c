"""Prefetching threads change neither batches nor their memory; they run ahead by two batches, and end with the iterator."""

import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from image_files import write_images
from reptk.data import DevicePrefetcher, InMemory, Loader, Split, WritableImages, folder, read_blocks
from reptk.data.loading.prefetch import prefetch
from slow_images import SlowImages, SlowWritableImages, numbered_split

pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


def prefetching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reptk-prefetch")]


# The same batches


@pytest.mark.parametrize("kind", [SlowImages, SlowWritableImages])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_batches_in_the_same_memory_format(kind, workers):
    assert isinstance(SlowWritableImages(1), WritableImages)
    assert not isinstance(SlowImages(1), WritableImages)
    without = Loader(Split(kind(50), torch.arange(50)), batch_size=7, seed=3)
    with_workers = Loader(Split(kind(50), torch.arange(50)), batch_size=7, seed=3, workers=workers)
    for expected, batch in zip(without.batches(2, 20), with_workers.batches(2, 20), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, batch, strict=True))
        images, _, numbers = batch
        assert torch.equal(images[:, 0, 0, 0], numbers.byte())
        assert expected[0].is_contiguous(memory_format=torch.channels_last)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_decoded_files_are_channels_last(tmp_path):
    split = folder(str(write_images(tmp_path, **{"": 4})), size=8).train
    for workers in (0, 2):
        [(images, _, _)] = Loader(split, batch_size=4, seed=0, workers=workers).batches(0, 1)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_batches_do_not_share_memory():
    loader = Loader(Split(SlowWritableImages(40), torch.arange(40)), batch_size=10, seed=0, workers=2)
    for images, _, numbers in list(loader.batches(0, 8)):
        assert torch.equal(images[:, 0, 0, 0], numbers.byte())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_memory_of_a_batch_is_free_once_the_caller_drops_it(workers):
    batches = prefetch(SlowWritableImages(40), torch.arange(40).split(10), workers=workers)
    images, _ = next(batches)
    buffer = weakref.ref(images._base)
    assert buffer() is not None
    del images
    assert buffer() is None
    batches.close()


# Threads


def test_epochs_share_their_threads_and_leave_none():
    images = SlowImages(40)
    loader = Loader(Split(images, torch.arange(40)), batch_size=10, seed=0, workers=2)
    assert len(list(loader.batches(0, 40))) == 40
    assert len(images.threads) <= 2
    assert threading.get_ident() not in images.threads
    assert not prefetching_threads()


@pytest.mark.parametrize("kind", [SlowImages, SlowWritableImages])
def test_an_abandoned_iterator_leaves_no_thread_and_stops_reading(kind):
    images = kind(4000)
    batches = Loader(Split(images, torch.arange(4000)), batch_size=10, seed=0, workers=2).batches(0, 400)
    next(batches)
    assert prefetching_threads()
    del batches
    assert not prefetching_threads()
    assert len(images.fetched) <= 40


def test_blocks_leave_no_threads():
    split = Split(SlowImages(30), torch.arange(30))
    list(read_blocks(split.images, [range(20, 30), range(0, 3)], 3))
    assert not prefetching_threads()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_exception_has_its_type_and_is_raised_when_its_batch_is_due(workers):
    loader = Loader(Split(SlowImages(30, bad=17), torch.arange(30)), batch_size=5, seed=0, workers=workers)
    numbers = [batch[2].tolist() for batch in Loader(numbered_split(30), batch_size=5, seed=0).batches(0, 6)]
    [bad_step] = [step for step in range(6) if 17 in numbers[step]]
    batches = loader.batches(0, 6)
    for _ in range(bad_step):
        next(batches)
    with pytest.raises(LookupError, match="image 17"):
        next(batches)
    assert not prefetching_threads()


def test_two_batches_are_fetched_in_advance():
    images = SlowImages(100)
    batches = Loader(Split(images, torch.arange(100)), batch_size=10, seed=0, workers=2).batches(0, 10)
    next(batches)
    for _ in range(200):
        if len(images.fetched) == 30:
            break
        time.sleep(0.01)
    assert len(images.fetched) == 30
    batches.close()


# Images in memory


def test_images_in_memory_need_no_threads(monkeypatch):
    monkeypatch.setattr("reptk.data.loading.prefetch.ThreadPoolExecutor", None)
    batches = list(Loader(numbered_split(20), batch_size=5, seed=0, workers=3).batches(0, 4))
    assert sum(len(images) for images, _, _ in batches) == 20


def test_color_images_in_memory_are_channels_last():
    [(images, _, _)] = Loader(numbered_split(20), batch_size=5, seed=0).batches(0, 1)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_images_in_memory_move_to_the_device_with_the_first_batch(monkeypatch):
    devices = []
    monkeypatch.setattr(InMemory, "to", lambda self, device: devices.append(device))
    batches = Loader(numbered_split(20), batch_size=5, seed=0, device="cpu").batches(0, 1)
    assert not devices
    next(batches)
    assert devices == ["cpu"]


@pytest.mark.gpu
def test_batches_arrive_on_cuda_unchanged():
    splits = [
        numbered_split(60),
        Split(SlowImages(60), torch.arange(60)),
        Split(SlowWritableImages(60), torch.arange(60)),
    ]
    for split in splits:
        on_cpu = list(Loader(split, batch_size=6, seed=0).batches(0, 30))
        loader = Loader(split, batch_size=6, seed=0, workers=2, device="cuda")
        prefetcher = DevicePrefetcher(loader.batches(0, 30), "cuda")
        for expected, batch in zip(on_cpu, prefetcher, strict=True):
            assert all(tensor.is_cuda for tensor in batch)
            torch.cuda._sleep(1_000_000)
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(expected, batch, strict=True))
        torch.cuda.synchronize()
        assert prefetcher.waited() >= 0


def test_few_open_files_are_enough(tmp_path):
    """Threads close each file before they open the next one, so the system's limit does not matter."""
    resource = pytest.importorskip("resource")
    split = folder(str(write_images(tmp_path, **{"": 200})), size=8).train
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = max(int(path.name) for path in Path("/dev/fd").iterdir()) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 16, hard))
    try:
        batches = list(Loader(split, batch_size=50, seed=0, workers=12).batches(0, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(batches) == 4
    assert split.images.unreadable(torch.arange(len(split))) == {}
