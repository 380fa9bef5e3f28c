"""Loops over values, compiled with numba when they are first called and cached on disk.

Compiled functions live in modules of their own, loaded by `load_kernels` when they are first needed, because importing
numba takes half a second. Every one of them has an equivalent in torch operations, for GPUs and for machines without numba.
numba caches a module until its own file changes, so a kernel module must not use constants of other modules.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

REASSOCIATE = frozenset({"reassoc", "contract", "nsz"})
"""LLVM flags that let sums be reordered and so vectorised. NaN and infinity keep their meaning."""


@functools.cache
def load_kernels(module: str) -> ModuleType | None:
    """Import a module of compiled functions, e.g. `"reptk.neighbors.neighbor_kernels"`.

    Returns:
        The module, or None where numba is missing, switched off (`NUMBA_DISABLE_JIT=1`) or broken; a broken or missing
        numba warns once.
    """
    numba = _import_numba()
    if numba is None or numba.config.DISABLE_JIT:
        return None
    return importlib.import_module(module)


def njit(function: Callable[..., Any], fastmath: Iterable[str] = REASSOCIATE) -> Callable[..., Any]:
    """Compile a function that releases the GIL and is cached on disk. Sums may be reordered; see `njit_exact`."""
    numba = importlib.import_module("numba")
    # The error model of NumPy divides by zero without a branch that would raise, which would prevent vectorizing.
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):
        # No cache folder is writable: every process compiles its own copy.
        return numba.njit(**options)(function)
    if numba.config.DISABLE_JIT:
        return dispatcher  # the function itself
    # numba looks for a writable folder once, and raises if the disk is full or the folder is locked later on.
    cache = dispatcher._cache
    cache.load_overload = _ignoring_io_errors(cache.load_overload)
    cache.save_overload = _ignoring_io_errors(cache.save_overload)
    return dispatcher


def _ignoring_io_errors(access: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that accesses the cache where that is possible, and returns None, as of no entry, where it is not."""

    def access_or_nothing(*args: Any, **kwargs: Any) -> Any:
        try:
            return access(*args, **kwargs)
        except OSError:
            return None

    return access_or_nothing


def njit_exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without fastmath: floats are summed in the order that is written, which gives the same bits everywhere."""
    return njit(function, fastmath=())


@functools.cache
def compile_exact(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return `njit_exact(function)`, or None where numba cannot be used.

    For a single loop that stands next to the torch operations it replaces, in a module that must not import numba: numba is
    imported by the first call. The loop must not call other functions of the module, nor use its constants.
    """
    numba = _import_numba()
    if numba is None or numba.config.DISABLE_JIT:
        return None
    return njit_exact(function)


@functools.cache
def _import_numba() -> ModuleType | None:
    try:
        return importlib.import_module("numba")
    # Besides a missing package: versions of NumPy or LLVM that do not fit raise the others.
    except (ImportError, AttributeError, OSError, SystemError) as cause:
        warnings.warn(f"numba cannot be used ({cause}); views and neighbors on the CPU take longer", stacklevel=3)
        return None
