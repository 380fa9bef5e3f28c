"""P x K batches of classes that are confused with each other, by mined neighbors."""

import pytest
import torch

from reptk.data import InMemory, Loader, Split, create_sampler
from reptk.data.batches.hard_negatives import NO_NEIGHBOR

LABELS = torch.cat([torch.arange(6).repeat_interleave(10), torch.full((8,), -1)])
"""Six classes of ten images, and eight images without a label."""


def sampler_of(labels=LABELS[:60], *, hard_negatives=True, **options):
    options = {"batch_size": 16, "seed": 3, "name": "pk", "images_per_class": 4} | options
    return create_sampler(labels, hard_negatives=hard_negatives, **options)


def mined(pairs: dict[int, int], count: int = 60) -> torch.Tensor:
    """Neighbors by the numbers of classes: image i of the one is next to image i of the other."""
    neighbors = torch.full((count, 4), NO_NEIGHBOR, dtype=torch.int32)
    for one, other in pairs.items():
        neighbors[10 * one : 10 * one + 10, 0] = torch.arange(10 * other, 10 * other + 10, dtype=torch.int32)
    return neighbors


ROUND = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 0}


def test_batches_are_random_until_the_first_mining() -> None:
    sampler = sampler_of()
    assert torch.equal(sampler.epoch(2), sampler_of(hard_negatives=False).epoch(2))
    assert sampler.description == "pk, 4 classes x 4 images, hard negatives"
    assert sampler_of(hard_negatives=False).hard_negatives is None


def test_batches_remain_p_classes_of_k_different_images() -> None:
    sampler = sampler_of()
    sampler.hard_negatives.set(mined(ROUND))
    for batch in torch.cat([sampler.epoch(number) for number in range(5)]):
        assert len(batch.unique()) == 16
        assert LABELS[batch].unique(return_counts=True)[1].tolist() == [4] * 4


def test_an_image_meets_its_hard_negative() -> None:
    sampler, random = sampler_of(batch_size=8), sampler_of(batch_size=8, hard_negatives=False)
    sampler.hard_negatives.set(mined(ROUND))
    for batch in torch.cat([sampler.epoch(number) for number in range(5)]):
        first, second = LABELS[batch].unique().tolist()
        one, other = (first, second) if ROUND[first] == second else (second, first)
        assert ROUND[one] == other
        numbers = set(batch.tolist())
        assert any(number + 10 * (other - one) in numbers for number in batch[LABELS[batch] == one].tolist())
    classes = [LABELS[batch].unique().tolist() for batch in torch.cat([random.epoch(number) for number in range(5)])]
    assert any(ROUND[first] != second and ROUND[second] != first for first, second in classes)


def test_a_class_without_hard_negatives_meets_a_random_one() -> None:
    sampler = sampler_of()
    sampler.hard_negatives.set(mined({}))
    drawn = torch.cat([sampler.epoch(number) for number in range(10)])
    assert torch.equal(drawn, torch.cat([sampler_of(hard_negatives=False).epoch(number) for number in range(10)]))


def test_nothing_is_mined_if_a_batch_has_all_classes() -> None:
    sampler = sampler_of(batch_size=24)
    assert sampler.hard_negatives is None
    assert sampler.description == "pk, 6 classes x 4 images, all classes in each batch and so no hard negatives"


def test_images_without_a_label_are_drawn_too() -> None:
    sampler = sampler_of(LABELS, batch_size=10, labeled_per_batch=8)
    sampler.hard_negatives.set(mined(ROUND, 68))
    for batch in sampler.epoch(1):
        assert int((LABELS[batch] < 0).sum()) == 2


def test_an_epoch_is_a_function_of_seed_epoch_and_what_was_mined() -> None:
    first, second, third = sampler_of(), sampler_of(), sampler_of()
    for sampler in (first, second):
        sampler.hard_negatives.set(mined(ROUND))
    third.hard_negatives.load_state_dict(first.hard_negatives.state_dict())
    assert torch.equal(first.epoch(4), second.epoch(4))
    assert torch.equal(first.epoch(4), third.epoch(4))
    third.hard_negatives.load_state_dict({})
    assert not torch.equal(first.epoch(4), third.epoch(4))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_composes_an_epoch_when_its_first_batch_is_due(workers: int) -> None:
    """What is mined between two epochs counts, though batches are fetched in advance."""
    sampler, expected = sampler_of(), sampler_of()
    images = torch.zeros(60, 3, 4, 4, dtype=torch.uint8)
    loader = Loader(Split(InMemory(images), LABELS[:60]), batch_size=16, seed=3, sampler=sampler, workers=workers)
    batches = loader.batches(1, 6)
    numbers = [next(batches)[2] for _ in range(2)]
    sampler.hard_negatives.set(mined(ROUND))
    expected.hard_negatives.set(mined(ROUND))
    numbers += [next(batches)[2] for _ in range(3)]
    assert torch.equal(torch.stack(numbers[2:]), expected.epoch(1))


@pytest.mark.parametrize(
    ("neighbors", "message"),
    [
        (mined({}, 59), r"of 60 images are \(60, 4\) int32, not \(59, 4\)"),
        (mined({}).long(), "int64"),
        (mined({}) + 61, "not among the 60"),
        (mined({}) - 1, "not among the 60"),
    ],
)
def test_neighbors_that_do_not_fit_are_refused(neighbors: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_of().hard_negatives.load_state_dict({"neighbors": neighbors})
