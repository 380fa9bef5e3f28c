"""check_dataset: shipped data sets pass, and every requirement is violated by one written for it."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reptk.data import Data, Images, InMemory, Split, digits, generated, photos
from reptk.testing import DATASET_REQUIREMENTS, check_dataset
from violations import assert_each_is_violated, assert_rng_untouched, assert_violates

GOOD = generated(classes=3, size=8, train=20, bank=9, query=6)
PIXELS = GOOD.train.images.pixels


def test_a_factory_and_its_data_meet_the_requirements() -> None:
    check_dataset(generated, classes=3, size=8)
    check_dataset(GOOD)
    check_dataset(digits)


def test_photographs_meet_the_requirements() -> None:
    pytest.importorskip("skimage")
    check_dataset(photos)


def with_train(images: object = GOOD.train.images, labels: Tensor = GOOD.train.labels) -> Data:
    return replace(GOOD, train=Split(images, labels))


class Wrapped(Images):
    """The good images. Subclasses violate a requirement."""

    def __len__(self) -> int:
        return len(PIXELS)

    def fetch(self, numbers: Tensor) -> Tensor:
        return PIXELS[numbers]


class NoBase:
    is_gray = False

    def __len__(self) -> int:
        return len(PIXELS)

    def get(self, numbers: Tensor) -> Tensor:
        return PIXELS[numbers]


class Floats(Wrapped):
    def fetch(self, numbers: Tensor) -> Tensor:
        return super().fetch(numbers) / 255


class OneChannel(Wrapped):
    def fetch(self, numbers: Tensor) -> Tensor:
        return super().fetch(numbers)[:, :1]


class Larger(Wrapped):
    def fetch(self, numbers: Tensor) -> Tensor:
        return super().fetch(numbers).repeat(1, 1, 2, 2)


class FirstIsDarker(Wrapped):
    def fetch(self, numbers: Tensor) -> Tensor:
        images = super().fetch(numbers).clone()
        images[0] //= 2
        return images


class SharedBuffer(Wrapped):
    def __init__(self) -> None:
        self.buffer = torch.zeros(64, *PIXELS.shape[1:], dtype=torch.uint8)

    def fetch(self, numbers: Tensor) -> Tensor:
        for row, number in enumerate(numbers):
            self.buffer[row] = PIXELS[number]
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.001)
        return self.buffer[: len(numbers)].clone()


class SaysGray(Wrapped):
    is_gray = True


class Augments(Wrapped):
    def fetch(self, numbers: Tensor) -> Tensor:
        torch.rand(1)
        return super().fetch(numbers)


BROKEN_DATASETS = {
    "no bank": (replace(GOOD, bank=None), ["it gives Data", ...]),
    "no protocol": (replace(GOOD, protocol=" "), ["it gives Data"]),
    "crop of 0": (replace(GOOD, crop=0.0), ["it gives Data"]),
    "no data": ({"train": GOOD.train}, ["it gives Data", ...]),
    "too few labels": (with_train(labels=GOOD.train.labels[:-1]), ["every split has", ...]),
    "32-bit labels": (with_train(labels=GOOD.train.labels.int()), ["labels are int64"]),
    "label -2": (with_train(labels=GOOD.train.labels - 2), ["labels are int64"]),
    "more labels than names": (replace(GOOD, classes=GOOD.classes[:2]), ["labels are int64", ...]),
    "bank without a class": (
        replace(GOOD, bank=Split(GOOD.bank.images, GOOD.bank.labels.clamp_max(1))),
        ["every class of the queries"],
    ),
    "no base class": (with_train(NoBase()), ["images subclass", ...]),
    "floats": (with_train(Floats()), ["fetch(numbers", ...]),
    "one channel": (with_train(OneChannel()), ["fetch(numbers", ...]),
    "another size": (with_train(Larger()), ["fetch(numbers"]),
    "first is darker": (with_train(FirstIsDarker()), ["an image depends", ...]),
    "shared buffer": (with_train(SharedBuffer()), ["several threads"]),
    "says gray": (with_train(SaysGray()), ["is_gray"]),
    "augments": (with_train(Augments()), ["the random states"]),
}


@pytest.mark.parametrize(("data", "expected"), BROKEN_DATASETS.values(), ids=BROKEN_DATASETS)
def test_a_broken_data_set_is_detected(data: Data, expected: list[str]) -> None:
    assert_violates(expected, DATASET_REQUIREMENTS, check_dataset, data)


def test_every_requirement_is_violated_by_a_broken_data_set() -> None:
    assert_each_is_violated(DATASET_REQUIREMENTS, BROKEN_DATASETS)


def test_images_in_memory_may_be_checked_alone() -> None:
    check_dataset(Data(Split(InMemory(PIXELS), GOOD.train.labels), None, None, GOOD.classes, "one split"))


def test_a_failing_check_leaves_the_random_state() -> None:
    assert_rng_untouched(check_dataset, with_train(Augments()))
