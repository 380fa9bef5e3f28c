"""What batches consist of: exactly P x K, balanced, with positives; functions of (seed, epoch), for any number of ranks."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from reptk.core.errors import DataError
from reptk.data import InMemory, Loader, Split, create_sampler

SIZES = (40, 24, 12, 9, 7)
"""Of the classes; 92 images."""

LABELS = torch.repeat_interleave(torch.arange(5), torch.tensor(SIZES))
LABELS = LABELS[torch.randperm(92, generator=torch.Generator().manual_seed(0))]

PARTLY_LABELED = torch.cat([LABELS, torch.full((60,), -1)])

SAMPLERS = ("pk", "class_balanced", "square_root", "positives")


def epochs_of(labels: Tensor, count: int, batch_size: int = 16, **options) -> Tensor:
    """The batches of `count` epochs, (steps, batch_size)."""
    sampler = create_sampler(labels, batch_size=batch_size, seed=3, **options)
    return torch.cat([sampler.epoch(number) for number in range(count)])


def class_counts(batch: Tensor, labels: Tensor = LABELS) -> Counter:
    counts = Counter(labels[batch].tolist())
    counts.pop(-1, None)
    return counts


# Composition


@pytest.mark.parametrize(("p", "k"), [(4, 4), (2, 7), (5, 3)])
def test_pk_batches_have_exactly_p_classes_of_k_different_images(p, k):
    batches = epochs_of(LABELS, 5, p * k, name="pk", images_per_class=k)
    for batch in batches:
        assert sorted(class_counts(batch).values()) == [k] * p
        assert len(batch.unique()) == p * k


def test_pk_draws_classes_equally_often_and_all_images():
    batches = epochs_of(LABELS, 40, name="pk", images_per_class=4)
    counts = class_counts(batches.flatten())
    expected = batches.numel() / 5
    assert all(abs(count - expected) < 0.1 * expected for count in counts.values())
    assert len(batches.unique()) == 92


def test_pk_without_k_takes_the_smallest_from_4_on():
    assert sorted(class_counts(epochs_of(LABELS, 1, 25, name="pk")[0]).values()) == [5] * 5
    assert sorted(class_counts(epochs_of(LABELS, 1, 16, name="pk")[0]).values()) == [4] * 4


def test_with_positives_every_image_has_another_one_of_its_class():
    for batch in epochs_of(LABELS, 20, name="positives"):
        assert min(class_counts(batch).values()) >= 2
        assert len(batch.unique()) == 16
    random = epochs_of(LABELS, 20)
    assert any(min(class_counts(batch).values()) < 2 for batch in random), "random batches do not have that"


def test_with_positives_classes_are_drawn_as_often_as_they_are():
    batches = epochs_of(LABELS, 30, 46, name="positives")
    counts = class_counts(batches.flatten())
    for label, size in enumerate(SIZES):
        assert counts[label] / batches.numel() == pytest.approx(size / 92, rel=0.15)


def test_an_image_that_is_alone_in_its_class_counts_as_unlabeled():
    labels = torch.tensor([0] * 30 + [1] * 29 + [2])
    batches = epochs_of(labels, 4, 15, name="positives")
    assert 59 in batches
    for batch in batches:
        counts = class_counts(batch, labels)
        assert counts[2] <= 1
        assert counts[0] % 2 == counts[1] % 2 == 0


@pytest.mark.parametrize(("name", "exponent"), [("class_balanced", 0.0), ("square_root", 0.5)])
def test_classes_have_their_share_of_every_epoch(name, exponent):
    sampler = create_sampler(LABELS, batch_size=16, seed=0, name=name)
    weights = torch.tensor(SIZES).double() ** exponent
    shares = 80 * weights / weights.sum()
    total = torch.zeros(5)
    for number in range(200):
        counts = torch.bincount(LABELS[sampler.epoch(number).flatten()], minlength=5)
        assert ((counts - shares).abs() < 1).all()
        total += counts
    assert torch.allclose(total.double() / 200, shares, atol=0.1)


def test_images_of_a_class_come_equally_often():
    counts = torch.bincount(epochs_of(LABELS, 1, 92, name="class_balanced").flatten(), minlength=92)
    for label in range(5):
        of_class = counts[label == LABELS]
        assert of_class.max() - of_class.min() <= 1


@pytest.mark.parametrize("name", [*SAMPLERS, "random"])
@pytest.mark.parametrize("labeled", [8, 12])
def test_a_batch_has_so_many_labeled_images(name, labeled):
    batches = epochs_of(PARTLY_LABELED, 3, name=name, labeled_per_batch=labeled)
    assert len(batches) == 3 * (152 // 16)
    for batch in batches:
        assert int((PARTLY_LABELED[batch] >= 0).sum()) == labeled
        unlabeled = batch[PARTLY_LABELED[batch] < 0]
        assert len(unlabeled.unique()) == 16 - labeled
    assert len(batches.unique()) > 120


def test_by_default_labeled_images_have_their_share_in_whole_groups():
    labels = torch.cat([LABELS, torch.full((92,), -1)])
    for name, expected in (("pk", 8), ("positives", 8), ("class_balanced", 8)):
        batch = epochs_of(labels, 1, 17, name=name)[0]
        assert int((labels[batch] >= 0).sum()) == expected


def test_without_unlabeled_images_all_of_a_batch_are_labeled():
    assert torch.equal(
        epochs_of(LABELS, 2, name="positives", labeled_per_batch=4), epochs_of(LABELS, 2, name="positives")
    )
    assert torch.equal(epochs_of(LABELS, 2, labeled_per_batch=4), epochs_of(LABELS, 2))


# Order


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_order_is_a_function_of_seed_and_epoch(name):
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            torch.manual_seed(7)
            sampler = create_sampler(PARTLY_LABELED, batch_size=16, seed=seed, name=name)
            orders[seed, epoch] = sampler.epoch(epoch)
            assert torch.equal(sampler.epoch(epoch), orders[seed, epoch])
            assert len(sampler.epoch(epoch)) == sampler.steps_per_epoch
    assert len({tuple(order.flatten().tolist()) for order in orders.values()}) == 4


def numbers(loader: Loader, first_step: int, last_step: int) -> list[Tensor]:
    return [index for _, _, index in loader.batches(first_step, last_step)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_slices_of_ranks_are_the_global_batch_from_any_step_on(name):
    pixels = torch.zeros(152, 3, 2, 2, dtype=torch.uint8)
    split = Split(InMemory(pixels), PARTLY_LABELED)
    sampler = create_sampler(PARTLY_LABELED, batch_size=16, seed=2, name=name)
    whole = numbers(Loader(split, batch_size=16, seed=2, sampler=sampler), 0, 20)
    assert torch.equal(torch.stack(whole[:9]), sampler.epoch(0))
    ranks = []
    for rank in range(2):
        loader = Loader(split, batch_size=16, seed=2, sampler=sampler, rank=rank, world_size=2, workers=rank)
        ranks.append(numbers(loader, 5, 20))
    for expected, *slices in zip(whole[5:], *ranks, strict=True):
        assert torch.equal(torch.cat(slices), expected)


def test_every_slice_has_images_of_all_kinds():
    labels = torch.arange(64) // 8
    batches = epochs_of(labels, 40, 32, name="pk", images_per_class=8)
    first_halves = torch.stack([torch.bincount(labels[batch[:16]], minlength=8) for batch in batches])
    # Of four classes with eight images each, the first 16 places almost always hold some of all four.
    assert (first_halves > 0).sum(1).double().mean() > 3.9


# Errors

WORKS = "{}. What would work: {}"
PAIRS = "train.sampler.name=positives, which needs two images of a class"

MISTAKES = {
    "too many classes": (
        {"name": "pk", "images_per_class": 2, "batch_size": 24},
        WORKS.format(
            "5 classes have at least two labeled images; train.batch_size=24 and train.sampler.images_per_class=2 take 12 "
            "classes for a batch",
            f"train.sampler.images_per_class=6; or train.batch_size=10; or {PAIRS}",
        ),
    ),
    "no multiple": (
        {"name": "pk", "images_per_class": 5, "batch_size": 24},
        WORKS.format(
            "train.batch_size=24 is no multiple of train.sampler.images_per_class=5",
            f"train.sampler.images_per_class=6; or train.batch_size=20; or {PAIRS}",
        ),
    ),
    "classes too small": (
        {"name": "pk", "images_per_class": 12, "batch_size": 24},
        WORKS.format(
            "2 classes have fewer than 12 labeled images: owl (9), hen (7); train.sampler.images_per_class=12 takes 12 of each",
            f"train.sampler.images_per_class=6; or {PAIRS}",
        ),
    ),
    "a single class": (
        {"name": "pk", "images_per_class": 6, "batch_size": 6},
        WORKS.format(
            "train.batch_size=6 and train.sampler.images_per_class=6 leave a batch with less than two classes",
            f"train.sampler.images_per_class=3; or {PAIRS}",
        ),
    ),
    "odd number of positives": (
        {"name": "positives", "batch_size": 15},
        "train.batch_size is 15, and guaranteed positives come in pairs. What would work: train.batch_size=14",
    ),
    "more labeled images than images": (
        {"name": "positives", "batch_size": 16, "labeled_per_batch": 18, "labels": PARTLY_LABELED},
        "train.sampler.labeled_per_batch is 18, more than the 16 images of a batch (train.batch_size). What would work: "
        "train.sampler.labeled_per_batch=16",
    ),
    "too few labels for pairs": (
        {
            "name": "positives",
            "batch_size": 16,
            "labeled_per_batch": 8,
            "labels": torch.tensor([0, 0, 1, 1] + [-1] * 60),
        },
        "the classes are so small that they allow 2 pairs of images of one class; train.sampler.name=positives needs 4 for a "
        "batch. What would work: train.sampler.labeled_per_batch=4",
    ),
    "too few labels": (
        {"name": "random", "batch_size": 16, "labeled_per_batch": 8, "labels": torch.tensor([0, 0, 1, 1] + [-1] * 60)},
        "train.sampler.labeled_per_batch is 8, and 4 training images have a label. What would work: "
        "train.sampler.labeled_per_batch=4",
    ),
    "too few others": (
        {"name": "random", "batch_size": 16, "labeled_per_batch": 2, "labels": torch.tensor([0, 1] * 20 + [-1] * 5)},
        "train.sampler.labeled_per_batch is 2, and only 5 training images of the 14 others of a batch of 16 exist. What "
        "would work: train.sampler.labeled_per_batch=11",
    ),
    "a share of labeled images that is too small": (
        {"name": "pk", "batch_size": 4, "labels": torch.tensor([0, 1, 2] * 8 + [-1] * 60)},
        "the share of labeled images gives 0 labeled images per batch, and a batch needs labeled images. What would work: "
        "train.sampler.name=positives, which needs two images of a class",
    ),
    "a share of labeled images that is no two classes": (
        {"name": "pk", "batch_size": 6, "images_per_class": 4, "labels": torch.tensor([0, 1] * 10 + [-1] * 60)},
        "4 labeled images per batch (their share of the data) and train.sampler.images_per_class=4 leave a batch with less "
        "than two classes. What would work: train.sampler.images_per_class=2; or train.sampler.name=positives, which needs two "
        "images of a class",
    ),
    "no labels": (
        {"name": "pk", "batch_size": 16, "labels": torch.full((40,), -1)},
        "train.sampler.name=pk composes batches by labels, and the training images have none; use train.sampler.name=random "
        "without labeled_per_batch",
    ),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_explained(options, message):
    options = {"labels": LABELS, **options}
    labels = options.pop("labels")
    with pytest.raises(DataError) as error:
        create_sampler(labels, seed=0, classes=("cat", "dog", "cow", "owl", "hen"), **options)
    assert str(error.value) == message


def suggested(message: str, options: dict) -> list[dict]:
    """The options with each of the changes that a message suggests."""
    changes = []
    for choice in message.partition("What would work: ")[2].split("; or "):
        changed = dict(options)
        if choice.endswith(" without train.sampler.labeled_per_batch"):
            changed["labeled_per_batch"] = None
        key, _, value = choice.split()[0].partition(",")[0].partition("=")
        changed[key.rpartition(".")[2]] = int(value) if value.isdigit() else value
        changes.append(changed)
    return changes


def check_batches(labels: Tensor, options: dict) -> None:
    """Check that there are batches, of so many images that are all different."""
    batches = create_sampler(labels, seed=0, **options).epoch(0)
    assert batches.shape == (len(labels) // options["batch_size"], options["batch_size"])
    if options["name"] in ("pk", "positives"):
        assert all(len(batch.unique()) == len(batch) for batch in batches)


@pytest.mark.parametrize("number", range(60))
def test_batches_are_possible_or_what_a_message_suggests_is(number):
    generator = torch.Generator().manual_seed(number)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    sizes = torch.randint(1, draw(2, 30), (draw(1, 12),), generator=generator)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    if draw(0, 2):
        labels = torch.cat([labels, torch.full((draw(0, 40),), -1)])
    for name in (*SAMPLERS, "random"):
        options = {"name": name, "batch_size": draw(1, len(labels) + 1), "images_per_class": None}
        options["labeled_per_batch"] = [None, draw(1, 20)][draw(0, 2)]
        if name == "pk" and draw(0, 2):
            options["images_per_class"] = draw(2, 8)
        try:
            check_batches(labels, options)
        except DataError as error:
            for changed in suggested(str(error), options):
                check_batches(labels, changed)


@pytest.mark.parametrize("name", ["positives", "pk"])
def test_an_image_that_is_alone_in_its_class_refuses_no_batch(name):
    labels = torch.tensor([0] * 50 + [1] * 49 + [2])
    for batch in epochs_of(labels, 3, 32, name=name):
        assert len(batch.unique()) == 32
        assert min(class_counts(batch, labels).values()) >= 2
