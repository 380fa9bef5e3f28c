"""Loops over values that numba compiles, the first time that a type of arguments comes, and keeps compiled.

They live in modules named `load_kernels`, which are imported when they are first needed: importing numba takes half a second. They
take arguments from other modules, but no constants: what is compiled is kept until its own file changes. Whoever has kernels
has torch's operations for the same, too: for GPUs, and where numba is missing.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

ANY_ORDER = frozenset({"reassoc", "contract", "nsz"})
"""Sums in any order, so that they are made of vectors. NaN and infinity stay what they are."""


@functools.cache
def load_kernels(package: str) -> ModuleType | None:
    """`package`.kernels; None, with one warning, where numba is missing or does not go with what else is installed."""
    numba = _numba()
    return None if numba is None or numba.config.DISABLE_JIT else importlib.import_module(f"{package}.kernels")


def njit(function: Callable[..., Any], fastmath: Iterable[str] = ANY_ORDER) -> Callable[..., Any]:
    """The function in machine code, which does not keep other threads from running."""
    numba = importlib.import_module("numba")
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to keep the machine code in: every process compiles its own
        return numba.njit(**options)(function)


def njit_exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """`njit`, with every operation on floats as and where it is written: the same on every machine."""
    return njit(function, fastmath=())


@functools.cache
def _numba() -> ModuleType | None:
    try:
        return importlib.import_module("numba")
    except (ImportError, AttributeError, OSError, SystemError) as cause:
        warnings.warn(f"numba cannot be used ({cause}); views and neighbours on the CPU take longer", stacklevel=3)
        return None
