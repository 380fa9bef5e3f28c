"""The expected positives of a batch are those of simulated batches, and the plan names a sampler that helps."""

import pytest
import torch
from torch import Tensor

from reptk.data import create_sampler
from reptk.data.batches.batch_plan import PositiveStatistics, composed_positives, plan_batches, random_positives
from reptk.data.batches.samplers import ClassSampler

SIZES = torch.tensor([40, 24, 12, 9, 3])
LABELS = torch.repeat_interleave(torch.arange(5), SIZES)
PARTLY_LABELED = torch.cat([LABELS, torch.full((72,), -1)])


def simulated(labels: Tensor, batch_size: int, **options) -> PositiveStatistics:
    """The mean over 500 epochs of batches."""
    sampler = create_sampler(labels, batch_size=batch_size, seed=0, **options)
    batches = torch.cat([sampler.epoch(number) for number in range(500)])
    of_batch = labels[batches]
    counts = torch.zeros(len(batches), 5, dtype=torch.long)
    is_labeled = of_batch >= 0
    counts.scatter_add_(1, of_batch.clamp_min(0), is_labeled.long())
    others = counts.gather(1, of_batch.clamp_min(0))[is_labeled] - 1
    return PositiveStatistics(others.double().mean().item(), (others == 0).double().mean().item())


def is_close(first: PositiveStatistics, second: PositiveStatistics) -> bool:
    return torch.allclose(torch.tensor(first), torch.tensor(second), rtol=0.03, atol=0.004)


@pytest.mark.parametrize("batch_size", [4, 8, 20])
@pytest.mark.parametrize("labels", [LABELS, PARTLY_LABELED], ids=["all", "some"])
def test_expectation_of_random_batches_is_that_of_simulated_ones(labels: Tensor, batch_size: int) -> None:
    expected = random_positives(SIZES, len(labels), batch_size)
    assert is_close(expected, simulated(labels, batch_size))
    assert not is_close(expected, simulated(labels, batch_size + 2))


@pytest.mark.parametrize("name", ["random", "class_balanced", "square_root", "positives"])
@pytest.mark.parametrize("labeled", [6, 10])
def test_expectation_of_composed_batches_is_that_of_simulated_ones(name: str, labeled: int) -> None:
    options = {"name": name, "labeled_per_batch": labeled}
    sampler = create_sampler(PARTLY_LABELED, batch_size=16, seed=0, **options)
    assert isinstance(sampler, ClassSampler)
    expected = composed_positives(SIZES, sampler.shape, sampler.steps_per_epoch)
    assert is_close(expected, simulated(PARTLY_LABELED, 16, **options))


def test_pk_has_k_minus_1_positives() -> None:
    labels = torch.arange(60) % 6
    sampler = create_sampler(labels, batch_size=12, seed=0, name="pk", images_per_class=3)
    assert composed_positives(torch.full((6,), 10), sampler.shape, 5) == (2, 0)


# The plan


def test_large_batches_of_few_classes_suffice() -> None:
    lines = plan_batches(torch.arange(1000) % 10, batch_size=200, shape=None)
    assert lines[0] == "1,000 labeled images in 10 classes of 100 images each"
    assert lines[1].startswith("random batches of 200: 19.7 other images of its class for a labeled image, on average")
    assert lines[2:] == ["random batches suffice"]


def test_many_classes_need_a_sampler() -> None:
    lines = plan_batches(torch.arange(5000) % 500, batch_size=64, shape=None)
    assert lines[1].endswith("; 89 % of them meet none")
    assert lines[2] == (
        "train.sampler.name=pk (pk, 16 classes x 4 images) would give 3 other images of its class for a labeled image, on "
        "average"
    )
    assert lines[3].startswith("train.sampler.name=positives would give 1.1")


def test_few_labels_need_more_of_them_in_a_batch() -> None:
    labels = torch.where(torch.arange(6000) < 60, torch.arange(6000) % 10, -1)
    lines = plan_batches(labels, batch_size=256, shape=None)
    assert lines[0] == "60 labeled images of 6,000 in 10 classes of 6 images each"
    assert "train.sampler.name=positives train.sampler.labeled_per_batch=60" in lines[-1]
    overrides = dict(word.split("=") for word in lines[-1].split() if word.startswith("train.sampler"))
    create_sampler(
        labels,
        batch_size=256,
        seed=0,
        name=overrides["train.sampler.name"],
        labeled_per_batch=int(overrides["train.sampler.labeled_per_batch"]),
    )


def test_unequal_classes_are_told() -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([900, 90, 9]))
    assert plan_batches(labels, batch_size=100, shape=None)[-1] == (
        "the largest class has 100 times as many images as the smallest; train.sampler.name=square_root would draw it 10 times "
        "as often, class_balanced equally often"
    )


def test_nothing_is_planned_without_labels() -> None:
    assert plan_batches(torch.full((20,), -1), batch_size=4, shape=None) == []


def test_a_single_image_a_class_cannot_be_helped() -> None:
    labels = torch.cat([torch.arange(10), torch.full((90,), -1)])
    lines = plan_batches(labels, batch_size=20, shape=None)
    assert lines[1].endswith("100 % of them meet none")
    assert lines[2] == "no sampler gives every labeled image a positive: the classes have too few labeled images"
