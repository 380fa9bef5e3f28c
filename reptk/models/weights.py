"""Weights of backbones: whether timm's can be downloaded, and files of other projects."""

import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn

from reptk.core.errors import DataError, EnvironmentProblem

StateDict = dict[str, Tensor]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_TIMEOUT_SECONDS = 4
WRAPPERS = ("state_dict", "model", "teacher")
"""Keys under which training scripts store a state dict, together with other things."""

PREFIXES = ("", "module.", "backbone.", "encoder.backbone.", "module.backbone.")
"""What the names of a backbone's weights begin with in common checkpoints."""


def load_weights(backbone: nn.Module, path: Path, new_weight: str | None = None) -> None:
    """Load a file of plain weights into a backbone: safetensors, or a state dict saved by torch.

    Wrappers and prefixes of the names are removed. If the names still differ, tensors are matched by their order, provided
    that all kinds and shapes agree. Code in the file is never executed.

    Args:
        backbone: changed in place.
        path: the file.
        new_weight: name of a weight that may have another shape in the file; it then keeps its initial values.

    Raises:
        DataError: the file is missing, damaged, holds no plain weights, or those of another backbone.
    """
    expected = backbone.state_dict()
    state = _match_names(_read_file(path), expected)
    if new_weight in state and state[new_weight].shape != expected[new_weight].shape:
        warnings.warn(f"the weights were made for another stem; {new_weight} starts afresh", stacklevel=3)
        state = state | {new_weight: expected[new_weight]}
    misfits = []
    for name, value in expected.items():
        if name not in state or state[name].shape != value.shape:
            misfits.append(name)
    if misfits:
        raise DataError(
            f"the weights in {path} do not fit this backbone: {len(misfits)} of {len(expected)} tensors are missing or of "
            f"another shape ({', '.join(misfits[:3])} ...)"
        )
    # Without a classifier and the like, which the file may hold as well.
    backbone.load_state_dict({name: state[name] for name in expected})


def check_downloadable(name: str) -> None:
    """Check that timm's weights of a backbone are in the cache or that their host responds.

    Without this check, an unreachable hub would be retried for most of a minute.

    Raises:
        EnvironmentProblem: the weights are not in the cache, and their host does not respond.
    """
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if not repository or hub.HF_HUB_OFFLINE:
        return
    for file in HUB_FILES:
        # The path of the cached file; otherwise None, or a marker that the repository has no such file.
        if isinstance(try_to_load_from_cache(repository, file), str):
            return
    try:
        urllib.request.urlopen(hub.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the host responds, even if it refuses this page
    except (OSError, ValueError) as cause:
        why = f"{hub.ENDPOINT} does not answer: {first_line(cause)}"
        raise EnvironmentProblem(download_failed(name, why)) from cause


def download_failed(name: str, why: str) -> str:
    """Return the message for pretrained weights that cannot be downloaded, with the ways out."""
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    source = ""
    if repository:
        source = f" ({repository}/{HUB_FILES[0]})"
    return (
        f"the pretrained weights of {name} cannot be fetched: {why}. Download them elsewhere{source} and name the file, in a "
        f"recipe by encoder.pretrained=false encoder.weights=FILE, to commands by --weights FILE; or bring the cache: "
        f"{hub.HF_HUB_CACHE}"
    )


def first_line(cause: BaseException) -> str:
    """Return the first line of an exception's message, or its type if there is none."""
    message = str(cause).strip() or type(cause).__name__
    return message.splitlines()[0]


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"there is no file of weights {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:
        # torch's message advises to permit the execution of code, which a file from elsewhere must never get.
        raise DataError(
            f"{path} holds no plain weights ({type(cause).__name__}); what can be read is safetensors, or "
            "a state dict of tensors saved by torch"
        ) from cause


def _match_names(content: Any, expected: StateDict) -> StateDict:
    """Return the tensors of a file under the backbone's names, as far as they can be matched."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        return {}
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        stripped = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if expected.keys() <= stripped.keys():
            return stripped
    # Other projects have other names for the same layers. A classifier may follow the tensors of the backbone.
    in_order = list(state.items())[: len(expected)]
    if [_signature(*item) for item in in_order] == [_signature(*item) for item in expected.items()]:
        warnings.warn(f"{len(expected)} tensors under other names were matched by their order and shapes", stacklevel=4)
        return {name: value for name, (_, value) in zip(expected, in_order, strict=True)}
    return state


def _signature(name: str, value: Tensor) -> tuple[str, torch.Size]:
    """What a tensor is in its layer (`weight`, `running_mean`, ...), and its shape."""
    return name.rpartition(".")[2], value.shape
