"""Optional members of a protocol: their defaults for a part that lacks them."""

from abc import abstractmethod
from typing import Protocol

import pytest

from reptk.config.registry import with_defaults
from reptk.core.errors import UsageError
from reptk.losses import Loss


class Vehicle(Protocol):
    """A required method, and optional members of every kind."""

    wheels: int = 4
    owner: str | None = None
    _secret: str = "private"

    @abstractmethod
    def drive(self) -> str: ...

    def describe(self) -> str:
        """A default that uses the part."""
        return f"{self.drive()} on {self.wheels} wheels"


class Bike:
    wheels = 2

    def drive(self) -> str:
        return "pedals"


class Sled:
    def describe(self) -> str:
        return "a sled"


def test_missing_values_are_set():
    bike = Bike()
    assert with_defaults(bike, Vehicle) is bike
    assert bike.owner is None


def test_present_members_are_unchanged():
    assert with_defaults(Bike(), Vehicle).wheels == 2
    assert with_defaults(Sled(), Vehicle).describe() == "a sled"


def test_default_methods_are_bound_to_the_part():
    bike, tandem = Bike(), Bike()
    tandem.drive = lambda: "four feet"
    with_defaults(bike, Vehicle)
    with_defaults(tandem, Vehicle)
    assert bike.describe() == "pedals on 2 wheels"
    assert tandem.describe() == "four feet on 2 wheels"


def test_abstract_and_private_members_are_not_set():
    sled = with_defaults(Sled(), Vehicle)
    assert sorted(vars(sled)) == ["owner", "wheels"]
    assert not hasattr(sled, "drive")
    assert not hasattr(sled, "_secret")


def test_class_of_the_part_is_unchanged():
    with_defaults(Sled(), Vehicle)
    assert not hasattr(Sled, "wheels")
    assert not hasattr(Sled, "owner")


def test_function_may_be_a_part():
    def loss(z, ids):
        return z.sum()

    assert with_defaults(loss, Loss) is loss
    assert loss.computes_local_rows is False
    assert loss.temperature is None


def test_part_that_cannot_have_attributes_is_an_error():
    with pytest.raises(
        UsageError, match=r"^<built-in function sum> has no attribute '\w+' and cannot be given one; wrap"
    ):
        with_defaults(sum, Loss)


def test_part_with_slots_that_lacks_a_member_is_an_error():
    class Slotted:
        __slots__ = ("wheels",)

        def __init__(self):
            self.wheels = 3

    with pytest.raises(UsageError, match="has no attribute 'owner' and cannot be given one"):
        with_defaults(Slotted(), Vehicle)
