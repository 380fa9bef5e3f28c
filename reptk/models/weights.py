"""Weights of other projects: find the encoder in a checkpoint, and fit its tensors to a timm backbone."""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from reptk.core.errors import DataError
from reptk.core.name_lists import first_names_and_count
from reptk.models.checkpoint_file import StateDict, read_tensors
from reptk.models.encoder_keys import ENCODER_KEYS, EncoderKeys, prefixed_errors
from reptk.models.jax_weights import converted_by_timm, has_jax_names
from reptk.models.lora import PARAMETERS as LORA_PARAMETERS
from reptk.models.model_folder import check_weights_file
from reptk.models.weight_source import PACKAGE, find_weights

COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that no result depends on; old files lack it."""

PREFERRED = (
    ("encoder_q", "encoder_k"),  # MoCo v1 and v2: the encoder of the queries
    ("base_encoder", "momentum_encoder"),  # MoCo v3
    ("backbone", "momentum_backbone"),  # solo-learn
    ("encoder", "momentum_encoder"),  # solo-learn before 1.0.5, and reptk's MoCo
    ("encoder", "target"),  # reptk's BYOL
    ("encoder", "student"),  # reptk's DINO
    ("backbone", "backbone_momentum"),  # lightly: MoCo, BYOL
    ("teacher_backbone", "student_backbone"),  # lightly: DINO
    ("teacher", "student"),  # DINO, DINOv2 and iBOT evaluate the teacher
    ("online_encoder", "target_encoder"),  # BYOL
    ("online_network", "target_network"),  # BYOL
    ("model_ema", "model"),  # timm evaluates the moving average
    ("state_dict_ema", "state_dict"),  # timm
)
"""Which encoder is used where a file has both: the one that its project evaluates."""

MAX_LISTED_NAMES = 4


def _plain(name: str) -> str:
    """Names as timm has them; torchvision's ResNets, DINO, MAE and MoCo have the same.

    - MoCo v1, v2 (facebookresearch/moco): `state_dict` / `module.encoder_q.`, `module.encoder_k.`, `module.queue`
    - MoCo v3 (facebookresearch/moco-v3): `state_dict` / `module.base_encoder.`, `module.momentum_encoder.`
    - DINO (facebookresearch/dino): `student` / `module.backbone.`, `teacher` / `backbone.`; released backbones without
    - MAE (facebookresearch/mae): `model` / the encoder's names and `mask_token`, `decoder_...`
    - solo-learn (vturrisi/solo-learn): `state_dict` / `backbone.`, `momentum_backbone.`
    """
    return name


def _supcontrast(name: str) -> str:
    """HobbitLong/SupContrast: `model` / `encoder.` or `encoder.module.`; the ResNets call the downsampling `shortcut`."""
    return name.replace(".shortcut.", ".downsample.")


LIGHTLY_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _lightly(name: str) -> str:
    """lightly-ai/lightly: `backbone.`, an `nn.Sequential` of the children of torchvision's ResNet, numbered."""
    number, dot, rest = name.partition(".")
    return LIGHTLY_CHILDREN.get(number, number) + dot + rest


def _dinov2(name: str) -> str:
    """facebookresearch/dinov2: `teacher` / `backbone.`; training divides the blocks into chunks, `blocks.CHUNK.BLOCK.`."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


LAYOUTS: tuple[Callable[[str], str], ...] = (_plain, _supcontrast, _lightly, _dinov2)


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
    prefixes = _prefixes(tensors, backbone, part)
    if not prefixes:
        raise DataError(
            f"{path} has no part {part!r}. Its parts: {first_names_and_count(_parts(tensors), MAX_LISTED_NAMES)}"
        )
    candidates = _candidates(tensors, prefixes, backbone, new_weight)
    fitting = [candidate for candidate in candidates if not candidate.num_problems]
    if fitting:
        chosen = _choose(fitting, path, part)
    else:
        chosen = _match_by_order(tensors, prefixes, backbone)
        # A recipe names a package together with its backbone, so there is no need to say so in every run.
        if chosen is not None and not str(source).startswith(PACKAGE):
            _warn_of_match_by_order(chosen, path, backbone)
    if chosen is None:
        closest = min(candidates, key=lambda candidate: (candidate.num_problems, len(candidate.extra)))
        raise DataError(_does_not_fit(closest, path, backbone, tensors, keys))
    _check_finite(chosen, path)
    return chosen, path


# The parts of a file


def _required(backbone: nn.Module) -> StateDict:
    """Return the tensors that a file has to have."""
    state = backbone.state_dict()
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}


def _under(tensors: StateDict, prefix: str) -> StateDict:
    """Return the tensors whose names begin with a prefix, without it."""
    if not prefix:
        return dict(tensors)
    start = prefix + "."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _sizes(tensors: StateDict) -> Counter[str]:
    """Return all prefixes of names in a file with their numbers of tensors, without counters; "" is the whole file."""
    sizes: Counter[str] = Counter()
    for name in tensors:
        if name.endswith(COUNTER):
            continue
        words = name.split(".")
        for length in range(len(words)):
            sizes[".".join(words[:length])] += 1
    return sizes


def _prefixes(tensors: StateDict, backbone: nn.Module, part: str | None) -> list[str]:
    """Return the prefixes under which the backbone may be, the shortest first; all inside the part if one is named."""
    sizes = _sizes(tensors)
    prefixes = sorted(sizes, key=lambda prefix: prefix.count(".") + bool(prefix))
    enough = len(_required(backbone)) / 2
    large = [prefix for prefix in prefixes if sizes[prefix] >= enough]
    if part is None:
        return large or [""]
    part = part.strip(".")
    if part == "":
        return [""]
    if part in large:
        # The full path of a part, and what is only in it: `teacher` holds `teacher.backbone`.
        return [prefix for prefix in large if f"{prefix}.".startswith(f"{part}.")]
    inside = [prefix for prefix in prefixes if f".{part}." in f".{prefix}."]
    return [prefix for prefix in inside if prefix in large] or inside[:1]


def _parts(tensors: StateDict) -> list[str]:
    """Return the parts of a file that hold a good share of its tensors, the outermost first, for messages."""
    parts = []
    for prefix, size in _sizes(tensors).items():
        if prefix and size >= len(tensors) / 8:
            parts.append(prefix)
    return sorted(parts, key=lambda prefix: prefix.count("."))


def _candidates(
    tensors: StateDict, prefixes: list[str], backbone: nn.Module, new_weight: str | None
) -> list[Candidate]:
    """Return the parts that fit in the first layout in which any does; otherwise all of them."""
    candidates: list[Candidate] = []
    for layout in LAYOUTS:
        fits = []
        for prefix in prefixes:
            state = {layout(name): value for name, value in _under(tensors, prefix).items()}
            fits.append(_fit(prefix, state, backbone, new_weight))
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


# Fitting tensors to the backbone


def _fit(prefix: str, state: StateDict, backbone: nn.Module, new_weight: str | None) -> Candidate:
    """Return the tensors that the backbone has a place for, in its shapes where they can be adapted, and what is wrong."""
    expected = backbone.state_dict()
    candidate = _compare(prefix, state, expected)
    if candidate.num_problems:
        adapted = _adapt_input_channels(_filtered(state, backbone), backbone)
        candidate = _compare(prefix, adapted, expected)
        for name in _first_convolutions(backbone):
            if name in state and name in candidate.state and state[name].shape != candidate.state[name].shape:
                shapes = f"{tuple(state[name].shape)} to {tuple(candidate.state[name].shape)}"
                candidate.adapted.append(f"{name} is converted from {shapes}")
    if new_weight in candidate.state and candidate.state[new_weight].shape != expected[new_weight].shape:
        candidate = _compare(prefix, candidate.state | {new_weight: expected[new_weight]}, expected)
        candidate.initial = new_weight
    return candidate


def _compare(prefix: str, state: StateDict, expected: StateDict) -> Candidate:
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


def _first_convolutions(backbone: nn.Module) -> list[str]:
    """Return the names of the weights that images are convolved with first."""
    paths = backbone.pretrained_cfg.get("first_conv") or ()
    if isinstance(paths, str):
        paths = (paths,)
    return [f"{path}.weight" for path in paths]


def _adapt_input_channels(state: StateDict, backbone: nn.Module) -> StateDict:
    """Convert the first convolutions to the backbone's number of input channels."""
    required = _required(backbone)
    adapted = dict(state)
    for name in _first_convolutions(backbone):
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


def _check_finite(candidate: Candidate, path: Path) -> None:
    for name, value in candidate.state.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise DataError(
                f"{path} holds values that are not finite, in {name}. Take an earlier checkpoint, or another copy"
            )


# Matching by order


Layer = tuple[str, tuple[tuple[str, torch.Size], ...]]
"""The path of a module, and its tensors: what each is in the layer (`weight`, `running_mean`, ...), and its shape."""


def _match_by_order(tensors: StateDict, prefixes: list[str], backbone: nn.Module) -> Candidate | None:
    """Return the tensors in the backbone's order if that is the only way to assign them; otherwise None."""
    required = _required(backbone)
    expected_layers = _layers(required)
    # The longest prefix first, under which the names differ from the first word on.
    for prefix in reversed(prefixes):
        state = _under(tensors, prefix)
        # A classifier may follow the tensors of the backbone.
        names = [name for name in state if not name.endswith(COUNTER)][: len(required)]
        layers = _layers({name: state[name] for name in names})
        if not _same_order(layers, expected_layers):
            continue
        renamed = {name: state[other] for name, other in zip(required, names, strict=True)}
        for (module, _), (expected_module, _) in zip(layers, expected_layers, strict=True):
            if f"{module}.{COUNTER}" in state:
                renamed[f"{expected_module}.{COUNTER}"] = state[f"{module}.{COUNTER}"]
        candidate = _compare(prefix, renamed, backbone.state_dict())
        if not candidate.num_problems:
            return candidate
    return None


def _warn_of_match_by_order(candidate: Candidate, path: Path, backbone: nn.Module) -> None:
    architecture = backbone.pretrained_cfg.get("architecture", "BACKBONE")
    warnings.warn(
        f"{path.name} uses other parameter names; all {len(candidate.state)} tensors were matched by order and shape. "
        f"Check with: reptk evaluate {architecture} --weights {path} data.name=photos",
        stacklevel=5,
    )


def _layers(state: StateDict) -> list[Layer]:
    layers: list[Layer] = []
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if not layers or layers[-1][0] != module:
            layers.append((module, ()))
        layers[-1] = (module, (*layers[-1][1], (kind, value.shape)))
    return layers


def _same_order(layers: list[Layer], expected: list[Layer]) -> bool:
    """Whether layers agree in kinds and shapes, and the names confirm the order of those that could be exchanged."""
    if [tensors for _, tensors in layers] != [tensors for _, tensors in expected]:
        return False
    positions: dict[tuple[tuple[str, torch.Size], ...], list[int]] = {}
    for position, (_, tensors) in enumerate(layers):
        positions.setdefault(tensors, []).append(position)
    for exchangeable in positions.values():
        for first, second in combinations(exchangeable, 2):
            order = _order(layers[first][0], layers[second][0])
            if order is None or order != _order(expected[first][0], expected[second][0]):
                return False
    return True


def _order(first: str, second: str) -> str | None:
    """Return how names tell that a layer comes before another one of the same kind and shape; None if they do not.

    `blocks.2.bn1` comes before `blocks.3.bn1`, and `bn1` before `bn2` next to it, by their numbers. `stem.bn` and
    `blocks.0.bn` differ at the top level, where modules are in the order of the computation. `norm_mlp` and `norm_attn` in
    one block say nothing, unless the backbone has the same words.
    """
    words = zip(first.split("."), second.split("."), strict=False)
    for depth, (word, other) in enumerate(words):
        if word == other:
            continue
        if re.sub(r"\d+", "#", word) == re.sub(r"\d+", "#", other):
            numbers = [int(digits) for digits in re.findall(r"\d+", word)]
            is_before = numbers < [int(digits) for digits in re.findall(r"\d+", other)]
            return "by number" if is_before else None
        return "at the top level" if depth == 0 else f"{word} before {other}"
    return None


# Messages


def _check_merged(tensors: StateDict, path: Path) -> None:
    """Refuse a checkpoint of a run with LoRA, whose training is in the updates, and not in the weights."""
    if any(name.endswith(tuple(f".{parameter}" for parameter in LORA_PARAMETERS)) for name in tensors):
        raise DataError(
            f"{path} holds LoRA layers that are not merged into the weights. Name the folder of the finished run, whose "
            "model/ has them merged"
        )


def _does_not_fit(closest: Candidate, path: Path, backbone: nn.Module, tensors: StateDict, keys: EncoderKeys) -> str:
    total = len(_required(backbone))
    matched = total - closest.num_problems
    where = f"under {closest.prefix!r}" if closest.prefix else "without a prefix"
    details = [f"{name} is missing" for name in closest.missing[:3]] + closest.misfits[:3]
    parts = first_names_and_count(_parts(tensors), MAX_LISTED_NAMES) or "none"
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
        for name in _first_convolutions(backbone):
            if closest.misfits[0].startswith(name) and closest.state[name].shape[2:] == (3, 3):
                return f"The first convolution of the file is that of small images: {keys.small_stem}"
    return f"Check {keys.architecture}, or name the part of the file that holds the encoder: FILE:PART"
