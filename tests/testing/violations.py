"""Which requirements a check finds violated, for the tests of the checks."""

from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import pytest

from reptk.config.registry import Registry
from reptk.testing.requirements import Requirement

Expected = Sequence[str | EllipsisType]
"""How the statements of the violated requirements begin; with an ellipsis, others may be violated as well."""


def shipped(registry: Registry) -> list[str]:
    """The parts that come with reptk, contributed plugins included if they are loaded."""
    return [name for name in registry.names() if registry.source(name).startswith("reptk.")]


def violated(
    requirements: Sequence[Requirement], check: Callable[..., None], *arguments: Any, **options: Any
) -> set[str]:
    """The statements of the requirements that a check finds violated."""
    with pytest.raises(AssertionError) as caught:
        check(*arguments, **options)
    head, *lines = str(caught.value).splitlines()
    statements = set()
    for requirement in requirements:
        statements |= {requirement.statement for line in lines if line.startswith(f"{requirement.statement}, but ")}
    assert len(statements) == len(lines)
    assert f"violates {len(lines)} of {len(requirements)} requirements" in head
    return statements


def assert_violates(
    expected: Expected, requirements: Sequence[Requirement], check: Callable[..., None], *arguments: Any, **options: Any
) -> None:
    """Assert that exactly the expected requirements are violated, or at least these with an ellipsis among them."""
    beginnings = tuple(beginning for beginning in expected if beginning is not ...)
    statements = {requirement.statement for requirement in requirements if requirement.statement.startswith(beginnings)}
    assert len(statements) == len(beginnings)
    observed = violated(requirements, check, *arguments, **options)
    if ... in expected:
        assert observed >= statements
    else:
        assert observed == statements


def assert_each_is_violated(requirements: Sequence[Requirement], *tables: Mapping[str, tuple[Any, Expected]]) -> None:
    """Assert that every requirement is violated by some part of the tables."""
    beginnings = set()
    for table in tables:
        for _, expected in table.values():
            beginnings |= {beginning for beginning in expected if beginning is not ...}
    statements = [requirement.statement for requirement in requirements]
    assert [statement for statement in statements if not statement.startswith(tuple(beginnings))] == []


def assert_rng_untouched(check: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """Assert that a failing check leaves torch's random state as it was."""
    import torch

    before = torch.get_rng_state()
    with pytest.raises(AssertionError):
        check(*arguments, **options)
    assert torch.equal(torch.get_rng_state(), before)
