"""The device on which a process computes, and the precision."""

from typing import Literal

import torch

from reptk.core.errors import EnvironmentProblem, UsageError

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

FIRST_WITH_TENSOR_CORES = (7, 0)
"""Compute capability of Volta, the first GPUs that multiply float16 faster than float32."""


def choose_device(name: str = "auto") -> torch.device:
    """Return a device that is available.

    Args:
        name: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        UsageError: `name` is none of these.
        EnvironmentProblem: there is no such device.
    """
    if name == "auto" and torch.cuda.is_available():
        return torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
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


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return the precision in which an encoder runs on a device.

    Args:
        precision: "fp32", "bf16", "fp16", or "auto": the half precision whose products the device has instructions for. That is
            bfloat16 on a GPU since Ampere and on a CPU with AMX, float16 on Volta and Turing (V100, T4), which have no
            bfloat16; elsewhere neither is faster than float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        if torch.cuda.get_device_capability(device) >= FIRST_WITH_TENSOR_CORES:
            return "fp16"
    elif device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return "bf16"
    return "fp32"


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """Return the context in which an encoder runs in a precision; for "fp32" it changes nothing."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(torch.device(device).type, dtype or torch.bfloat16, enabled=dtype is not None)
