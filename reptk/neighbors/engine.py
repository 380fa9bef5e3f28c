"""Which library searches: torch on a GPU, else FAISS on the processor, else torch there. (`coarse` may spare it most work.)"""

import functools
import importlib
import os
import sys
import warnings
from types import ModuleType

import torch

from reptk.core.errors import EnvironmentProblem

INSTALL = "pip install 'reptk[cpu]' (or 'reptk[gpu]'; never both: they overwrite each other's files)"


@functools.cache
def engine_name() -> str:
    """ "torch" where there is CUDA, else "faiss", else "torch" with one warning that FAISS is missing.

    On a GPU, torch's product and topk beat FAISS (faiss issues 3045 and 3621), so faiss-gpu is not asked.
    """
    if torch.cuda.is_available():
        return "torch"
    if faiss() is not None:
        return "faiss"
    if sys.platform != "darwin":
        warnings.warn(
            f"FAISS is not installed; neighbours are searched exactly with torch. {INSTALL}",
            stacklevel=2,
        )
    return "torch"


def faiss() -> ModuleType | None:
    """FAISS, or None where it is missing or broken.

    faiss-gpu without its CUDA libraries raises RuntimeError; what remains after one of two FAISS packages is uninstalled
    is an empty module. On macOS torch and FAISS bring an OpenMP runtime each, and two in one process crash.
    """
    if sys.platform == "darwin":
        return None
    try:
        module = _import_faiss()
        module.IndexFlatIP  # noqa: B018 - an empty module has none
    except (ImportError, RuntimeError, AttributeError):
        return None
    return module


def _import_faiss() -> ModuleType:
    """FAISS with OpenMP threads that sleep when they have nothing to do.

    It brings an OpenMP of its own, which looks at the environment once, when it is loaded. By default its threads wait for
    the next search in a loop for some milliseconds, and keep the cores from whoever works on what has been found.
    """
    if "faiss" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return importlib.import_module("faiss")
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        return importlib.import_module("faiss")
    finally:
        del os.environ["OMP_WAIT_POLICY"]


def needed_faiss(purpose: str) -> ModuleType:
    """FAISS, or EnvironmentProblem that says how to install it."""
    module = faiss()
    if module is None:
        raise EnvironmentProblem(f"{purpose} needs FAISS, which is not installed or cannot be loaded. {INSTALL}")
    return module


def device() -> torch.device:
    """Where torch searches."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
