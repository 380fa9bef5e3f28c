"""Loops that numba compiles: there, missing, and where nothing can be kept."""

import subprocess
import sys

import pytest

from reptk.core import numba_jit

KERNELS = ["reptk.views.backends.numba_backend", "reptk.neighbors.neighbor_kernels", "reptk.evaluate.vote_kernels"]


@pytest.mark.parametrize("module", KERNELS)
def test_kernels_are_there(module: str) -> None:
    assert numba_jit.load_kernels(module).__name__ == module


def test_without_numba_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(numba_jit.importlib, "import_module", missing)
    with pytest.warns(UserWarning, match=r"numba cannot be used \(No module named 'numba'\)"):
        assert numba_jit._import_numba.__wrapped__() is None


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_numba_is_not_imported_before_it_is_needed() -> None:
    done = _python("import reptk, reptk.views, reptk.evaluate, sys; assert 'numba' not in sys.modules")
    assert not done.returncode, done.stderr


def test_with_numba_switched_off_torch_does_the_work() -> None:
    code = f"from reptk.core import numba_jit; assert not any(map(numba_jit.load_kernels, {KERNELS}))"
    done = _python(code, NUMBA_DISABLE_JIT="1")
    assert not done.returncode, done.stderr


def test_where_nothing_can_be_kept_every_process_compiles_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_jit.importlib, "import_module", lambda name: _Numba)
    assert numba_jit.njit_exact(len) == (len, {"nogil": True, "error_model": "numpy", "fastmath": set()})


class _Numba:
    @staticmethod
    def njit(*, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)
