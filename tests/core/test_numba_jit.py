"""Kernels compiled with numba: available, not installed, switched off, and where nothing can be cached."""

import subprocess
import sys

import pytest

from reptk.core import numba_jit

KERNELS = ["reptk.views.backends.numba_backend", "reptk.neighbors.neighbor_kernels", "reptk.evaluate.vote_kernels"]


@pytest.mark.parametrize("module", KERNELS)
def test_kernels_load(module: str) -> None:
    assert numba_jit.load_kernels(module).__name__ == module


def test_missing_numba_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(numba_jit.importlib, "import_module", missing)
    with pytest.warns(UserWarning, match=r"numba cannot be used \(No module named 'numba'\)"):
        assert numba_jit._import_numba.__wrapped__() is None


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_numba_is_not_imported_before_it_is_needed() -> None:
    process = run_python("import reptk, reptk.views, reptk.evaluate, sys; assert 'numba' not in sys.modules")
    assert not process.returncode, process.stderr


def test_kernels_are_not_used_if_numba_is_switched_off() -> None:
    code = f"from reptk.core import numba_jit; assert not any(map(numba_jit.load_kernels, {KERNELS}))"
    process = run_python(code, NUMBA_DISABLE_JIT="1")
    assert not process.returncode, process.stderr


def test_kernels_are_compiled_without_a_cache_where_none_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_jit.importlib, "import_module", lambda name: NumbaWithoutCache)
    assert numba_jit.njit_exact(len) == (len, {"nogil": True, "error_model": "numpy", "fastmath": set()})


class NumbaWithoutCache:
    """numba as it is where the package's folder cannot be written and there is no home."""

    @staticmethod
    def njit(*, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)
