"""Requirements of parts: a check tries a list of them, and raises all violations in one AssertionError."""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reptk.core import error_locations, rng


class Requirement(NamedTuple):
    """One thing that a part must do.

    statement: what it is, in one sentence.
    violation: a function of the part and the check's inputs. Returns what was observed instead, as the end of a sentence,
        or None if the requirement is met.
    consequence: what happens to a user of a part that violates it, in one sentence.
    """

    statement: str
    violation: Callable[..., str | None]
    consequence: str


class Outcome(NamedTuple):
    """A requirement that was tried: `observed` is what the part did instead, or None if it meets the requirement."""

    requirement: Requirement
    observed: str | None


def try_requirements(part: Any, requirements: Sequence[Requirement], *inputs: Any) -> list[Outcome]:
    """Try every requirement on a part, and return the outcomes in their order.

    Args:
        part: what is checked; passed to each requirement first.
        requirements: all of them are tried.
        inputs: further arguments of every requirement. Tensors are copied for each, so that a part that writes to its input
            violates one requirement, not all.
    """
    outcomes = []
    with _restored_random_states():
        for requirement in requirements:
            outcomes.append(Outcome(requirement, _try(requirement.violation, part, inputs)))
    return outcomes


def raise_violations(outcomes: Sequence[Outcome], kind: str, name: str) -> None:
    """Raise an error that lists the requirements which a part violates, if there are any.

    Args:
        outcomes: of all requirements.
        kind: e.g. "a loss", for the message.
        name: of the part, for the message.

    Raises:
        AssertionError: one line for each violated requirement.
    """
    violations = []
    for requirement, observed in outcomes:
        if observed is not None:
            violations.append(f"{requirement.statement}, but {observed}")
    if violations:
        head = f"{name} violates {len(violations)} of {len(outcomes)} requirements of {kind}:"
        raise AssertionError("\n".join([head, *violations]))


@contextmanager
def _restored_random_states() -> Iterator[None]:
    """Restore the states of NumPy and Python after the block; those of torch are restored by `rng.seeded`."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def global_rng_moved(call: Callable[[], Any]) -> str | None:
    """Return a violation if a call draws from a global random stream, or seeds it: torch's, NumPy's or Python's."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    moved = []
    with rng.seeded("a state to compare with"):
        torch_state = torch.get_rng_state()
        call()
        if not torch.equal(torch.get_rng_state(), torch_state):
            moved.append("torch's")
    if not _are_equal(np.random.get_state(), numpy_state):
        moved.append("NumPy's")
    if random.getstate() != python_state:
        moved.append("Python's")
    if not moved:
        return None
    return f"it moves {' and '.join(moved)}: draw from a generator of its own, e.g. reptk.rng.generator(seed)"


def _are_equal(state: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(np.array_equal(part, other_part) for part, other_part in zip(state, other, strict=True))


def _try(violation: Callable[..., str | None], part: Any, inputs: Sequence[Any]) -> str | None:
    copies = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
    try:
        return violation(part, *copies)
    except Exception as error:
        # The report has one line for each violation; messages of torch have several.
        return " ".join(f"it raised {type(error).__name__}: {error}{place_of(error)}".split())


def place_of(error: Exception) -> str:
    """Return the line of the part that raised an error, as ` (my_loss.py, line 12)`; empty if it is not in a plugin's file."""
    place = error_locations.location_of(error)
    if place is None:
        return ""
    return f" ({place.path.name}, line {place.line})"


def qualified_name(part: Any) -> str:
    """Return the qualified name of a class or function, or of the class of any other object."""
    if inspect.isclass(part) or inspect.isroutine(part):
        return part.__qualname__
    return type(part).__qualname__
