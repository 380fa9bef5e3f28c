"""Batches are a function of the step, for any number of ranks, workers and interruptions."""

import re

import pytest
import torch
from torch import Tensor

from image_files import write_image, write_images
from reptk.core.errors import DataError
from reptk.data import Loader, Split, digits, folder, read_blocks
from slow_images import SlowImages, numbered_split

# The small folders of these tests cause this warning; the tests of folders check it.
pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


def order(loader: Loader, first_step: int, last_step: int) -> list[int]:
    return [number for _, _, numbers in loader.batches(first_step, last_step) for number in numbers.tolist()]


def same_batches(loader: Loader, other: Loader, first_step: int, last_step: int) -> bool:
    pairs = zip(loader.batches(first_step, last_step), other.batches(first_step, last_step), strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def test_a_batch_holds_images_with_their_labels_and_numbers():
    split = numbered_split(20)
    for images, labels, index in Loader(split, batch_size=6, seed=0).batches(0, 4):
        assert images.shape == (6, 3, 2, 2)
        assert torch.equal(images, split.images.fetch(index))
        assert torch.equal(labels, index * 10)


# Order


def test_the_order_is_a_function_of_seed_and_epoch():
    split, orders = numbered_split(20), {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            orders[seed, epoch] = order(Loader(split, batch_size=5, seed=seed), 4 * epoch, 4 * epoch + 4)
    assert len({tuple(numbers) for numbers in orders.values()}) == 6
    torch.manual_seed(5)
    assert order(Loader(split, batch_size=5, seed=1), 8, 12) == orders[1, 2]


def test_the_order_does_not_depend_on_the_batch_size():
    split = numbered_split(24)
    twos, sixes, whole = (order(Loader(split, batch_size=size, seed=3), 0, 24 // size) for size in (2, 6, 24))
    assert twos == sixes == whole


def test_an_epoch_has_no_image_twice_and_several_epochs_have_all():
    loader = Loader(numbered_split(20), batch_size=6, seed=0)
    assert loader.steps_per_epoch == 3
    epochs = [order(loader, 3 * epoch, 3 * epoch + 3) for epoch in range(6)]
    assert all(len(epoch) == len(set(epoch)) == 18 for epoch in epochs)
    assert set().union(*epochs) == set(range(20))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_slices_of_the_ranks_are_the_global_batch(world):
    split = numbered_split(30)
    global_batches = list(Loader(split, batch_size=8, seed=2).batches(0, 7))
    ranks = [
        list(Loader(split, batch_size=8, seed=2, rank=rank, world_size=world).batches(0, 7)) for rank in range(world)
    ]
    for step, expected in enumerate(global_batches):
        joined = [torch.cat(slices) for slices in zip(*(batches[step] for batches in ranks), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, expected, strict=True))


def test_starting_at_a_step_equals_skipping_the_steps_before():
    loader = Loader(numbered_split(20), batch_size=6, seed=0)
    whole = order(loader, 0, 8)
    for first_step in range(9):
        assert order(loader, first_step, 8) == whole[6 * first_step :]


def test_workers_do_not_change_batches(tmp_path):
    for number in range(12):
        write_image(tmp_path / "ab"[number % 2] / f"{number:02}.png", (20 * number, 0, 255))
    from_files = folder(str(tmp_path), size=8).train
    gray = digits().train
    for split, size in ((from_files, 4), (gray, 300)):
        without, with_workers = (Loader(split, batch_size=size, seed=1, workers=workers) for workers in (0, 2))
        assert same_batches(without, with_workers, 1, 7)
        assert not same_batches(without, Loader(split, batch_size=size, seed=2), 1, 7)


# Errors


@pytest.mark.parametrize("count", [2, 3, 5, 31, 100])
def test_too_few_images_suggest_a_batch_size_that_fits(count):
    split = numbered_split(count)
    with pytest.raises(DataError, match=rf"^{count} training images, .*is 256; use") as error:
        Loader(split, batch_size=256, seed=0)
    fitting = int(re.search(r"train\.batch_size=(\d+)", str(error.value)).group(1))
    assert Loader(split, batch_size=fitting, seed=0).steps_per_epoch >= 1


def test_for_a_single_image_no_batch_size_is_suggested():
    with pytest.raises(DataError) as error:
        Loader(numbered_split(1), batch_size=256, seed=0)
    assert "train.batch_size=" not in str(error.value)


def test_images_have_to_derive_from_the_base_class():
    class Underived:
        def __len__(self) -> int:
            return 8

        def fetch(self, numbers: Tensor) -> Tensor:
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"Underived, which does not derive from reptk\.data\.Images"):
        Loader(Split(Underived(), torch.arange(8)), batch_size=2, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_any_batch(tmp_path, workers):
    write_images(tmp_path, **{"": 5})
    (tmp_path / "bad.jpg").write_text("<!doctype html>")
    split = folder(str(tmp_path), size=8, on_error="stop").train
    loader = Loader(split, batch_size=2, seed=0, workers=workers)
    with pytest.raises(DataError, match=f"^cannot read {re.escape(str(tmp_path / 'bad.jpg'))} as an image"):
        list(loader.batches(0, 3))


@pytest.mark.parametrize("cache", [False, True])
def test_an_unreadable_image_is_replaced_by_another_with_its_label(tmp_path, cache):
    write_images(tmp_path / "data", a=6, b=6)
    for name in ("a/02.png", "b/05.png"):
        (tmp_path / "data" / name).write_text("no image")
    options = {"size": 8, "holdout": 100, "cache": str(tmp_path / "cache") if cache else False}
    batches = {}
    for workers in (0, 2):
        data = folder(str(tmp_path / "data"), **options)
        loader = Loader(data.train, batch_size=4, seed=0, workers=workers)
        batches[workers] = list(loader.batches(0, 6))
    for images, labels, numbers in batches[0]:
        assert not {2, 11} & set(numbers.tolist())
        assert torch.equal(labels, data.train.labels[numbers])
        assert torch.equal(images, data.train.images.fetch(numbers))
        assert images.amin(dim=(1, 2, 3)).eq(0).all()  # red, not black
        assert images.amax(dim=(1, 2, 3)).eq(255).all()
    for first, second in zip(batches[0], batches[2], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    write_images(tmp_path, **{"": 20})
    for number in range(5):
        (tmp_path / f"{number:02}.png").write_text("no image")
    loader = Loader(folder(str(tmp_path), size=8).train, batch_size=4, seed=0)
    with pytest.raises(DataError, match="more than 4 images cannot be read, too many to skip them") as error:
        list(loader.batches(0, 5))
    assert str(tmp_path / "00.png") in str(error.value)


# Blocks


def test_blocks_are_read_in_their_order():
    split = Split(SlowImages(30), torch.arange(30))
    for workers in (0, 3):
        blocks = list(read_blocks(split.images, [range(20, 30), range(0, 3)], workers))
        assert [images[:, 0, 0, 0].tolist() for (images,) in blocks] == [list(range(20, 30)), [0, 1, 2]]
