"""Fits the tensors of a file to a timm backbone, by their names."""

import sys
import warnings
from dataclasses import dataclass, field

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from reptk.models.checkpoint_file import StateDict

COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that no result depends on; old files lack it."""


@dataclass(eq=False)
class Candidate:
    """Tensors under one prefix of a file, and how they fit the backbone.

    Args:
        prefix: what the names begin with in the file, without the last dot; "" for the whole file.
        state: under the backbone's names, with its shapes where they can be adapted.
        missing: names of the backbone's tensors that are not among them.
        misfits: what does not fit, one description a tensor.
        extra: names that the backbone does not have.
        initial: name of the weight that keeps its initial values, if there is one.
        adapted: first convolutions that were resampled or converted to other channels, one description each.
    """

    prefix: str
    state: StateDict
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    initial: str | None = None
    adapted: list[str] = field(default_factory=list)

    @property
    def num_problems(self) -> int:
        return len(self.missing) + len(self.misfits)


def required_tensors(backbone: nn.Module) -> StateDict:
    """Return the tensors that a file has to have."""
    state = backbone.state_dict()
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}


def fit(prefix: str, state: StateDict, backbone: nn.Module, new_weight: str | None) -> Candidate:
    """Return the tensors that the backbone has a place for, in its shapes where they can be adapted, and what is wrong."""
    expected = backbone.state_dict()
    candidate = compare(prefix, state, expected)
    if candidate.num_problems:
        adapted = _adapt_input_channels(_filtered(state, backbone), backbone)
        candidate = compare(prefix, adapted, expected)
        for name in first_convolutions(backbone):
            if name in state and name in candidate.state and state[name].shape != candidate.state[name].shape:
                shapes = f"{tuple(state[name].shape)} to {tuple(candidate.state[name].shape)}"
                candidate.adapted.append(f"{name} is converted from {shapes}")
    if new_weight in candidate.state and candidate.state[new_weight].shape != expected[new_weight].shape:
        candidate = compare(prefix, candidate.state | {new_weight: expected[new_weight]}, expected)
        candidate.initial = new_weight
    return candidate


def compare(prefix: str, state: StateDict, expected: StateDict) -> Candidate:
    candidate = Candidate(prefix, {}, extra=[name for name in state if name not in expected])
    for name, value in expected.items():
        tensor = state.get(name)
        if name.endswith(COUNTER):
            # An integer scalar; what else a file has under this name cannot be one.
            is_counter = tensor is not None and tensor.shape == value.shape and not tensor.is_complex()
            candidate.state[name] = tensor if is_counter else value
        elif tensor is None:
            candidate.missing.append(name)
        else:
            candidate.state[name] = tensor
            problem = _misfit(tensor, value)
            if problem:
                candidate.misfits.append(f"{name} {problem}")
    return candidate


def _misfit(tensor: Tensor, expected: Tensor) -> str:
    if tensor.shape != expected.shape:
        return f"has shape {tuple(tensor.shape)} instead of {tuple(expected.shape)}"
    if expected.is_floating_point() and not tensor.is_floating_point():
        return f"is {str(tensor.dtype).removeprefix('torch.')} instead of a float type"
    return ""


def _filtered(state: StateDict, backbone: nn.Module) -> StateDict:
    """Apply the conversion that timm has for the backbone's family.

    It renames layers of the official releases (ConvNeXt, Swin, BEiT, DINOv2's registers and SwiGLU, CLIP) and resamples
    position embeddings, relative position biases and patch embeddings.
    """
    module = sys.modules[type(backbone).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)  # not every family has one
    if convert is None:
        return state
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on how timm interpolates
            # A copy, because some of these functions remove entries.
            converted = convert(dict(state), backbone)
    except Exception:
        return state  # these functions expect a file that fits; what does not fit is reported by name
    return {name: value for name, value in converted.items() if isinstance(value, Tensor)}


def first_convolutions(backbone: nn.Module) -> list[str]:
    """Return the names of the weights that images are convolved with first."""
    paths = backbone.pretrained_cfg.get("first_conv") or ()
    if isinstance(paths, str):
        paths = (paths,)
    return [f"{path}.weight" for path in paths]


def _adapt_input_channels(state: StateDict, backbone: nn.Module) -> StateDict:
    """Convert the first convolutions to the backbone's number of input channels."""
    required = required_tensors(backbone)
    adapted = dict(state)
    for name in first_convolutions(backbone):
        expected = required.get(name)
        value = state.get(name)
        if expected is None or value is None or expected.ndim != 4 or value.ndim != 4:
            continue
        channels = expected.shape[1]
        if value.shape[1] == 1 and channels > 1:
            # timm converts weights for color images only. This gives gray images in color the features that they had.
            adapted[name] = value.expand(-1, channels, -1, -1) / channels
        elif value.shape[1] == 3 and channels != 3:
            adapted[name] = adapt_input_conv(channels, value)
    return adapted
