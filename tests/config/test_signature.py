"""A factory's signature as the schema of its arguments."""

import importlib

import pytest
import torch

from reptk.config import signature
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES


@pytest.fixture(autouse=True)
def _as_before(tmp_path, monkeypatch, restored_registries):
    """Whatever a test registers or imports from its own folder is restored_registries after it, which it spends there."""
    monkeypatch.chdir(tmp_path)


FACTORIES = """
from typing import Annotated, Any, Literal, TYPE_CHECKING
from annotated_types import Ge, Len

def plain(a: int, b: float = 0.5, *, c: str | None = None): ...

class Typed:
    def __init__(
        self,
        pair: tuple[int, int] = (1, 2),
        several: tuple[float, ...] = (),
        form: Literal["in", "out"] = "in",
        share: Annotated[float, Ge(0)] = 0.0,
        flags: Annotated[list[bool], Len(1, 2)] = [True],
    ): ...

def bare(a, b=2, c=(1, 2)): ...

def open_ended(a: int, **rest): ...

def positional(*rest: int, a: int = 1): ...

class Inherits(Typed): ...
"""


@pytest.fixture(params=["", "from __future__ import annotations"], ids=["annotations", "postponed annotations"])
def factories(request, tmp_path, monkeypatch):
    """The functions and classes of FACTORIES, with annotations of both kinds."""
    (tmp_path / "factories.py").write_text(request.param + FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("factories")


COMPLETED = {
    "defaults": ("plain", {"a": 1}, {"a": 1, "b": 0.5, "c": None}),
    "values": ("plain", {"a": 1, "b": 2, "c": "x"}, {"a": 1, "b": 2.0, "c": "x"}),
    "numbers written as text": ("plain", {"a": "1", "b": ".5"}, {"a": 1, "b": 0.5, "c": None}),
    "class": (
        "Typed",
        {},
        {"pair": [1, 2], "several": [], "form": "in", "share": 0.0, "flags": [True]},
    ),
    "class with values": (
        "Typed",
        {"pair": [3, 4], "several": [1, 2.5, 3], "form": "out", "share": 1, "flags": [False]},
        {"pair": [3, 4], "several": [1.0, 2.5, 3.0], "form": "out", "share": 1.0, "flags": [False]},
    ),
    "inherited": (
        "Inherits",
        {"form": "out"},
        {"pair": [1, 2], "several": [], "form": "out", "share": 0.0, "flags": [True]},
    ),
    "no annotations": ("bare", {"a": [1, "x"]}, {"a": [1, "x"], "b": 2, "c": [1, 2]}),
    "anything": ("open_ended", {"a": 1, "z": {"y": [1]}}, {"a": 1, "z": {"y": [1]}}),
    "positional arguments are nobody's": ("positional", {}, {"a": 1}),
}


@pytest.mark.parametrize(("name", "chosen", "complete"), COMPLETED.values(), ids=COMPLETED)
def test_arguments_are_completed(factories, name, chosen, complete):
    assert signature.check(getattr(factories, name), chosen) == (complete, [], [])


REFUSED = {
    "missing": ("plain", {}, [], {"a": "is missing"}),
    "unknown": ("plain", {"a": 1, "d": 2}, ["d"], {}),
    "type": ("plain", {"a": "x"}, [], {"a": "must be a valid integer, unable to parse string as an integer, got 'x'"}),
    "too short": ("Typed", {"pair": [1]}, [], {"pair.1": "is missing"}),
    "item": ("Typed", {"several": [1, "x"]}, [], {"several.1": "must be a valid number"}),
    "choice": ("Typed", {"form": "up"}, [], {"form": "must be 'in' or 'out', got 'up'"}),
    "range": ("Typed", {"share": -1}, [], {"share": "must be greater than or equal to 0, got -1"}),
    "length": ("Typed", {"flags": []}, [], {"flags": "List should have at least 1 item after validation, not 0"}),
    "no text for a list": ("Typed", {"several": "12"}, [], {"several": "must be a valid tuple, got '12'"}),
    "not finite": ("plain", {"a": 1, "b": float("inf")}, [], {"b": "must be a finite number, got inf"}),
    "several": ("Typed", {"form": 1, "share": -1, "z": 1}, ["z"], {"form": "must be", "share": "must be"}),
    "open, missing": ("open_ended", {"z": 1}, [], {"a": "is missing"}),
    "of the variable kind": ("positional", {"rest": 1}, ["rest"], {}),
}


@pytest.mark.parametrize(("name", "chosen", "unknown", "problems"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_do_not_fit_are_explained(factories, name, chosen, unknown, problems):
    checked = signature.check(getattr(factories, name), chosen)
    assert checked.unknown == unknown
    assert [key for key, _ in checked.problems] == list(problems)
    for (_, text), start in zip(checked.problems, problems.values(), strict=True):
        assert text.startswith(start)


def test_arguments_filled_in_by_somebody_else_are_no_part_of_the_schema(factories):
    assert signature.names(factories.plain, supplied=["a"]) == ["b", "c"]
    assert signature.check(factories.plain, {}, supplied=["a"]).complete == {"b": 0.5, "c": None}
    assert signature.check(factories.plain, {"a": 1}, supplied=["a"]).unknown == ["a"]


def test_annotations_known_to_type_checkers_alone_are_let_through(tmp_path, monkeypatch):
    text = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from elsewhere import Thing

def part(thing: Thing = 3, count: int = 1): ...
"""
    (tmp_path / "factories.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    part = importlib.import_module("factories").part
    assert signature.check(part, {"count": 2}).complete == {"thing": 3, "count": 2}


# Signatures that a stranger's plugin may have.


def a_list_of_a_later_class(others: "list[Later]" = [], count: int = 1): ...  # noqa: B006, F821


def a_private_name(_hidden: int = 1, count: int = 1): ...


def a_default_toml_cannot_hold(act=print, count: int = 1): ...


def a_list_of_a_class_in_quotes(others: list["Later"] = [], count: int = 1): ...  # noqa: B006, F821


def an_annotation_that_is_no_type(other: "int.nothing" = 0, count: int = 1): ...


def a_name_pydantic_uses(copy: int = 1, json: int = 1, count: int = 1): ...


@pytest.mark.parametrize(
    "factory",
    [
        a_list_of_a_later_class,
        a_private_name,
        a_default_toml_cannot_hold,
        a_list_of_a_class_in_quotes,
        an_annotation_that_is_no_type,
        a_name_pydantic_uses,
    ],
)
def test_odd_signatures_are_taken(factory):
    checked = signature.check(factory, {"count": 2})
    assert checked.complete["count"] == 2
    assert checked.unknown == checked.problems == []


def test_a_loss_without_arguments_takes_none():
    class Plain(torch.nn.Module): ...

    assert signature.check(Plain, {"x": 1}).unknown == ["x"]


def test_every_registered_part_with_defaults_validates_and_dumps():
    for registry in (LOSSES, DATASETS, EVALUATORS):
        for factory in registry.loaded().values():
            checked = signature.check(factory, {})
            assert checked.unknown == []
            assert {text for _, text in checked.problems} <= {"is missing"}
