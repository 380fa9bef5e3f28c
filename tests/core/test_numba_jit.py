"""Kernels compiled with numba: available, not installed, switched off, and where nothing can be cached."""

import subprocess
import sys
from pathlib import Path

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


SEARCH = """
import resource, signal, sys, torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from reptk.core import numba_jit
from reptk.neighbors import search
assert numba_jit.load_kernels("reptk.neighbors.neighbor_kernels")
vectors = torch.nn.functional.normalize(torch.arange(320.0).sin().view(20, 16), dim=1)
print([(similarities.tolist(), rows.tolist()) for similarities, rows in search(vectors, vectors, 3)])
"""


def search_results(disk: str = "free", **environment: str) -> str:
    """Return what a search by compiled functions finds, in another process, which must print no warning."""
    process = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SEARCH, disk],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = search_results(NUMBA_CACHE_DIR=str(cache))
    assert list(cache.rglob("*.nbi")), "it is cached where it can be"
    no_folder = tmp_path / "file"
    no_folder.touch()
    # Locators that leave out the folder of the package, which can be written here.
    locators = "UserProvidedCacheLocator,UserWideCacheLocator"
    assert search_results(NUMBA_CACHE_DIR=str(no_folder / "cache")) == expected
    nowhere = {"HOME": str(no_folder), "XDG_CACHE_HOME": str(no_folder), "NUMBA_CACHE_LOCATOR_CLASSES": locators}
    assert search_results(**nowhere) == expected
    full = tmp_path / "full"
    assert search_results("full", NUMBA_CACHE_DIR=str(full)) == expected
    assert not list(full.rglob("*.nb?"))


class NumbaWithoutCache:
    """numba as it is where the package's folder cannot be written and there is no home."""

    @staticmethod
    def njit(*, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)
