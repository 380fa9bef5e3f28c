"""How a check works: a list of requirements is tried on a part, and all violations are raised together."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptk.core import rng


class Requirement(NamedTuple):
    """What a part must do.

    statement: one sentence.
    violation: a function of the part and the check's inputs that returns what was observed instead, or None.
    """

    statement: str
    violation: Callable[..., str | None]


def check_requirements(part: Any, kind: str, requirements: Sequence[Requirement], *inputs: Any) -> None:
    """Try every requirement on a part.

    Args:
        part: what is checked; passed to each requirement first.
        kind: e.g. "a loss", for the message.
        requirements: all of them are tried.
        inputs: further arguments of every requirement. Tensors are copied for each, so that a part that writes to its input
            violates one requirement, not all.

    Raises:
        AssertionError: one line for each violated requirement.
    """
    violations = []
    for statement, violation in requirements:
        observed = _try(violation, part, inputs)
        if observed is not None:
            violations.append(f"{statement}, but {observed}")
    if violations:
        name = _name_of(part)
        raise AssertionError(
            f"{name} violates {len(violations)} of {len(requirements)} requirements of {kind}:\n"
            + "\n".join(violations)
        )


def global_rng_moved(call: Callable[[], Any]) -> str | None:
    """Whether a call draws from torch's global random stream, as a violation."""
    with rng.seeded("a state to compare with"):
        before = torch.get_rng_state()
        call()
        return None if torch.equal(torch.get_rng_state(), before) else "it has moved"


def _try(violation: Callable[..., str | None], part: Any, inputs: Sequence[Any]) -> str | None:
    copies = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
    try:
        return violation(part, *copies)
    except Exception as error:
        return " ".join(f"it raised {type(error).__name__}: {error}".split())


def _name_of(part: Any) -> str:
    if inspect.isclass(part) or inspect.isroutine(part):
        return part.__qualname__
    return type(part).__qualname__
