"""Batches are a function of the step: for any number of ranks, workers and interruptions."""

import re

import pytest
import torch

from image_files import fill, put
from reptk.data import InMemory, Loader, Split, digits, folder
from reptk.errors import DataError

# The small folders made here say so themselves; what is said is tested where it matters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:no class of .* is held out"),
    pytest.mark.filterwarnings("ignore:.*passed over"),
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
