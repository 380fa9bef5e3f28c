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


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether an encoder runs in bfloat16 (autocast) on a device.

    Args:
        precision: "fp32", "bf16", or "auto": bfloat16 where the device has instructions for its products. A GPU before
            Ampere, and a CPU without AMX, compute them no faster than in float32.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()
