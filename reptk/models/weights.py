"""Weights of other projects: find the encoder in a checkpoint, and fit its tensors to a timm backbone."""

import warnings
from pathlib import Path

import torch
from torch import nn

from reptk.core.errors import DataError
from reptk.core.name_lists import first_names_and_count
from reptk.models.checkpoint_file import StateDict, read_tensors
from reptk.models.encoder_keys import ENCODER_KEYS, EncoderKeys, prefixed_errors
from reptk.models.jax_weights import converted_by_timm, has_jax_names
from reptk.models.lora import PARAMETERS as LORA_PARAMETERS
from reptk.models.model_folder import check_weights_file
from reptk.models.weight_fitting import Candidate, first_convolutions, fit, required_tensors
from reptk.models.weight_layouts import LAYOUTS, PREFERRED
from reptk.models.weight_matching import match_by_order
from reptk.models.weight_parts import candidate_prefixes, large_parts, tensors_under
from reptk.models.weight_source import PACKAGE, find_weights

MAX_LISTED_NAMES = 4


def load_weights(
    backbone: nn.Module, source: str | Path, new_weight: str | None = None, keys: EncoderKeys = ENCODER_KEYS
) -> None:
    """Load the weights of an encoder into a backbone, from a checkpoint of any project.

    The encoder is the part of the file whose tensors have the backbone's names, after a common prefix. If there are
    several, `PREFERRED` decides. Where nothing has these names, tensors are matched by their order, but only if kinds,
    shapes and the numbers in the names leave no other assignment. Position embeddings, relative position biases, patch
    embeddings and the input channels of the first convolution are adapted by timm's functions. Code in the file is never
    executed.

    Args:
        backbone: of timm, changed in place.
        source: where the weights come from, and the part of the file if there are several; see `find_weights`.
        new_weight: name of a weight that may have another shape in the file; it then keeps its initial values.
        keys: of the encoder, for messages.

    Raises:
        DataError: the file is missing, damaged, holds no plain weights, those of another backbone or several encoders.
        EnvironmentProblem: weights of the hub cannot be downloaded.
    """
    with prefixed_errors(keys.prefix):
        chosen, path = _read_fitting(backbone, source, new_weight, keys)
    if chosen.initial is not None:
        warnings.warn(f"{path.name} has another stem; {chosen.initial} keeps its initial values", stacklevel=3)
    if chosen.adapted:
        warnings.warn(
            f"{path.name} was trained with other patches or channels: {', '.join(chosen.adapted)}. The features may be worse",
            stacklevel=3,
        )
    backbone.load_state_dict(chosen.state)


def _read_fitting(
    backbone: nn.Module, source: str | Path, new_weight: str | None, keys: EncoderKeys
) -> tuple[Candidate, Path]:
    """Return the tensors of a source that fit a backbone, and the file that they are from; see `load_weights`."""
    path, part = find_weights(source)
    check_weights_file(path)
    tensors = read_tensors(path)
    _check_merged(tensors, path)
    if has_jax_names(tensors):
        tensors = converted_by_timm(path, backbone) or tensors
    if not tensors:
        raise DataError(f"{path} holds no plain weights: there is no tensor in it. Name a file with a state dict")
    prefixes = candidate_prefixes(tensors, backbone, part)
    if not prefixes:
        raise DataError(
            f"{path} has no part {part!r}. Its parts: {first_names_and_count(large_parts(tensors), MAX_LISTED_NAMES)}"
        )
    candidates = _candidates(tensors, prefixes, backbone, new_weight)
    fitting = [candidate for candidate in candidates if not candidate.num_problems]
    if fitting:
        chosen = _choose(fitting, path, part)
    else:
        chosen = match_by_order(tensors, prefixes, backbone)
        # A recipe names a package together with its backbone, so there is no need to say so in every run.
        if chosen is not None and not str(source).startswith(PACKAGE):
            _warn_of_match_by_order(chosen, path, backbone)
    if chosen is None:
        closest = min(candidates, key=lambda candidate: (candidate.num_problems, len(candidate.extra)))
        raise DataError(_does_not_fit(closest, path, backbone, tensors, keys))
    _check_finite(chosen, path)
    return chosen, path


def _candidates(
    tensors: StateDict, prefixes: list[str], backbone: nn.Module, new_weight: str | None
) -> list[Candidate]:
    """Return the parts that fit in the first layout in which any does; otherwise all of them."""
    candidates: list[Candidate] = []
    for layout in LAYOUTS:
        fits = []
        for prefix in prefixes:
            state = {layout(name): value for name, value in tensors_under(tensors, prefix).items()}
            fits.append(fit(prefix, state, backbone, new_weight))
        candidates.extend(fits)
        if any(not candidate.num_problems for candidate in fits):
            return fits
    return candidates


def _choose(fitting: list[Candidate], path: Path, part: str | None) -> Candidate:
    """Return the encoder to use among those that fit.

    Raises:
        DataError: there are several, and no rule decides.
    """
    different: list[Candidate] = []
    for candidate in fitting:
        if not any(_equal(candidate.state, other.state) for other in different):
            different.append(candidate)
    remaining = different
    for preferred, other in PREFERRED:
        first = [candidate for candidate in remaining if preferred in candidate.prefix.split(".")]
        if first:
            remaining = [
                candidate for candidate in remaining if candidate in first or other not in candidate.prefix.split(".")
            ]
    names = [candidate.prefix or "the names without a prefix" for candidate in different]
    if len(remaining) != 1:
        raise DataError(
            f"{path} holds {len(different)} encoders that fit this backbone: {', '.join(names)}. Name the one to use: "
            f"{path}:{different[-1].prefix}"
        )
    if len(different) > 1 and part is None:
        others = [candidate.prefix for candidate in different if candidate is not remaining[0]]
        warnings.warn(
            f"{path.name} holds {len(different)} encoders; {remaining[0].prefix} is used, as its project does. "
            f"For another one: {path}:{others[0]}",
            stacklevel=5,
        )
    return remaining[0]


def _equal(state: StateDict, other: StateDict) -> bool:
    return all(value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in state.items())


def _check_merged(tensors: StateDict, path: Path) -> None:
    """Refuse a checkpoint of a run with LoRA, whose training is in the updates, and not in the weights."""
    if any(name.endswith(tuple(f".{parameter}" for parameter in LORA_PARAMETERS)) for name in tensors):
        raise DataError(
            f"{path} holds LoRA layers that are not merged into the weights. Name the folder of the finished run, whose "
            "model/ has them merged"
        )


def _check_finite(candidate: Candidate, path: Path) -> None:
    for name, value in candidate.state.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise DataError(
                f"{path} holds values that are not finite, in {name}. Take an earlier checkpoint, or another copy"
            )


def _warn_of_match_by_order(candidate: Candidate, path: Path, backbone: nn.Module) -> None:
    architecture = backbone.pretrained_cfg.get("architecture", "BACKBONE")
    warnings.warn(
        f"{path.name} uses other parameter names; all {len(candidate.state)} tensors were matched by order and shape. "
        f"Check with: reptk evaluate {architecture} --weights {path} data.name=photos",
        stacklevel=5,
    )


def _does_not_fit(closest: Candidate, path: Path, backbone: nn.Module, tensors: StateDict, keys: EncoderKeys) -> str:
    total = len(required_tensors(backbone))
    matched = total - closest.num_problems
    where = f"under {closest.prefix!r}" if closest.prefix else "without a prefix"
    details = [f"{name} is missing" for name in closest.missing[:3]] + closest.misfits[:3]
    parts = first_names_and_count(large_parts(tensors), MAX_LISTED_NAMES) or "none"
    extra = ""
    if closest.extra and closest.missing:
        extra = f" In the file only: {first_names_and_count(closest.extra, MAX_LISTED_NAMES)}."
    return (
        f"the weights in {path} do not fit this backbone: {closest.num_problems} of {total} tensors are missing or of another "
        f"shape ({'; '.join(details)}{'; ...' if closest.num_problems > len(details) else ''}), and {matched} fit, by names "
        f"{where}.{extra} {_way_out(closest, backbone, keys)}. Parts of the file: {parts}"
    )


def _way_out(closest: Candidate, backbone: nn.Module, keys: EncoderKeys) -> str:
    if len(closest.misfits) == 1 and not closest.missing:
        for name in first_convolutions(backbone):
            if closest.misfits[0].startswith(name) and closest.state[name].shape[2:] == (3, 3):
                return f"The first convolution of the file is that of small images: {keys.small_stem}"
    return f"Check {keys.architecture}, or name the part of the file that holds the encoder: FILE:PART"
