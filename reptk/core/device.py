"""The device on which a process computes."""

import torch

from reptk.core.errors import EnvironmentProblem, UsageError


def choose_device(name: str = "auto") -> torch.device:
    """Return a device that is available.

    Args:
        name: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        UsageError: `name` is none of these.
        EnvironmentProblem: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(f"the device is {name!r}, but torch finds no CUDA device; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(f"there is no device {name}; torch finds {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem("the device is 'mps', but this is no Mac whose GPU torch can use; use cpu or auto")
    return device
