"""Vision transformers and ResNets as Google releases them: .npz files with the names and layouts of JAX."""

import contextlib
import copy
import io
from pathlib import Path

import torch
from torch import nn

from reptk.models.checkpoint_file import StateDict

JAX_SEPARATOR = "/"
"""Between the parts of a name: Transformer/encoderblock_0/LayerNorm_0/scale."""


def has_jax_names(tensors: StateDict) -> bool:
    """Return whether the names of tensors are those of JAX."""
    return any(JAX_SEPARATOR in name for name in tensors)


def converted_by_timm(path: Path, backbone: nn.Module) -> StateDict:
    """Return the tensors of a .npz file under the backbone's names, in its shapes; empty if timm cannot convert them.

    Args:
        path: the file.
        backbone: of timm; it is not changed.
    """
    filled = copy.deepcopy(backbone)
    for tensor in filled.state_dict().values():
        if tensor.is_floating_point():
            # What is still so afterwards was not in the file.
            tensor.fill_(torch.nan)
    # timm reads the file by numpy, which loads no pickles unless it is told to, and prints what it resamples.
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            filled.load_pretrained(str(path))
    except Exception:  # of any type: another family, other names, other shapes; or timm has no conversion for this one
        return {}
    return {name: value for name, value in filled.state_dict().items() if not bool(value.isnan().all())}
