"""Parts of a backbone that are not trained: leading layers, or the BatchNorm layers."""

from collections.abc import Collection
from typing import Literal

from torch import nn

from reptk.core.errors import UsageError
from reptk.core.name_lists import first_names
from reptk.models.grad_cache import BATCH_NORMS
from reptk.models.layer_groups import layer_groups

Freeze = Literal["none", "stem", "all"] | int
"""Which layers are frozen: none, the stem, the stem and that many of the stages or blocks after it, or the whole backbone."""

KEY = "encoder.freeze"

MAX_LISTED_GROUPS = 6


def frozen_parameters(backbone: nn.Module, freeze: Freeze) -> list[str]:
    """Return the names of the parameters that `freeze` says not to train.

    Args:
        backbone: of timm.
        freeze: see `Freeze`. Stages and blocks are timm's: `group_matcher(coarse=True)`.

    Raises:
        UsageError: there are fewer stages or blocks, or timm defines none for this backbone.
    """
    if freeze == "none":
        return []
    if freeze == "all":
        return [name for name, _ in backbone.named_parameters()]
    groups = layer_groups(backbone, KEY)
    count = 0
    if freeze != "stem":
        count = freeze
    last = len(groups) - 1
    if not 0 <= count <= last:
        architecture = backbone.pretrained_cfg.get("architecture", type(backbone).__name__)
        raise UsageError(
            f"{KEY} is {freeze}, but {architecture} has {last} stages or blocks after its stem, which begin with "
            f"{_first_names(groups[1:])}. Use a number from 1 to {last}, or none, stem or all"
        )
    names = []
    for group in groups[: count + 1]:
        names += group
    return names


def frozen_modules(backbone: nn.Module, frozen: Collection[str]) -> list[str]:
    """Return the paths of the outermost modules whose parameters are all frozen.

    Modules without parameters that come before everything that is trained are among them, e.g. the dropout after the position
    embeddings.

    Args:
        backbone: of timm.
        frozen: names of its frozen parameters.
    """
    if not frozen:
        return []
    frozen = set(frozen)
    paths: list[str] = []
    is_before_training = True
    # Modules come before the modules in them.
    for path, module in backbone.named_modules():
        if any(path.startswith(f"{other}.") or other == "" for other in paths):
            continue
        prefix = f"{path}." if path else ""
        is_frozen = [f"{prefix}{name}" in frozen for name, _ in module.named_parameters()]
        if all(is_frozen) and (is_frozen or is_before_training):
            paths.append(path)
        elif is_frozen and not any(is_frozen):
            is_before_training = False
    return paths


def batch_norm_modules(backbone: nn.Module) -> list[str]:
    """Return the paths of the BatchNorm layers."""
    return [path for path, module in backbone.named_modules() if isinstance(module, BATCH_NORMS)]


def _first_names(groups: list[list[str]]) -> str:
    return first_names([group[0] for group in groups], MAX_LISTED_GROUPS)
