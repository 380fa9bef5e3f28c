"""timm backbones: checked names, options and sizes, with messages that say what to do."""

import difflib
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from reptk.core.errors import DataError, EnvironmentProblem, UsageError, first_line
from reptk.core.foreign_files import read_json
from reptk.models.encoder_keys import ENCODER_KEYS, EncoderKeys, prefixed_errors
from reptk.models.weight_source import (
    HUB,
    LOCAL_FOLDER,
    TIMM_ORGANIZATION,
    absolute_source,
    check_downloadable,
    download_failed,
    fetch,
)

MAX_MODEL_SIZE = 1 << 16
"""Of any width, number of layers or classes in the description of a model from elsewhere."""


def full_name(name: str) -> str:
    """Return the name of a backbone as timm understands it, independent of the working directory.

    `timm/NAME` and `hf-hub:timm/NAME` are `NAME` if timm has it, otherwise a repository of the hub.
    """
    if name.startswith(LOCAL_FOLDER):
        return LOCAL_FOLDER + absolute_source(name)
    repository = name.removeprefix(HUB)
    if not repository.startswith(TIMM_ORGANIZATION):
        return name
    model = repository.removeprefix(TIMM_ORGANIZATION)
    if timm.is_model(model):
        return model
    return HUB + repository


def create_backbone(
    name: str,
    *,
    size: int,
    pretrained: bool,
    drop_path: float,
    other_sizes: Sequence[int] = (),
    keys: EncoderKeys = ENCODER_KEYS,
) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        name: of the model, with or without a tag.
        size: side of the images in pixels.
        pretrained: load timm's weights for that name.
        drop_path: stochastic depth; 0 leaves timm's default.
        other_sizes: sides of further images. A vision transformer interpolates its position embeddings for them
            (`dynamic_img_size` of timm), which are parameters for `size`; weights and features of `size` are the same.
        keys: of the arguments, for messages.

    Raises:
        UsageError: an unknown name, or a model that cannot be built with this size or option.
        EnvironmentProblem: the pretrained weights, or the description of a model of the hub, cannot be downloaded.
        DataError: the folder does not hold a model of timm.
    """
    cfg = pretrained_cfg(name, keys)
    if pretrained and not is_external(name):
        check_downloadable(name, keys.weights_file)
    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    # Not every model has these options, so they are passed only where they are needed.
    if drop_path:
        options["drop_path_rate"] = drop_path
    if cfg.fixed_input_size:
        options["img_size"] = size
    needs_interpolation = cfg.fixed_input_size and any(other != size for other in other_sizes)
    if needs_interpolation:
        options["dynamic_img_size"] = True
    try:
        backbone = timm.create_model(name, **options)
    # timm raises errors of many types for sizes and options that a model does not support, and for damaged files.
    except Exception as cause:
        if needs_interpolation and isinstance(cause, TypeError):  # of an option that the model does not have
            raise UsageError(takes_no_other_size(name, size, other_sizes)) from cause
        if is_external(name):
            raise DataError(f"{keys.backbone}: timm cannot build {name} for {size} px: {first_line(cause)}") from cause
        if pretrained and isinstance(cause, OSError | RuntimeError):
            raise EnvironmentProblem(download_failed(name, first_line(cause), keys.weights_file)) from cause
        raise UsageError(f"{keys.backbone}: timm cannot build {name} for {size} px: {first_line(cause)}") from cause
    _check_patch_size(backbone, name, size, keys.size)
    for other in other_sizes:
        _check_patch_size(backbone, name, other, "other sizes of views (views.small_size)")
    return backbone


def model_args(name: str, size: int) -> dict[str, Any]:
    """Return the arguments besides the name by which timm builds a backbone for images of a size.

    Args:
        name: a full name.
        size: side of the images in pixels.
    """
    args: dict[str, Any] = {}
    if is_external(name):
        args |= _read_description(name).get("model_args", {})
    if pretrained_cfg(name).fixed_input_size:
        args["img_size"] = size
    return args


def takes_no_other_size(name: str, size: int, other_sizes: Sequence[int]) -> str:
    """Return the message about a backbone that is built for images of one size, and views of others."""
    listed = " and ".join(str(other) for other in sorted(set(other_sizes) - {size}))
    return (
        f"views of {listed} px: {name} is built for {size} px and takes no others; use a convolutional backbone, a vision "
        "transformer whose position embeddings timm can interpolate (vit_*, deit3_*, eva02_*), or views of one size"
    )


def native_size(backbone: str, keys: EncoderKeys = ENCODER_KEYS) -> int:
    """Return the side in pixels of the images that timm's weights of a backbone were trained with.

    Args:
        backbone: its name.
        keys: for messages.

    Raises:
        UsageError: unknown backbone.
        DataError, EnvironmentProblem: see `create_backbone`.
    """
    return pretrained_cfg(full_name(backbone), keys).input_size[-1]


def is_external(name: str) -> bool:
    """Whether a backbone is described outside of timm, on the hub or in a folder."""
    return name.startswith((HUB, LOCAL_FOLDER))


def undecayed_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that timm says not to decay: class tokens, position embeddings, tables of relative positions."""
    if not hasattr(backbone, "no_weight_decay"):
        return []
    # timm names parameters, or patterns of names.
    patterns = backbone.no_weight_decay()
    parameters = []
    for name, parameter in backbone.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameters.append(parameter)
    return parameters


def count_features(backbone: nn.Module, size: int, name: str, keys: EncoderKeys = ENCODER_KEYS) -> int:
    """Return F, the number of features of an image, by encoding one. The backbone's mode is restored.

    Raises:
        UsageError: the backbone cannot encode images of this size, or does not give one vector per image.
    """
    # In training mode, BatchNorm would refuse a single image, or update its statistics with it.
    was_training = backbone.training
    try:
        with torch.no_grad():
            h = backbone.eval()(torch.zeros(1, 3, size, size))
    except Exception as cause:
        raise UsageError(
            f"{keys.backbone}: {name} cannot take images of {size} px ({keys.size}): {first_line(cause)}"
        ) from cause
    backbone.train(was_training)
    if h.ndim != 2:
        raise UsageError(
            f"{keys.backbone}: {name} gives features of shape {tuple(h.shape[1:])}, not one vector an image"
        )
    return h.shape[1]


def pretrained_cfg(name: str, keys: EncoderKeys = ENCODER_KEYS) -> PretrainedCfg:
    """Return timm's description of a backbone's weights; `name` is a full name, and `keys` are for messages."""
    if not is_external(name):
        _check_name(name, keys.backbone)
        return timm.get_pretrained_cfg(name)
    try:
        with prefixed_errors(keys.prefix):
            table = _read_description(name)
        architecture = table["architecture"]
        # Older files have everything in one table.
        described = dict(table.get("pretrained_cfg", table))
        defaults = timm.get_pretrained_cfg(architecture).to_dict()
        _check_description(described)
        _check_sizes(table)
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as cause:
        raise DataError(
            f"{keys.backbone}: {name} is no model of timm ({first_line(cause)}). Such a folder has a config.json and "
            "model.safetensors, as timm.models.save_for_hf writes them"
        ) from cause
    known = {field: value for field, value in described.items() if field in defaults}
    return PretrainedCfg(**{**defaults, **known})


def _read_description(name: str) -> dict[str, Any]:
    """Return the `config.json` of a model outside of timm.

    Raises:
        EnvironmentProblem: the hub does not respond, or has no such repository.
        OSError, ValueError, TypeError: the file cannot be read, or is of something else.
    """
    if name.startswith(LOCAL_FOLDER):
        file = Path(name.removeprefix(LOCAL_FOLDER)) / "config.json"
    else:
        file = fetch(name.removeprefix(HUB), ("config.json",))
    return dict(read_json(file))


def _check_description(described: dict[str, Any]) -> None:
    """Raise ValueError unless what is read of a description is of the types that it must have."""
    for field, types in (("input_size", int), ("mean", int | float), ("std", int | float)):
        values = described.get(field, (1, 1, 1))
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, types) for v in values):
            raise ValueError(f"{field} must be 3 numbers, got {values!r:.100}")


def _check_sizes(value: Any) -> None:
    """Raise ValueError at an integer that would make a model of endless layers or width."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _check_sizes(inner)
    elif isinstance(value, int) and value > MAX_MODEL_SIZE:
        raise ValueError(f"a size of {value}")


def _check_name(name: str, key: str) -> None:
    if not timm.is_model(name):
        raise UsageError(_unknown_name(name, key))
    architecture, _, tag = name.partition(".")
    if not tag:
        return
    known_tags = []
    for full_name in timm.list_pretrained(f"{architecture}.*"):
        known_tags.append(full_name.partition(".")[2])
    if tag not in known_tags:
        raise UsageError(
            f"{key}: {architecture} has no weights called {tag!r}; it has {', '.join(known_tags) or 'none'}"
        )


def _check_patch_size(backbone: nn.Module, name: str, size: int, key: str) -> None:
    """Refuse image sizes whose last row of patches would be cut off. `key` is what sets the size."""
    # Not every backbone of timm has patches, and those that do name their size in several ways.
    patch_px = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if isinstance(patch_px, tuple):
        patch_px = patch_px[0]
    if patch_px and size % patch_px:
        smaller = size // patch_px * patch_px
        alternatives = str(smaller + patch_px)
        if smaller:
            alternatives = f"{smaller} or {alternatives}"
        raise UsageError(f"{key}: {name} has patches of {patch_px} px, and {size} is no multiple; use {alternatives}")


def _unknown_name(name: str, key: str) -> str:
    by_folded = {model.casefold(): model for model in timm.list_models()}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)
    hint = ""
    if matches:
        hint = f" Nearest: {', '.join(by_folded[match] for match in matches)}."
    command = "python -c 'import timm; print(timm.list_models())'"
    return f"{key}: timm has no model {name!r}.{hint} All {len(by_folded)}: {command}"
