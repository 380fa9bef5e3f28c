"""Fixtures of several test files."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

WANTS_GPU = "REPTK_TEST_ON_GPU"
"""Environment variable by which `pytest -m gpu` tells its worker processes, whose command line does not say so."""


def _is_gpu_run() -> bool:
    """Whether this is `pytest -m gpu`, or a worker of it."""
    if WANTS_GPU in os.environ:
        return True
    arguments = " ".join(sys.argv[1:])
    return "-m gpu" in arguments or "-mgpu" in arguments


# A job in the background (`nohup`, `&`) ignores these, and so would every process that a test starts and stops.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("SIGHUP", "SIGTERM"):
    _number = signal.Signals.__members__.get(_name)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


# Everything else runs on the CPU, even if there is a GPU. The variables are read when torch and triton are imported, which the
# conftest of a folder may do; this file is imported before those, while pytest's hooks would come too late.
if _is_gpu_run():
    os.environ[WANTS_GPU] = "1"
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from reptk.config.registry import REGISTRIES  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and pytest -m gpu"))


@pytest.fixture(autouse=True, scope="session")
def _user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where reptk stores what belongs to the user: not in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache_home")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data_home")))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are processed faster by one thread, above all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def restored_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a test registers, and what it imports from its folder or the contributed plugins."""
    for registry in REGISTRIES:
        registry.names()
        monkeypatch.setattr(registry, "_registrations", dict(registry._registrations))
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        file = str(getattr(sys.modules[name], "__file__", None))
        if file.startswith(str(tmp_path)) or name.startswith("reptk.plugins."):
            del sys.modules[name]


@pytest.fixture
def nothing_waits() -> Callable[[], AbstractContextManager[None]]:
    """Inside the block, whatever makes the host wait for the GPU is an error."""

    @contextmanager
    def block() -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return block
